"""What travels for one map, wherever its rows and its weight lie; and rows are treated alike."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpuinfer.models import blocks, placed
from tpuinfer.models.blueprint import bind
from tpuinfer.ops import linear
from tpuinfer.sharding.layout import resolve
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.presets import PRESETS
from tpuinfer.sharding.rules import ShardingRules

SIZES = {"batch": 8, "embed": 32, "residual": 32, "mlp": 64, "heads": 8, "kv_heads": 8}
ROWS = ("batch", None, "residual")
KINDS = r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("

MAPS = {
    "gate": ("BTD,FD->BTF", (64, 32), ("mlp", "embed"), ("batch", None, "mlp")),
    "down": ("BTF,DF->BTD", (32, 64), ("embed", "mlp"), ROWS),
    "query": ("BTD,NHD->BTNH", (8, 4, 32), ("heads", "head_dim", "embed"), None),
}
ONE_SUM, PART = {"reduce-scatter": 1, "all-gather": 1}, {"reduce-scatter": 1}
COME_AND_GO = {"reduce-scatter": 1, "all-to-all": 2}
D2 = {"embed": "data", "mlp": "model", "heads": "model", "kv_heads": "model", "batch": "data"}

CASES = {
    "whole": ("gate", "2x4", {"batch": "data"}, (), {}),
    "cut along what is made": ("gate", "2x4", {"batch": "data", "mlp": "model"}, (), {}),
    "summed": ("down", "2x4", {"batch": "data", "mlp": "model"}, (), ONE_SUM),
    "summed, and left in pieces": (
        "down",
        "2x4",
        {"batch": "data", "mlp": "model", "residual": "model"},
        (),
        PART,
    ),
    "gathered": ("gate", "2x4", D2, ("embed",), {"all-gather": 1}),
    "rows come together, and go home": ("gate", "2x4", D2, (), COME_AND_GO),
    "the same with heads": ("query", "2x4", D2, (), COME_AND_GO),
    # The rows are gathered; the sum over model is too, and sends rows home over data.
    "rows go home from what is made": (
        "down",
        "2x4",
        D2,
        (),
        {"all-gather": 2, "reduce-scatter": 1, "all-to-all": 1},
    ),
    "rows stay together": (
        "gate",
        "2x4",
        {"batch": "data", "mlp": ("data", "model")},
        (),
        {"all-gather": 1},
    ),
    "and go home from a sum over both": (
        "down",
        "2x4",
        {"batch": "data", "mlp": ("data", "model")},
        (),
        {"reduce-scatter": 1, "all-to-all": 1, "all-gather": 1},
    ),
    "rows go home over two axes, made in another order than rows have them": (
        "down",
        "data=2,expert=2,model=2",
        {"batch": ("data", "expert"), "embed": ("expert", "data"), "mlp": "model"},
        (),
        {"all-gather": 2, "reduce-scatter": 1, "all-to-all": 2},
    ),
    "the same without a sum": (
        "down",
        "data=2,expert=2,model=2",
        {"batch": ("data", "expert"), "embed": ("expert", "data")},
        (),
        {"all-gather": 1, "all-to-all": 2},
    ),
    "rows on two axes, of which one is summed over": (
        "down",
        "data=2,expert=2,model=2",
        {"batch": ("data", "expert"), "mlp": ("expert", "model"), "residual": "model"},
        (),
        {"reduce-scatter": 1, "all-to-all": 1},
    ),
}


def prepared(case, rows=None):
    """The program as traced, what goes into it, what should come out, and how that should lie."""
    name, mesh, axes, gather, _ = CASES[case]
    equation, shape, weight_axes, into = MAPS[name]
    into = into or ("batch", None, "heads", "head_dim")
    layout = resolve(ShardingRules(axes=axes, gather=gather), build_mesh(parse_mesh(mesh)), SIZES)
    random = np.random.default_rng(2)
    contracted, _ = linear.split_equation(equation)
    inner = {"down": ("mlp",), "gate": ("residual",), "query": ("residual",)}[name]
    x = random.standard_normal((8, 3, *shape[-contracted:])).astype(np.float32)
    weight = random.standard_normal(shape).astype(np.float32)
    if rows is not None:
        x = x[rows]

    def run(x, weight):
        local = lambda x, w: linear.einsum(equation, x, w)  # noqa: E731
        return placed.apply(local, x, weight, weight_axes, contracted, layout, into)

    where = jax.sharding.NamedSharding(layout.mesh, layout.stored(weight_axes))
    given = (
        jax.device_put(x, layout.sharding(("batch", None, *inner))),
        jax.device_put(weight, where),
    )
    flat = x.reshape(24, -1) @ weight.reshape(-1, x.shape[-1]).T
    expected = flat.reshape(8, 3, *shape[:-contracted])
    return jax.jit(run).lower(*given), given, expected, layout.sharding(into)


def made(case, rows=None):
    """The result, the reference, and the kinds of collectives of the program."""
    lowered, given, expected, place = prepared(case, rows)
    program = lowered.compile()
    kinds = Counter(re.findall(KINDS, program.as_text()))
    found = program(*given)
    assert found.sharding.is_equivalent_to(place, found.ndim)
    return np.asarray(found), expected, kinds


@pytest.mark.parametrize("case", CASES)
def test_a_map_is_its_formula_and_moves_no_more_than_it_must(case):
    found, expected, kinds = made(case)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert kinds == CASES[case][-1]


OUT_OF_ORDER = {
    "rows that are no neighbours": {"batch": ("data", "expert"), "embed": "data"},
    "what is moved is made first": {"batch": "expert", "embed": ("expert", "data")},
}


@pytest.mark.parametrize("axes", OUT_OF_ORDER.values(), ids=OUT_OF_ORDER)
@pytest.mark.parametrize("name", ["gate", "down"])
def test_what_is_not_in_order_is_left_to_the_compiler(name, axes, monkeypatch):
    mesh = "data=2,expert=2,model=2"
    monkeypatch.setitem(CASES, "odd", (name, mesh, {**axes, "mlp": "model"}, (), {}))
    found, expected, _ = made("odd")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_table_that_is_looked_up_is_not_gathered():
    """Of [64, 32] a device has 16 rows of 16; gathered along embed they would be 16 of 32."""
    rules = PRESETS["fsdp"]
    layout = resolve(rules, build_mesh(parse_mesh("2x4")), {**SIZES, "vocab": 64})
    embedding = blocks.Embedding(64, 32)
    table = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    tokens = np.arange(24).reshape(8, 3).astype(np.int32)

    def look_up(table, tokens):
        return bind(embedding, {"weight": table})(tokens, layout, jnp.dtype("float32"))

    place = jax.sharding.NamedSharding(layout.mesh, layout.stored(("vocab", "embed")))
    given = jax.device_put(table, place), jax.device_put(tokens, layout.sharding(("batch", None)))
    program = jax.jit(look_up).lower(*given).compile()
    np.testing.assert_array_equal(np.asarray(program(*given)), table[tokens])
    gathered = re.findall(r"= (\S+?)\{\S* all-gather", program.as_text())
    assert gathered
    assert "f32[16,32]" not in gathered


def test_a_weight_that_is_gathered_waits_for_its_rows():
    """Else a compiler may bring those of many layers ahead, and they all lie there at once."""
    text = {case: prepared(case)[0].as_text() for case in ("gathered", "cut along what is made")}
    assert "optimization_barrier" in text["gathered"]
    assert "optimization_barrier" not in text["cut along what is made"]


@pytest.mark.parametrize(
    "case", ["rows come together, and go home", "and go home from a sum over both"]
)
def test_a_rows_bits_do_not_depend_on_where_it_sits(case):
    order = np.array([5, 0, 7, 2, 1, 6, 3, 4])
    found, _, _ = made(case)
    moved, _, _ = made(case, rows=order)
    assert moved.tobytes() == found[order].tobytes()
