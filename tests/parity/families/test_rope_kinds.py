"""Cosines and sines of every kind of rotary embedding are those of transformers' frequencies.

Expected values come from transformers' float32 frequencies by float64 products, so that far
positions show what differs and not how a product rounds.
"""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from rope_cases import GOLDEN, LENGTHS, ROPES, config_of, older, reference

from tpuinfer.models.registry import read_config
from tpuinfer.ops.rope import rope_angles

HEAD_DIM = 16


@functools.cache
def golden():
    return json.loads(GOLDEN.read_text("utf-8"))


def positions_of(name, length):
    """Where a text is looked at: of "dynamic", only the last token turns by the text's length."""
    if name == "dynamic":
        return np.array([length - 1])
    return np.array([0, 1, 17, length // 3, length - 1])


@functools.cache
def ours(name, length):
    """Cosines and sines [positions, dims / 2] of an engine that has this much context."""
    rope = read_config(config_of(name)).settled(length).rope
    positions = jnp.asarray(positions_of(name, length), jnp.int32)[None]
    return [np.asarray(one)[0, :, 0] for one in rope_angles(positions, HEAD_DIM, rope)]


def assert_same(name, length, want):
    frequencies = np.array(want["frequencies"][str(length)])
    positions = positions_of(name, length)[:, None]
    angles = positions * frequencies
    rounding = 1e-6 + 4e-7 * angles + 2e-10 * positions
    for found, expected in zip(ours(name, length), (np.cos(angles), np.sin(angles)), strict=True):
        assert found.shape == expected.shape
        error = np.abs(found / want["factor"] - expected)
        np.testing.assert_array_less(error, rounding, str((name, length)))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ROPES)
def test_angles_are_those_of_transformers(name, length):
    assert_same(name, length, golden()[name])


@pytest.mark.parametrize("name", ROPES)
def test_older_configs_mean_the_same(name):
    config = config_of(name)
    assert read_config(older(config)) == read_config(config)


def test_the_length_matters_where_it_should():
    """Else the comparison would not see which divisors, or which base, were taken."""
    short, _, long = (str(length) for length in LENGTHS)
    depends = {
        name: one["frequencies"][short] != one["frequencies"][long]
        for name, one in golden().items()
    }
    assert {name for name, differs in depends.items() if differs} == {
        name for name in ROPES if name.startswith(("dynamic", "longrope"))
    }


@pytest.mark.parity
@pytest.mark.parametrize("name", ROPES)
def test_the_golden_is_what_transformers_computes(name):
    pytest.importorskip("transformers", reason="needs the parity extra (transformers)")
    live, kept = reference(name), golden()[name]
    assert live["factor"] == pytest.approx(kept["factor"], rel=1e-9)
    for length, frequencies in live["frequencies"].items():
        np.testing.assert_allclose(frequencies, kept["frequencies"][length], rtol=3e-7)
    for length in LENGTHS:
        assert_same(name, length, live)
