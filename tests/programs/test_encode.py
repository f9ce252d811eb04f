"""The encode program: what it is fixed to, and that rows have nothing to do with each other."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from tiny_encoder import EVEN, ODD, random_weights

from tpuinfer.model_config import Pooling
from tpuinfer.models import registry
from tpuinfer.models.blueprint import abstract_params
from tpuinfer.platform import platform_settings
from tpuinfer.programs.compile import compile_programs
from tpuinfer.programs.encode import encode_specs
from tpuinfer.sharding.layout import resolve
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.rules import ShardingRules

WIDE = dataclasses.replace(EVEN, embed=384, heads=12, layers=1)
"""As wide as MiniLM: a plain sum over its tokens gives rows bits of their own (many threads)."""

ROWS, WIDTH = 4, 32


@functools.cache
def program(config, mesh="1", pooling="mean", normalised=True):
    """(tokens, length) -> vectors, compiled as an engine does; and its line in the manifest."""
    layout = resolve(
        ShardingRules(), build_mesh(parse_mesh(mesh)), registry.axis_sizes(config, slots=2)
    )
    blueprint = registry.build(config)
    specs = encode_specs(
        blueprint,
        layout,
        Pooling(pooling, normalised),
        sizes=[(ROWS // layout.shards("batch"), WIDTH)],
        dtype="float32",
        settings=platform_settings("cpu"),
    )
    host = random_weights(config)
    shapes = abstract_params(blueprint, layout, "float32")
    params = {name: jax.device_put(host[name], one.sharding) for name, one in shapes.items()}
    (made,) = compile_programs(specs).values()
    return lambda *given: np.asarray(made.call(params, *given)), made.entry


def batch(config, seed):
    random = np.random.default_rng(seed)
    tokens = random.integers(0, config.vocab, (ROWS, WIDTH)).astype(np.int32)
    return tokens, random.integers(1, WIDTH + 1, ROWS).astype(np.int32)


@pytest.mark.parametrize(("pooling", "mesh"), [("cls", "1"), ("mean", "1"), ("mean", "2x4")])
def test_a_rows_bits_depend_on_neither_place_nor_neighbours(pooling, mesh):
    run, _ = program(WIDE, mesh, pooling)
    tokens, length = batch(WIDE, 0)
    wanted = run(tokens, length)
    for seed in range(1, 4):
        others, lengths = batch(WIDE, seed)
        order = np.random.default_rng(seed).permutation(ROWS)
        mixed = np.where(np.arange(ROWS)[:, None] < 2, tokens, others)
        found = run(mixed[order], np.where(np.arange(ROWS) < 2, length, lengths)[order])
        np.testing.assert_array_equal(found[np.argsort(order)[:2]], wanted[:2])
    np.testing.assert_array_equal(run(tokens[::-1], length[::-1])[::-1], wanted)


def test_padding_and_idle_rows_change_nothing():
    run, _ = program(ODD)
    tokens, length = batch(ODD, 0)
    length[3] = 0
    wanted = run(tokens, length)[:3]
    assert np.isfinite(wanted).all()
    real = np.arange(WIDTH)[None] < length[:, None]
    np.testing.assert_array_equal(run(np.where(real, tokens, 0), length)[:3], wanted)


def test_normalisation_is_the_checkpoints_choice():
    tokens, length = batch(ODD, 0)
    plain, scaled = (program(ODD, normalised=one)[0](tokens, length) for one in (False, True))
    sizes = np.linalg.norm(plain, axis=1, keepdims=True)
    assert np.abs(sizes - 1).min() > 0.1
    np.testing.assert_allclose(plain / sizes, scaled, rtol=1e-5, atol=1e-7)


def test_the_manifest_says_what_it_is():
    _, entry = program(ODD)
    assert entry.name == "encode_4x32"
    assert entry.shapes == "tokens i32[4,32], length i32[4]"
    assert entry.alias_bytes == 0
    assert entry.output_bytes >= ROWS * ODD.embed * 4
