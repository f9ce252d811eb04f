"""KV heads that a mesh does not divide, kept several times: the same model, its rings cut."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny_model
from checkpoint import tiny_gguf

from tpuinfer import LLM, SamplingParams
from tpuinfer.checkpoint import load as checkpoint_load
from tpuinfer.config import EngineConfig
from tpuinfer.engine import build
from tpuinfer.engine.identity import identity
from tpuinfer.engine.plan import plan_of, repeated
from tpuinfer.engine.reload import read_weights
from tpuinfer.errors import RequestError
from tpuinfer.models import registry
from tpuinfer.platform import platform_settings
from tpuinfer.quant.qarray import QArray
from tpuinfer.sharding.report import table
from tpuinfer.testing.tiny import TINY

N, K, H = 8, 2, 8
KV = "layers.0.self_attn.{}_proj.weight".format
SETTINGS = dataclasses.replace(
    platform_settings("cpu"),
    **{"chunk": 16, "smallest_bucket": 16, "block": 16, "steps": 2, "prefill_rows": (1,)},
    **{"prefill_tokens": 16, "narrow_rows": ()},
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The checkpoint of a seed."""
    folder = tmp_path_factory.mktemp("heads")

    @functools.cache
    def make(seed=0):
        with pytest.MonkeyPatch.context() as patch:
            for name, size in {"N": N, "K": K, "H": H}.items():
                patch.setattr(tiny_gguf, name, size)
            return tiny_model.write_checkpoint(folder / f"seed{seed}", seed)

    return make


def planned(path, mesh, weights="none"):
    config = registry.read_config(checkpoint_load.read_config(path))
    plan = plan_of(
        config,
        mesh=mesh,
        dtype="float32",
        weights=weights,
        engine=EngineConfig.parse("2x48"),
        settings=SETTINGS,
    )
    return dataclasses.replace(plan, path=path)


@pytest.fixture(scope="module")
def llm(made, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    @functools.cache
    def load(mesh):
        return LLM.from_loaded(build.load(planned(made(), mesh), cache_dir=cache))

    return load


def answers(llm):
    """Tokens and log-probabilities of two greedy answers."""
    how = SamplingParams(temperature=0, max_tokens=12, logprobs=0, ignore_eos=True)
    outs = [one.outputs[0] for one in llm.generate(["The sky is", "one two"], how)]
    return [out.token_ids for out in outs], np.array([out.logprobs for out in outs])


def same_heads(one, other, copies):
    """That `other` has each head of `one` so many times, part by part."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for small, large in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        expected = np.repeat(np.asarray(small), copies, axis=0)
        np.testing.assert_array_equal(expected, np.asarray(large))


def test_a_plan_has_as_many_heads_as_devices(made):
    one, plan = planned(made(), "1"), planned(made(), "4")
    assert (plan.config.heads, plan.config.kv_heads, plan.layout.repeats) == (N, 4, K)
    assert plan.published == one.config
    assert one.published == one.config
    assert {spec.kv_heads for classes in plan.rings for spec in classes} == {4}
    rows = {row[0]: row for row in table(plan.placements())}
    for name in ("layers.*.self_attn.k_proj.weight", "layers.*.ring.keys"):
        assert "2, each kept 2 times: 4 over model=4" in rows[name][-1]
    bytes_of = {row.name: row.bytes_per_device for row in plan.placements()}
    assert bytes_of["layers.*.self_attn.v_proj.weight"] == 2 * H * 64 * 4  # 2 layers, one head each
    mine, other = (identity(which, name="tiny") for which in (one, plan))
    assert {key for key in mine if mine[key] != other[key]} == {"mesh", "fingerprint"}


@pytest.mark.parametrize("mesh", ["4", "2x4"])
def test_heads_are_read_once_and_kept_where_they_serve(made, mesh):
    one, plan = (build.load_params(planned(made(), which)) for which in ("1", mesh))
    for name, value in plan.items():
        copies = 2 if name.endswith(("k_proj.weight", "v_proj.weight")) else 1
        same_heads(one[name], value, copies)
    assert plan[KV("k")].sharding.shard_shape(plan[KV("k")].shape) == (1, H, 64)


@pytest.mark.parametrize("word", ["int8", "int4:16"])
def test_quantised_heads_are_repeated_with_their_scales(made, word):
    one, four = (build.load_params(planned(made(), mesh, word)) for mesh in ("1", "4"))
    assert isinstance(four[KV("v")], QArray)
    for part in "kv":
        same_heads(one[KV(part)], four[KV(part)], 2)
    same_heads(one[KV("q")], four[KV("q")], 1)


def test_answers_are_those_of_one_device(llm):
    (tokens, scores), (others, found) = answers(llm("1")), answers(llm("2x4"))
    assert tokens == others
    np.testing.assert_allclose(found, scores, atol=1e-5)


def test_other_weights_come_in_the_published_shapes(made, llm):
    one, many = llm("1"), llm("2x4")
    fresh = build.load_params(planned(made(1), "1"))
    assert fresh[KV("k")].shape == (K, H, 64)
    places = {name: value.sharding for name, value in build.load_params(many.plan).items()}
    there = {
        name: value if name in repeated(many.plan) else jax.device_put(value, places[name])
        for name, value in fresh.items()
    }
    before = answers(many)
    one.update_params(fresh)
    many.update_params(there)
    (tokens, scores), (others, found) = answers(one), answers(many)
    assert tokens == others != before[0]
    np.testing.assert_allclose(found, scores, atol=1e-5)
    with pytest.raises(
        RequestError, match=r"k_proj.* is f32\[4,8,64\].*\[2,8,64\].*published shap"
    ):
        many.update_params(there | {KV("k"): build.load_params(many.plan)[KV("k")]})
    assert answers(many)[0] == others
    again = read_weights(many.plan, made())
    same_heads(build.load_params(planned(made(), "1"))[KV("k")], again[KV("k")], 2)


def test_biases_and_norms_of_kv_heads_are_repeated_too():
    config = dataclasses.replace(TINY, heads=8, kv_heads=2)
    biased = plan_of(dataclasses.replace(config, qkv_bias=True), mesh=4)
    normed = plan_of(dataclasses.replace(config, family="olmo2"), mesh=4)
    layer = "layers.0.self_attn."
    bare = {f"{layer}{one}_proj.weight" for one in "kv"}
    for plan, more in ((biased, {"k_proj.bias", "v_proj.bias"}), (normed, {"k_norm.weight"})):
        found = {name for name in repeated(plan) if name.startswith(layer)}
        assert found == bare | {layer + one for one in more}
    assert repeated(plan_of(config, mesh=2)) == {}
