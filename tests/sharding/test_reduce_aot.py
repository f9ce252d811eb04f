"""Sums over the model axis as the TPU compiler compiles them, with no TPU."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.planning import described
from tpuinfer.sharding.reduce import reduce_model

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(not described.LIBTPU, reason=described.WHY),
]


@pytest.mark.parametrize(
    ("rows", "columns"), [((256, 1), 2880), ((64, 1), 2880), ((1, 512), 2880), ((8, 256), 4096)]
)
def test_a_sum_stays_a_reduce_scatter_and_an_all_gather(rows, columns):
    """An all-reduce would cut it by position: a row's bits would depend on its slot."""
    mesh = described.described("v6e:2x4", data=2)
    place = PartitionSpec(None, None, "model")
    local = jax.shard_map(
        lambda x, w: reduce_model(jnp.einsum("BTF,DF->BTD", x, w), "model"),
        mesh=mesh,
        in_specs=(place, PartitionSpec(None, "model")),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    shaped = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
    x = shaped((*rows, 4096), sharding=NamedSharding(mesh, place))
    w = shaped((columns, 4096), sharding=NamedSharding(mesh, PartitionSpec(None, "model")))
    text = jax.jit(local).lower(x, w).compile().as_text()
    assert "reduce-scatter(" in text
    assert "all-gather" in text
    assert "all-reduce(" not in text
