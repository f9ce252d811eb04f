import dataclasses

import pytest

from tests.planning.asked import ask
from tpuinfer.config import EngineConfig, Settings
from tpuinfer.engine.llm import LLM
from tpuinfer.errors import MeshError, OutOfMemoryError
from tpuinfer.model_config import EncoderConfig, Experts
from tpuinfer.models import registry, sizes
from tpuinfer.models.blueprint import weights
from tpuinfer.planning import best, compare
from tpuinfer.planning import topology as slices
from tpuinfer.quant.schemes import Scheme
from tpuinfer.sharding.presets import PRESETS


@dataclasses.dataclass
class Device:
    """As much of a jax device as tells what it is."""

    device_kind: str
    platform: str


@pytest.fixture
def devices(monkeypatch):
    """Makes `count` devices of a kind those that are here."""

    def there(kind, count, platform="tpu"):
        monkeypatch.setattr(best, "open_devices", lambda: [Device(kind, platform)] * count)

    return there


def settings(model="llama-3.1-8b", **others):
    return Settings(model, **others)


def found(chosen, slots="64x2048", **others):
    return best.for_settings(chosen, EngineConfig.parse(slots), **others)


def test_the_first_that_fits_of_a_slice():
    asked = ask()
    rows = compare.compare(asked, [asked.topology])
    assert best.choose(asked).mesh == slices.written(rows[0].mesh) == "8"
    assert best.best_mesh("llama-3.1-8b", "v5e:2x4", slots="64x2048") == "8"
    # 28 query heads of 4 KV heads do not divide by 8: they would be whole on every chip.
    assert best.best_mesh("qwen2.5-7b", "v5e:2x4", slots="64x2048") == "2x4"


def test_meshes_that_decode_alike_are_told_apart_by_prompts():
    """2D cuts weights over all chips on every mesh; the links then decide."""
    asked = ask(rules=PRESETS["2d"])
    rows = compare.compare(asked, [asked.topology])
    speeds = [row.answer.tokens_per_second for row in rows]
    assert min(speeds) > 0.98 * max(speeds)
    chosen = best.choose(asked)
    most = max(rows, key=lambda row: row.answer.prefill_tokens_per_second)
    assert chosen.mesh == slices.written(most.mesh) == "8"
    assert "as 4 of them do" in chosen.why
    assert "of 4 meshes of v5e:2x4 4 fit" in chosen.why


def test_slots_and_rules_decide_too():
    assert best.best_mesh("llama-3.1-8b", "v5e:2x4", slots="64x2048", weights="int8") == "8"
    moe = best.best_mesh("qwen3-30b-a3b", "v5e:4x4", slots="64x2048", rules="expert")
    assert "expert=" in moe
    dense = best.best_mesh("llama-3.1-8b", "v5e:2x4", slots="64x2048", rules="expert")
    assert dense == "8"  # it has no experts: the axis would be one more for rows


def test_an_axis_is_tried_where_rules_cut_the_model_over_it():
    dense = ask(rules=PRESETS["expert"])
    assert dense.mesh_axes == ("data", "model")
    experts = dataclasses.replace(dense.config, experts=Experts(8, 2, 64))
    assert dataclasses.replace(dense, config=experts).mesh_axes == ("data", "expert", "model")
    assert ask(rules=PRESETS["data"]).mesh_axes == ("data", "model")
    assert ask().mesh_axes == ("data", "model")


def test_where_nothing_fits_the_error_says_why():
    with pytest.raises(OutOfMemoryError, match=r"llama-3.3-70b runs on no mesh of v5e:2x4: the ar"):
        best.best_mesh("llama-3.3-70b", "v5e:2x4", slots="16x2048")
    with pytest.raises(OutOfMemoryError, match=r"no mesh of v5e:2x4: no slot fits: weights take"):
        best.best_mesh("llama-3.1-405b", "v5e:2x4", slots="auto", context="auto")


def test_the_devices_here_are_a_slice_if_a_table_knows_them(devices):
    devices("TPU v5 lite", 8)
    chosen = found(settings(), random_weights="llama-3.1-8b")
    assert (chosen.mesh, "v5e:2x4" in chosen.why) == ("8", True)
    devices("TPU v5 lite", 16)
    assert found(settings(), random_weights="llama-3.1-8b").mesh in ("16", "2x8")
    devices("TPU v5 lite", 1)
    with pytest.raises(OutOfMemoryError, match="on no mesh of v5e:1x1"):
        found(settings(), random_weights="llama-3.1-8b")
    assert best.best_mesh("llama-3.2-1b", slots="8x2048") == "1"


def test_of_other_devices_the_kv_heads_decide(devices):
    devices("Some GPU", 6, "gpu")
    chosen = found(settings(), random_weights="llama-3.1-8b")  # 8 KV heads
    assert (chosen.mesh, "no table knows 6 of Some GPU" in chosen.why) == ("3x2", True)
    devices("Some GPU", 4, "gpu")
    assert found(settings(), random_weights="llama-3.1-8b").mesh == "4"


def test_a_cpu_is_one_device_however_many_it_simulates():
    chosen = found(settings(), random_weights="llama-3.1-8b")
    assert (chosen.mesh, chosen.why) == ("1", "a CPU is one device; --mesh 8 simulates eight")
    assert best.best_mesh("llama-3.1-8b") == "1"


@pytest.fixture
def checkpoint(monkeypatch, tmp_path):
    """A checkpoint whose config is that of a known model, with all weights in int8 already."""
    raw = sizes.find("llama-3.3-70b")

    def there(model, **asked):
        assert (model, asked["published"]) == ("mine", False)
        return tmp_path

    monkeypatch.setattr(best.checkpoint_load, "resolve", there)
    monkeypatch.setattr(best.checkpoint_load, "read_config", lambda path: raw)
    every = weights(registry.build(registry.read_config(raw)))
    maps = {name: Scheme("int8") for name, w in every.items() if w.contracted}
    monkeypatch.setattr(best.checkpoint_load, "stored_schemes", lambda path: maps)


def test_weights_that_are_stored_in_fewer_bits_count_so(checkpoint, devices):
    """70B takes 17.6 GB a chip in bf16, which a v5e has not, and half of it in int8."""
    devices("TPU v5 lite", 8)
    assert found(settings("mine"), "16x2048").mesh == "8"
    with pytest.raises(OutOfMemoryError):
        found(settings("mine", weights="none"), "16x2048")


def test_an_encoders_texts_go_to_all_devices(checkpoint, devices, monkeypatch):
    encoder = object.__new__(EncoderConfig)
    monkeypatch.setattr(best.registry, "read_config", lambda raw: encoder)
    devices("TPU v5 lite", 8)
    assert found(settings("mine")).mesh == "8x1"
    devices("cpu", 8, "cpu")
    assert found(settings("mine")).mesh == "1"


def test_the_engine_takes_a_mesh_that_is_written_out():
    with pytest.raises(MeshError, match=r"tpuinfer\.experiment\.best_mesh\(model\) gives"):
        LLM("smollm2-135m-instruct", mesh="auto")
