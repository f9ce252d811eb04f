"""Sums over the model axis as the TPU compiler compiles them, with no TPU."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.planning import described
from tpuinfer.sharding.reduce import neighbours, reduce_model

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(not described.LIBTPU, reason=described.WHY),
]


@pytest.mark.parametrize(
    ("slice_", "data", "rows", "columns"),
    [
        ("v6e:2x4", 2, (256, 1), 2880),
        ("v6e:2x4", 2, (64, 1), 2880),
        ("v6e:2x4", 2, (1, 512), 2880),
        ("v6e:2x4", 2, (8, 256), 4096),
        ("v5e:2x4", 1, (64, 1), 4096),
        ("v5e:4x4", 1, (64, 1), 4096),
        ("v6e:4x4", 1, (1, 512), 4096),
        ("v5p:2x2x2", 1, (64, 1), 4096),
        ("v5p:2x4x4", 1, (64, 1), 8192),
    ],
)
def test_a_sum_stays_a_reduce_scatter_and_an_all_gather(slice_, data, rows, columns):
    """An all-reduce would cut it by position: a row's bits would depend on its slot."""
    mesh = described.described(slice_, data=data)
    place = PartitionSpec(None, None, "model")
    near = neighbours(mesh, ("model",))
    local = jax.shard_map(
        lambda x, w: reduce_model(jnp.einsum("BTF,DF->BTD", x, w), "model", near=near),
        mesh=mesh,
        in_specs=(place, PartitionSpec(None, "model")),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    shaped = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
    x = shaped((*rows, 4096), sharding=NamedSharding(mesh, place))
    w = shaped((columns, 4096), sharding=NamedSharding(mesh, PartitionSpec(None, "model")))
    text = jax.jit(local).lower(x, w).compile().as_text()
    assert text.count(" reduce-scatter(") == (1 if near == 1 else 2)
    assert (near == 1) == (slice_ in ("v5e:2x4", "v6e:2x4")), "in one stage where that does"
    assert "all-gather" in text
    assert "all-reduce(" not in text
