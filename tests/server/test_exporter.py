import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import MODEL
from starlette.testclient import TestClient

from tpuinfer.server.app import ServerInfo, create_app
from tpuinfer.server.bridge import Bridge


def samples(client):
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_the_engine_in_numbers(client, complete):
    before = samples(client)
    assert before["tpuinfer_generation_tokens_total",] == 0
    complete(max_tokens=5)
    complete("\x7e")
    after = samples(client)
    assert after["tpuinfer_ready",] == 1
    assert after["tpuinfer_slots",] == 4
    assert after["tpuinfer_running",] == after["tpuinfer_waiting",] == 0
    assert after["tpuinfer_prompt_tokens_total",] == 4
    assert after["tpuinfer_generation_tokens_total",] == 7
    assert after["tpuinfer_requests_finished_total", "length"] == 1
    assert after["tpuinfer_requests_finished_total", "stop"] == 1
    assert after["tpuinfer_steps_total",] > 0
    assert after["tpuinfer_recompiles_total",] == 0
    assert after["tpuinfer_decode_rows_total",] == 4 + 2  # one was on its way at the end token
    assert after["tpuinfer_decode_slots_total",] == 4 * 6


def test_a_recompile_is_seen(engine, client, complete):
    engine.runner.recompiles = 3
    complete()
    assert samples(client)["tpuinfer_recompiles_total",] == 3


@pytest.mark.parametrize(
    ("name", "count"), [("time_to_first_token", 2), ("queue", 2), ("inter_token", 4)]
)
def test_histograms_end_in_infinity(client, complete, name, count):
    complete(["a", "b"], max_tokens=3)
    after = samples(client)
    assert after[f"tpuinfer_{name}_seconds_count",] == count
    assert after[f"tpuinfer_{name}_seconds_bucket", "+Inf"] == count
    assert 0 < after[f"tpuinfer_{name}_seconds_sum",] < 5


def test_before_the_engine_there_is_only_readiness():
    with TestClient(create_app(Bridge(MODEL), ServerInfo(MODEL))) as client:
        assert samples(client) == {("tpuinfer_ready",): 0}


def test_no_metrics_but_ours(client):
    assert all(name.startswith("tpuinfer_") for name, *_ in samples(client))
