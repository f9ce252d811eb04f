"""From a model's name to a plan, and what is refused before a weight is read."""

import json
from types import SimpleNamespace

import pytest
import tiny_model

from tpuinfer import LLM, SamplingParams
from tpuinfer.config import EngineConfig
from tpuinfer.engine import build
from tpuinfer.errors import CheckpointError, ConfigError, RequestError


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return tiny_model.write_gguf(tmp_path_factory.mktemp("build") / "tiny.gguf")


def test_a_plan_says_what_runs_and_how_large(gguf, tmp_path):
    plan = build.make_plan(gguf, engine=EngineConfig(3, 100), cache_dir=tmp_path)
    assert plan.path.is_relative_to(tmp_path)
    assert (plan.dtype, plan.context) == ("bfloat16", 100)
    assert len(plan.rings) == plan.config.layers == 2
    (ring,) = set(plan.rings)
    assert (ring.slots, ring.length, ring.dtype) == (3, 128, "float32")
    rows = {row.name: row for row in plan.placements()}
    keys = rows["layers.*.ring.keys"]
    assert (keys.count, keys.bytes_per_device) == (2, 2 * 3 * 2 * 128 * ring.head_dim * 4)


def test_a_simulated_mesh_has_one_prefill_width(gguf, tmp_path):
    settings = build.make_plan(gguf, mesh="2x4", cache_dir=tmp_path).settings
    assert settings.chunk == settings.smallest_bucket


def test_the_context_is_the_models_unless_it_is_longer_than_the_platforms(gguf, tmp_path):
    assert build.make_plan(gguf, cache_dir=tmp_path).context == tiny_model.CONTEXT
    longer = EngineConfig(1, tiny_model.CONTEXT + 1)
    with pytest.raises(ConfigError, match=f"nearest: {tiny_model.CONTEXT}"):
        build.make_plan(gguf, engine=longer, cache_dir=tmp_path)


def test_a_tokenizer_of_another_model_is_refused(gguf, tmp_path):
    plan = build.make_plan(gguf, cache_dir=tmp_path)
    config = json.loads((plan.path / "config.json").read_text())
    config["vocab_size"] -= 1
    (plan.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="not of one model"):
        build.load(build.make_plan(plan.path), cache_dir=tmp_path)


def test_the_cache_folder_reaches_conversion_and_compilation(gguf, tmp_path, monkeypatch):
    seen = {}

    def load(plan, *, max_waiting, cache_dir, progress):
        seen.update(path=plan.path, cache_dir=cache_dir)
        return SimpleNamespace(plan=plan, tokenizer=None, engine=None)

    monkeypatch.setattr(build, "load", load)
    LLM(gguf, cache_dir=str(tmp_path))
    assert seen["cache_dir"] == tmp_path
    assert seen["path"].is_relative_to(tmp_path)


def test_an_endless_number_is_refused_like_any_other():
    for value in (10**400, float("nan"), float("inf")):
        with pytest.raises(RequestError, match="max_tokens is"):
            SamplingParams(max_tokens=value)
