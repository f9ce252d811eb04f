import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tpuinfer.sharding import reduce as reduce_module
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.reduce import reduce_model

ROWS, D = 6, 64


@pytest.fixture(scope="module")
def mesh():
    return build_mesh(parse_mesh("8"))


def program(mesh, mode):
    """[8, B, D] partial sums, one per device -> what each device then holds, [8, B, D]."""

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=P("model"), out_specs=P("model"), check_vma=False)
    def reduced(parts):
        return reduce_model(parts[0], "model", mode)[None]

    return reduced


def draw(*shape):
    """Float32 of very different sizes, so that the order of a sum shows in its bits."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 4, shape)
    return values.astype(np.float32)


def in_device_order(parts):
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def test_the_values_tell_orders_apart():
    parts = draw(8, ROWS, D)
    assert (in_device_order(parts) != in_device_order(parts[::-1])).any()


@pytest.mark.parametrize("columns", [64, 36])
def test_pieces_are_filled_up_to_whole_units(mesh, columns):
    """What the TPU needs, on devices that do not: the same sums, and nothing of the filling."""

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=P("model"), out_specs=P("model"), check_vma=False)
    def filled(parts):
        return reduce_module._whole(parts[0], "model", unit=16)[None]

    parts = draw(8, ROWS, columns)
    held = np.asarray(filled(parts))
    assert held.shape == parts.shape
    scale = np.abs(parts).max(0)
    assert (np.abs(held - parts.astype(np.float64).sum(0)) <= 1e-6 * scale).all()
    assert re.search(rf"f32\[{ROWS},16\] = reduce_scatter", str(jax.make_jaxpr(filled)(parts)))


@pytest.mark.parametrize("near", [1, 2, 4])
def test_a_sum_in_two_stages_puts_its_pieces_where_one_does(mesh, near):
    @jax.jit
    @partial(
        jax.shard_map, mesh=mesh, in_specs=P("model"), out_specs=P(None, "model"), check_vma=False
    )
    def pieces(parts):
        return reduce_module.scatter(parts[0], "model", near)

    parts = draw(8, ROWS, D)
    found = np.asarray(pieces(parts))
    assert (np.abs(found - parts.astype(np.float64).sum(0)) <= 1e-6 * np.abs(parts).max(0)).all()
    stages = str(jax.make_jaxpr(pieces)(parts)).count("reduce_scatter[")
    assert stages == (1 if near == 1 else 2)


def test_stages_over_several_axes_are_the_axes():
    both = build_mesh(parse_mesh("2x4"))

    @jax.jit
    @partial(
        jax.shard_map,
        mesh=both,
        in_specs=P(("data", "model")),
        out_specs=P(None, ("data", "model")),
        check_vma=False,
    )
    def pieces(parts):
        return reduce_module.scatter(parts[0], ("data", "model"), 4)

    parts = draw(8, ROWS, D)
    found = np.asarray(pieces(parts))
    assert (np.abs(found - parts.astype(np.float64).sum(0)) <= 1e-6 * np.abs(parts).max(0)).all()


@pytest.mark.parametrize("mode", ["scatter", "exact"])
def test_both_forms_are_the_sum_on_every_device(mesh, mode):
    parts = draw(8, ROWS, D)
    held = np.asarray(program(mesh, mode)(parts))
    wanted = parts.astype(np.float64).sum(0)
    scale = np.abs(parts).max(0)
    for one in held:
        assert (np.abs(one - wanted) <= 1e-6 * scale).all()
        np.testing.assert_array_equal(one, held[0])


@pytest.mark.parametrize(("mode", "width"), [("exact", D), ("exact", 5), ("scatter", 5)])
def test_exact_sums_in_device_order(mesh, mode, width):
    """Scatter does too where D = 5 does not divide by 8 devices."""
    parts = draw(8, ROWS, width)
    held = np.asarray(program(mesh, mode)(parts))
    np.testing.assert_array_equal(held[3], in_device_order(parts))


@pytest.mark.parametrize("mode", ["scatter", "exact"])
def test_equal_rows_have_equal_bits(mesh, mode):
    row = draw(8, 1, D)
    held = np.asarray(program(mesh, mode)(np.repeat(row, ROWS, axis=1)))
    np.testing.assert_array_equal(held, np.broadcast_to(held[:, :1], held.shape))
    alone = np.asarray(program(mesh, mode)(row))
    np.testing.assert_array_equal(held[:, :1], alone)


@pytest.mark.parametrize(
    ("mode", "width", "collectives"),
    [
        ("scatter", D, {"reduce_scatter", "all_gather"}),
        ("scatter", 5, {"all_gather"}),
        ("exact", D, {"all_gather"}),
    ],
)
def test_no_form_is_an_all_reduce(mesh, mode, width, collectives):
    """One that cuts its buffer by position would treat rows unlike; one process cannot show it."""
    text = program(mesh, mode).lower(draw(8, ROWS, width)).as_text()
    known = {"all_reduce", "reduce_scatter", "all_gather", "all_to_all", "collective_permute"}
    assert {name for name in known if f"stablehlo.{name}" in text} == collectives


def test_the_dtype_and_leading_axes_stay(mesh):
    parts = jnp.ones((8, 2, 3, 16), jnp.bfloat16)
    for mode in ("scatter", "exact"):
        held = program(mesh, mode)(parts)
        assert (held.dtype, held.shape) == (jnp.bfloat16, (8, 2, 3, 16))
        assert (held == 8).all()


def test_one_axis_of_two_is_summed():
    parts = draw(2, 4, ROWS, D)

    @partial(
        jax.shard_map,
        mesh=build_mesh(parse_mesh("2x4")),
        in_specs=P("data", "model"),
        out_specs=P("data", "model"),
        check_vma=False,
    )
    def reduced(parts):
        return reduce_model(parts[0, 0], "model", "exact")[None, None]

    held = np.asarray(jax.jit(reduced)(parts))
    for data in range(2):
        np.testing.assert_array_equal(held[data, 1], in_device_order(parts[data]))
