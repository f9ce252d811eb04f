"""From a model's name to a plan, and what is refused before a weight is read."""

import dataclasses
import functools
import json
from types import SimpleNamespace

import pytest
import tiny_model

from tpuinfer import LLM, SamplingParams
from tpuinfer.config import EngineConfig
from tpuinfer.engine import build
from tpuinfer.engine.plan import plan_of
from tpuinfer.errors import ConfigError, MeshError, RequestError, TokenizerError
from tpuinfer.platform import PlatformSettings
from tpuinfer.programs.slots import SlotLayout
from tpuinfer.sharding.rules import ShardingRules
from tpuinfer.testing.fake import FakeRunner
from tpuinfer.testing.tiny import TINY


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return tiny_model.write_gguf(tmp_path_factory.mktemp("build") / "tiny.gguf")


def test_a_plan_says_what_runs_and_how_large(gguf, tmp_path):
    plan = build.make_plan(gguf, engine=EngineConfig.parse(3, 100), cache_dir=tmp_path)
    assert plan.path.is_relative_to(tmp_path)
    assert (plan.dtype, plan.context) == ("bfloat16", 100)
    assert len(plan.rings) == plan.config.layers == 2
    ((ring,),) = set(plan.rings)
    assert (ring.slots, ring.length, ring.dtype) == (3, 128, "float32")
    rows = {row.name: row for row in plan.placements()}
    keys = rows["layers.*.ring.keys"]
    assert (keys.count, keys.bytes_per_device) == (2, 2 * 3 * 2 * 128 * ring.head_dim * 4)


SMALL = PlatformSettings(chunk=64, smallest_bucket=16, block=16, steps=2)


def planned(windows=(), mesh="1", **fields):
    config = dataclasses.replace(TINY, windows=windows)
    return plan_of(config, mesh=mesh, engine=EngineConfig.parse(**fields), settings=SMALL)


def test_rings_of_each_layer_and_class_by_hand():
    """(slots, length, window, sinks): in whole blocks of 16; classes ascend, however written."""

    def shapes(**fields):
        return [
            [(ring.slots, ring.length, ring.window, ring.sinks) for ring in classes]
            for classes in planned((0, 40), slots="2x100,4x32", **fields).rings
        ]

    assert shapes() == [
        [(4, 32, None, 0), (2, 112, None, 0)],
        [(4, 32, None, 0), (2, 48, 40, 0)],
    ]
    assert shapes(context_policy="roll", sinks=3) == [
        [(4, 32, 29, 3), (2, 112, 97, 3)],
        [(4, 32, None, 0), (2, 48, 40, 0)],  # no sinks in one class and not in the other
    ]


def test_a_plan_numbers_its_slots():
    plan = planned(slots="4x32,2x100", mesh="2x4")
    assert plan.slots == SlotLayout((4, 2), (32, 100), 2)
    assert (plan.context, plan.rolls) == (100, False)
    assert planned(slots="4x32", context_policy="roll").rolls


def test_chunks_fit_the_longest_class_and_a_ring_that_rolls_holds_them():
    assert planned(slots="1x17,1x50").buckets == (16, 32, 64)
    assert planned(slots="1x17,1x50", context_policy="roll").buckets == (16, 32)


def test_placements_name_the_class():
    names = {row.name for row in planned(slots="4x32,2x100").placements()}
    assert {"layers.*.ring_32.keys", "layers.*.ring_100.values"} <= names
    assert not any(".ring." in name for name in names)


def test_sinks_beyond_a_quarter_of_the_shortest_ring_are_refused():
    planned(slots="1x16,1x64", context_policy="roll", sinks=4)
    planned(slots="1x16", sinks=5)
    with pytest.raises(ConfigError, match=r"sinks is 5, of a context of 16: .*; nearest: 4$"):
        planned(slots="1x16,1x64", context_policy="roll", sinks=5)


def test_a_class_that_does_not_divide_over_the_mesh_is_refused():
    with pytest.raises(ConfigError, match="class of 3 slots does not divide over 2 data shards"):
        planned(slots="3x16,3x32", mesh="2x4")


def test_a_simulated_mesh_has_one_prefill_width(gguf, tmp_path):
    settings = build.make_plan(gguf, mesh="2x4", cache_dir=tmp_path).settings
    assert settings.chunk == settings.smallest_bucket


def test_the_context_is_the_models_unless_it_is_longer_than_the_platforms(gguf, tmp_path):
    assert build.make_plan(gguf, cache_dir=tmp_path).context == tiny_model.CONTEXT
    longer = EngineConfig.parse(1, tiny_model.CONTEXT + 1)
    with pytest.raises(ConfigError, match=f"nearest: {tiny_model.CONTEXT}"):
        build.make_plan(gguf, engine=longer, cache_dir=tmp_path)


def test_a_tokenizer_of_another_model_is_refused(gguf, tmp_path):
    plan = build.make_plan(gguf, cache_dir=tmp_path)
    config = json.loads((plan.path / "config.json").read_text())
    config["vocab_size"] -= 1
    (plan.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match="not of one model"):
        build.load(build.make_plan(plan.path), cache_dir=tmp_path)


@pytest.fixture
def loaded(gguf, tmp_path, monkeypatch):
    """`build.load` with everything but the device: the fake runner answers."""
    monkeypatch.setattr(build.checkpoint_load, "load_params", lambda path, shapes, repeats: None)
    monkeypatch.setattr(build, "start", lambda *_, **__: FakeRunner(1, capacity=64))
    plan = build.make_plan(gguf, cache_dir=tmp_path)
    return functools.partial(build.load, plan)


def test_a_checkpoint_without_a_tokenizer_answers_token_ids(loaded):
    (path,) = [loaded.args[0].path / "tokenizer.json"]
    path.unlink()
    llm = LLM.from_loaded(loaded())
    (output,) = llm.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=4))
    assert (output.outputs[0].token_ids, output.outputs[0].text) == ([4, 5, 6, 7], "")
    with pytest.raises(RequestError, match="no tokenizer: send token ids"):
        llm.generate("hello")
    with pytest.raises(RequestError, match="no chat template"):
        llm.chat([{"role": "user", "content": "hello"}])


def test_a_chat_template_of_the_user_s_own(loaded, tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{{ messages[0].content }} {{ mood }}{{ tools }}")
    llm = LLM.from_loaded(loaded(chat_template=path))
    messages = [{"role": "user", "content": "hi"}]
    (output,) = llm.chat(messages, SamplingParams(max_tokens=1), mood="well", tools=[{"a": 1}])
    assert output.prompt == "hi well[{'a': 1}]"
    assert output.prompt_token_ids == llm.tokenizer.encode(output.prompt, add_special_tokens=False)
    with pytest.raises(TokenizerError, match=r"none\.jinja: cannot be read"):
        loaded(chat_template=tmp_path / "none.jinja")


def test_the_cache_folder_reaches_conversion_and_compilation(gguf, tmp_path, monkeypatch):
    seen = {}

    def load(plan, *, chat_template, max_waiting, cache_dir, progress):
        seen.update(path=plan.path, cache_dir=cache_dir)
        return SimpleNamespace(plan=plan, tokenizer=None, engine=None, runner=None)

    monkeypatch.setattr(build, "load", load)
    LLM(gguf, cache_dir=str(tmp_path))
    assert seen["cache_dir"] == tmp_path
    assert seen["path"].is_relative_to(tmp_path)


def test_groups_must_be_cut_as_prefill_cuts_them_too():
    """TINY's rows of 32 inputs are two groups of 16, one for each device; of 32 there is one."""
    prefill = ShardingRules(axes={**ShardingRules().axes, "embed": "data"})
    rules = ShardingRules(prefill=prefill)
    made = plan_of(TINY, mesh="2x1", rules=rules, weights="int8:16", settings=SMALL)
    assert "int8:16" in map(str, made.schemes.values())
    with pytest.raises(MeshError, match="1 groups, which data=2 does not divide; nearest: int8:16"):
        plan_of(TINY, mesh="2x1", rules=rules, weights="int8:32", settings=SMALL)


def test_an_endless_number_is_refused_like_any_other():
    for value in (10**400, float("nan"), float("inf")):
        with pytest.raises(RequestError, match="max_tokens is"):
            SamplingParams(max_tokens=value)
