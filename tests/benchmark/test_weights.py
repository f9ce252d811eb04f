"""Weights that are made where they lie."""

import dataclasses

import jax
import numpy as np
import pytest

from tpuinfer.benchmark.weights import random_params
from tpuinfer.checkpoint.repeat import once
from tpuinfer.engine.plan import abstract_weights, plan_of, repeated
from tpuinfer.models import registry
from tpuinfer.models.blueprint import abstract_params
from tpuinfer.sharding.layout import resolve
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.rules import ShardingRules
from tpuinfer.testing.tiny import TINY

MESHES = ("1", "2x4")


def planned(mesh, dtype="bfloat16"):
    layout = resolve(
        ShardingRules(), build_mesh(parse_mesh(mesh)), registry.axis_sizes(TINY, slots=4)
    )
    return abstract_params(registry.build(TINY), layout, dtype)


@pytest.fixture(scope="module")
def made():
    """The same seed on both meshes."""
    return {mesh: random_params(planned(mesh), 7) for mesh in MESHES}


@pytest.mark.parametrize("mesh", MESHES)
def test_shapes_dtypes_and_shardings_are_as_planned(made, mesh):
    wanted = planned(mesh)
    assert made[mesh].keys() == wanted.keys()
    for name, one in wanted.items():
        got = made[mesh][name]
        assert (got.shape, got.dtype) == (one.shape, one.dtype)
        assert got.sharding.is_equivalent_to(one.sharding, len(one.shape)), name


def test_some_weights_are_cut_at_all():
    assert any(not one.sharding.is_fully_replicated for one in planned("2x4").values())


def test_a_mesh_changes_no_value(made):
    for name in planned("1"):
        one, many = (np.asarray(made[mesh][name]) for mesh in MESHES)
        np.testing.assert_array_equal(one, many)


def test_the_seed_decides_and_no_two_layers_are_alike(made):
    first, again, other = made["1"], random_params(planned("1"), 7), random_params(planned("1"), 8)
    up = "layers.{}.mlp.up_proj.weight".format
    assert np.array_equal(first[up(0)], again[up(0)])
    assert not np.array_equal(first[up(0)], other[up(0)])
    assert not np.array_equal(first[up(0)], first[up(1)])


def test_matrices_are_small_and_norms_are_one(made):
    assert (np.asarray(made["1"]["norm.weight"]) == 1).all()
    up = np.asarray(made["1"]["layers.0.mlp.up_proj.weight"], np.float32)
    assert up.std() == pytest.approx(TINY.embed**-0.5, rel=0.1)
    assert abs(up.mean()) < 0.1 * up.std()


def test_alike_parameters_share_a_program(caplog):
    wanted = planned("1", "float32")  # which no other test makes
    with jax.log_compiles(), caplog.at_level("WARNING"):
        random_params(wanted, 0)
    programs = [line for line in caplog.messages if line.startswith("Compiling jit(make)")]
    assert 1 < len(programs) == len({one.shape for one in wanted.values()})


def test_heads_that_are_repeated_are_those_of_one_device():
    config = dataclasses.replace(TINY, heads=8, kv_heads=2)
    plans = [plan_of(config, mesh=mesh, dtype="float32", weights="int8") for mesh in ("1", "4")]
    one, four = (random_params(abstract_weights(plan), 3, repeated(plan)) for plan in plans)
    for name, value in one.items():
        copies = 2 if "k_proj" in name or "v_proj" in name else 1
        for small, large in zip(*map(jax.tree.leaves, (value, four[name])), strict=True):
            np.testing.assert_array_equal(np.repeat(np.asarray(small), copies, axis=0), large)
    for name, value in once(four, repeated(plans[1])).items():
        jax.tree.map(np.testing.assert_array_equal, value, one[name])
