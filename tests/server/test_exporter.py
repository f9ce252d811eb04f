import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import MODEL
from starlette.testclient import TestClient

from tpuinfer.server.app import create_app
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.info import ServerInfo


def found(client):
    families = text_string_to_metric_families(client.get("/metrics").text)
    return [sample for family in families for sample in family.samples]


def samples(client):
    """(name, labels but the model's) -> value."""
    return {
        (one.name, *(value for name, value in one.labels.items() if name != "model_name")): (
            one.value
        )
        for one in found(client)
    }


def test_the_engine_in_numbers(client, complete):
    before = samples(client)
    assert before["tpuinfer:generation_tokens_total",] == 0
    complete(max_tokens=5)
    complete("\x7e")
    after = samples(client)
    assert after["tpuinfer:ready",] == 1
    assert after["tpuinfer:slots",] == 4
    assert after["tpuinfer:num_requests_running",] == after["tpuinfer:num_requests_waiting",] == 0
    assert after["tpuinfer:prompt_tokens_total",] == 4
    assert after["tpuinfer:generation_tokens_total",] == 7
    assert after["tpuinfer:request_success_total", "length"] == 1
    assert after["tpuinfer:request_success_total", "stop"] == 1
    assert after["tpuinfer:request_aborts_total",] == 0
    assert after["tpuinfer:ring_capacity_tokens",] == 4 * 64
    assert after["tpuinfer:kv_cache_usage_perc",] == 0
    assert after["tpuinfer:steps_total",] > 0
    assert after["tpuinfer:recompiles_total",] == 0
    assert after["tpuinfer:decode_rows_total",] == 4 + 2  # one was on its way at the end token
    assert after["tpuinfer:decode_slots_total",] == 4 * 6


def test_http_requests_are_counted_by_route(client, complete):
    complete(max_tokens=1)
    complete(model="other")
    client.get("/no/such/path")
    after = samples(client)
    counted = "tpuinfer:http_requests_total"
    assert after[counted, "POST", "/v1/completions", "200"] == 1
    assert after[counted, "POST", "/v1/completions", "404"] == 1
    assert after[counted, "any", "none", "404"] == 1
    assert after["tpuinfer:errors_total", "model_not_found"] == 1
    assert after["tpuinfer:errors_total", "not_found"] == 1


def test_background_requests_are_seen(engine, client, complete):
    complete()
    engine.metrics.finished["preempted"] += 2
    engine.metrics.background_running, engine.metrics.background_waiting = 3, 7
    after = samples(client)
    assert after["tpuinfer:num_preemptions_total",] == 2
    assert after["tpuinfer:num_background_running",] == 3
    assert after["tpuinfer:num_background_waiting",] == 7


def test_a_recompile_is_seen(engine, client, complete):
    engine.runner.recompiles = 3
    complete()
    assert samples(client)["tpuinfer:recompiles_total",] == 3


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("time_to_first_token_seconds", 2),
        ("request_queue_time_seconds", 2),
        ("inter_token_latency_seconds", 4),
        ("e2e_request_latency_seconds", 2),
        ("request_prefill_time_seconds", 2),
        ("request_decode_time_seconds", 2),
        ("request_prompt_tokens", 2),
        ("request_generation_tokens", 2),
    ],
)
def test_histograms_end_in_infinity(client, complete, name, count):
    complete(["a", "b"], max_tokens=3)
    after = samples(client)
    assert after[f"tpuinfer:{name}_count",] == count
    assert after[f"tpuinfer:{name}_bucket", "+Inf"] == count
    assert 0 < after[f"tpuinfer:{name}_sum",] < 10


def test_before_the_engine_there_is_only_readiness():
    with TestClient(create_app(Bridge(MODEL), ServerInfo(MODEL))) as client:
        assert samples(client) == {("tpuinfer:ready",): 0}


def test_no_metrics_but_ours(client):
    assert all(name.startswith("tpuinfer:") for name, *_ in samples(client))


def test_what_the_engine_counts_names_its_model(client, complete):
    complete(max_tokens=1)
    of_the_server = {"tpuinfer:ready", "tpuinfer:http_requests_total", "tpuinfer:errors_total"}
    for one in found(client):
        named = one.labels.get("model_name")
        assert named == (None if one.name in of_the_server else MODEL), one.name
