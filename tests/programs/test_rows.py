"""Rows padded within their data shard, and back."""

import jax.numpy as jnp
import numpy as np
import pytest

from tpuinfer.ops.sampling import SamplingRows
from tpuinfer.ops.steering import penalised
from tpuinfer.programs.rows import asking, pad_rows, unpad_rows


def test_padding_by_hand():
    assert pad_rows(jnp.array([1, 2]), 2, 2).tolist() == [1, 0, 2, 0]
    assert pad_rows(jnp.array([1, 2, 3, 4]), 2, 3).tolist() == [1, 2, 0, 3, 4, 0]
    assert pad_rows(jnp.array([[1, 2]]), 1, 2).tolist() == [[1, 2], [0, 0]]
    assert pad_rows(jnp.array([True, True]), 2, 2).tolist() == [True, False, True, False]


@pytest.mark.parametrize("shape", [(8,), (8, 3), (8, 2, 2)])
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
@pytest.mark.parametrize("rows", [1, 4, 9])
def test_unpadding_undoes_it(shape, shards, rows):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    padded = pad_rows(jnp.asarray(x), shards, rows)
    own = shape[0] // shards
    assert padded.shape == (shards * max(own, rows), *shape[1:])
    np.testing.assert_array_equal(unpad_rows(padded, shards, own), x)


def test_enough_rows_are_left_as_they_are():
    x = jnp.arange(8)
    assert pad_rows(x, 2, 4) is x
    assert unpad_rows(x, 2, 4) is x


def test_rows_that_are_not_live_ask_for_nothing():
    given = SamplingRows(
        *(jnp.full(2, value) for value in (0.5, 0.9, 0.1, 3, 7, 1)),
        logprobs=jnp.array([0, 20]),
        **{name: jnp.full(2, 0.3) for name in ("repetition", "presence", "frequency")},
        biased=jnp.array([True, True]),
        constrained=jnp.array([True, True]),
    )
    found = asking(given, jnp.array([False, True]))
    assert penalised(found).tolist() == found.biased.tolist() == [False, True]
    assert found.constrained.tolist() == [False, True]
    assert found.temperature.tolist() == [0, 0.5]
    assert found.logprobs.tolist() == [-1, 20]
    assert found.seed.tolist() == [7, 7]
