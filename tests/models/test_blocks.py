"""Blocks on a mesh give what they give on one device, whether their weights are cut or not."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpuinfer.cache.held import Rows
from tpuinfer.model_config import Rope
from tpuinfer.models import blocks
from tpuinfer.models.blueprint import bind, weights
from tpuinfer.models.registry import axis_sizes
from tpuinfer.ops import rope
from tpuinfer.sharding.layout import resolve
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.rules import ShardingRules
from tpuinfer.testing.tiny import ODD, TINY

MESHES = pytest.mark.parametrize("mesh", ["1", "2x4", "8"])
CONFIGS = pytest.mark.parametrize("config", [TINY, ODD], ids=["sharded", "fallback"])


def layout_of(config, mesh):
    return resolve(ShardingRules(), build_mesh(parse_mesh(mesh)), axis_sizes(config, slots=4))


def apply(module, layout, *arguments, seed=0):
    """Bind random weights, placed as the layout says; returns them by name and the result."""
    random = np.random.default_rng(seed)
    params = {
        name: random.standard_normal(w.shape).astype(np.float32)
        for name, w in weights(module).items()
    }
    placed = {
        name: jax.device_put(params[name], layout.sharding(w.axes))
        for name, w in weights(module).items()
    }
    run = jax.jit(lambda params, *arrays: bind(module, params)(*arrays))
    return params, run(placed, *arguments)


def normal(*shape):
    return np.random.default_rng(9).standard_normal(shape).astype(np.float32)


@MESHES
@CONFIGS
def test_embedding_looks_up(config, mesh):
    layout = layout_of(config, mesh)
    table = blocks.Embedding(config.vocab, config.embed)
    ids = np.array([[0, 1, config.vocab - 1], [5, 5, 64]] * 2, np.int32)

    class Look(blocks.Embedding):
        def __call__(self, tokens):
            return super().__call__(tokens, layout, jnp.dtype("float32"))

    assert weights(table) == weights(Look(config.vocab, config.embed))
    params, result = apply(Look(config.vocab, config.embed), layout, ids)
    np.testing.assert_array_equal(result, params["weight"][ids])


@MESHES
@CONFIGS
def test_the_gated_mlp_by_its_formula(config, mesh):
    layout = layout_of(config, mesh)

    class MLP(blocks.GatedMLP):
        def __call__(self, x):
            return super().__call__(x, layout)

    x = normal(4, 3, config.embed)
    params, result = apply(MLP(config), layout, x)
    gate, up, down = (
        params[f"{name}_proj.weight"].astype(np.float64) for name in ("gate", "up", "down")
    )
    hidden = x @ gate.T
    expected = (hidden / (1 + np.exp(-hidden)) * (x @ up.T)) @ down.T
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-3)


@MESHES
def test_a_sum_over_devices_treats_every_row_alike(mesh):
    """Equal rows give equal bits, whatever their index: no reduction is cut by row."""
    layout = layout_of(TINY, mesh)

    class Out(blocks.Einsum):
        def __call__(self, x):
            return super().__call__(x, layout)

    out = Out("BTF,DF->BTD", (32, 64), ("embed", "mlp"))
    x = np.broadcast_to(normal(1, 1, 64), (4, 5, 64)).copy()
    _, result = apply(out, layout, x)
    result = np.asarray(result).reshape(20, 32)
    np.testing.assert_array_equal(result, np.broadcast_to(result[:1], result.shape))


@MESHES
@CONFIGS
def test_a_bias_is_added_once(config, mesh):
    """Also where the sum goes over devices, each of which has the bias."""
    layout = layout_of(config, mesh)

    class Out(blocks.Einsum):
        def __call__(self, x):
            return super().__call__(x, layout)

    D, F = config.embed, config.mlp
    x = normal(4, 2, F)
    for equation, shape, axes in (
        ("BTF,DF->BTD", (D, F), ("embed", "mlp")),
        ("BTF,NHF->BTNH", (config.heads, config.head_dim, F), ("heads", "head_dim", "embed")),
    ):
        params, result = apply(Out(equation, shape, axes, bias=True), layout, x)
        weight = params["weight"].astype(np.float64).reshape(-1, F)
        assert params["bias"].shape == shape[:-1]
        expected = (x @ weight.T + params["bias"].reshape(-1)).reshape(result.shape)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


@MESHES
@CONFIGS
@pytest.mark.parametrize("axis", ["heads", "kv_heads"])
def test_a_norm_over_all_heads_by_its_formula(config, mesh, axis):
    layout = layout_of(config, mesh)
    heads = config.heads if axis == "heads" else config.kv_heads

    class Norm(blocks.FlatNorm):
        def __call__(self, x):
            return super().__call__(x, layout)

    x = normal(4, 3, heads, config.head_dim)
    params, result = apply(Norm(heads, config, axis), layout, x)
    wide = x.astype(np.float64)
    mean = (wide**2).mean(axis=(-2, -1), keepdims=True)
    expected = wide / np.sqrt(mean + config.norm_eps) * params["weight"]
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_a_norm_of_each_head_by_its_formula():
    class Norm(blocks.HeadNorm):
        def __call__(self, x):
            return super().__call__(x, layout_of(ODD, "1"))

    x = normal(4, 3, 3, ODD.head_dim)
    params, result = apply(Norm(ODD, offset=1.0), layout_of(ODD, "1"), x)
    wide = x.astype(np.float64)
    mean = (wide**2).mean(axis=-1, keepdims=True)
    expected = wide / np.sqrt(mean + ODD.norm_eps) * (1 + params["weight"])
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("silu", lambda x: x / (1 + math.exp(-x))),
        ("gelu", lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2),
        (
            "gelu_tanh",
            lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
        ),
    ],
)
def test_nonlinearities_by_their_formulas(kind, formula):
    x = np.linspace(-4, 4, 33, dtype=np.float32)
    expected = [formula(float(value)) for value in x]
    np.testing.assert_allclose(blocks.activate(jnp.asarray(x), kind), expected, atol=2e-6)


def test_sinks_are_seen_from_the_horizon_at_most():
    rows = Rows(*(np.array(x, np.int32) for x in ([0, 1], [2, 8], [3, 3], [9, 4])))
    angles = blocks.angles_of(rows, 3, 8, Rope(100.0))
    for found, positions in [
        (angles.own, [[2, 3, 4], [8, 9, 10]]),
        (angles.sinks, [[2, 3, 4], [4, 4, 4]]),
    ]:
        expected = rope.rope_angles(np.array(positions, np.int32), 8, Rope(100.0))
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    plain = Rows(rows.slot, rows.start, rows.length)
    assert blocks.angles_of(plain, 3, 8, Rope(100.0)).sinks is None


def test_letters_to_axes():
    assert blocks.activation_axes("BTNH") == ("batch", None, "heads", None)
    assert blocks.activation_axes("BTKH") == ("batch", None, "kv_heads", None)
    assert blocks.activation_axes("BTD") == ("batch", None, "residual")
