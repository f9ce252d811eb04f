"""Bounds against numbers worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tpuinfer.benchmark.bounds import Cost, Machine, model_cost
from tpuinfer.model_config import Experts, ModelConfig
from tpuinfer.sharding.mesh import build_mesh, parse_mesh

CONFIG = ModelConfig(
    family="llama", vocab=10, embed=4, mlp=8, layers=2, heads=2, kv_heads=1, head_dim=2, context=64
)

SHAPES = {
    "embed_tokens.weight": (10, 4),
    "layers.0.mlp.up_proj.weight": (8, 4),
    "layers.1.self_attn.q_proj.weight": (2, 2, 4),
    "norm.weight": (4,),
    "lm_head.weight": (10, 4),
}

RING_BYTES = 2 * 1 * 2 * 4


def params(spec=None, mesh="1", shapes=SHAPES):
    devices = build_mesh(parse_mesh(mesh))
    return {
        name: jax.ShapeDtypeStruct(
            shape,
            jnp.bfloat16,
            sharding=NamedSharding(devices, PartitionSpec(*(spec or {}).get(name, ()))),
        )
        for name, shape in shapes.items()
    }


def test_a_machine_needs_the_longer_of_two_times():
    machine = Machine(bandwidth=100, matmul=1000)
    memory, matmul = Cost(bytes=200, flops=1000), Cost(bytes=200, flops=5000)
    assert (memory.seconds(machine), memory.bound_by(machine)) == (2, "memory")
    assert (matmul.seconds(machine), matmul.bound_by(machine)) == (5, "matmul")
    assert memory + matmul * 2 == Cost(600, 11000)


def test_weights_are_counted_once_and_the_embedding_not_at_all():
    cost = model_cost(CONFIG, params(), RING_BYTES)
    assert (cost.body, cost.head) == (8 * 4 + 2 * 2 * 4, 10 * 4)
    assert cost.weight_bytes == 2 * (32 + 16 + 4 + 40)


def test_a_tied_embedding_is_the_head():
    tied = CONFIG.__class__(**{**CONFIG.__dict__, "tie_embeddings": True})
    shapes = {name: shape for name, shape in SHAPES.items() if name != "lm_head.weight"}
    cost = model_cost(tied, params(shapes=shapes), RING_BYTES)
    assert (cost.body, cost.head) == (48, 40)
    assert cost.weight_bytes == 2 * (32 + 16 + 4 + 40)


def test_copies_on_a_mesh_are_read_by_each_device():
    spec = {"lm_head.weight": ("model",)}
    cost = model_cost(CONFIG, params(spec, "4x2"), RING_BYTES)
    # Eight devices: the head in halves on four, the others whole on all.
    assert cost.weight_bytes == 2 * (40 * 4 + (32 + 16 + 4) * 8)


def test_of_experts_only_the_active_ones_count():
    """Eight experts, two active: a quarter of their FLOPs and, at the least, of their bytes."""
    mixed = dataclasses.replace(CONFIG, experts=Experts(count=8, active=2, mlp=8))
    shapes = {
        **SHAPES,
        "layers.0.mlp.experts.up_proj.weight": (8, 8, 4),
        "layers.0.mlp.experts.up_proj.bias": (8, 8),
    }
    cost = model_cost(mixed, params(shapes=shapes), RING_BYTES)
    assert cost.body == 48 + 8 * 4 * 2
    assert cost.expert_bytes == 2 * (8 * 8 * 4 + 8 * 8)
    assert cost.read_bytes == 2 * (32 + 16 + 4 + 40) + cost.expert_bytes / 4


def test_decode_by_hand():
    cost = model_cost(CONFIG, params(), RING_BYTES)
    step = cost.decode(rows=3, position=5)
    keys = 2 * 5  # in two layers
    assert step.bytes == 184 + 3 * keys * RING_BYTES
    assert step.flops == 3 * (2 * (48 + 40) + keys * 4 * 2 * 2)


def test_prefill_by_hand():
    cost = model_cost(CONFIG, params(), RING_BYTES)
    chunk = cost.prefill(3)
    seen = 2 * (1 + 2 + 3)
    assert chunk.flops == 2 * (3 * 48 + 40) + seen * 4 * 2 * 2
    assert chunk.bytes == 184 + 3 * 2 * RING_BYTES


def test_a_window_limits_what_is_read():
    sliding = CONFIG.__class__(**{**CONFIG.__dict__, "windows": (4, 0)})
    cost = model_cost(sliding, params(), RING_BYTES)
    assert cost.decode(1, 10).bytes == 184 + (4 + 10) * RING_BYTES
    assert cost.decode(1, 3).bytes == 184 + (3 + 3) * RING_BYTES


def test_the_cost_follows_the_dtype():
    wide = {
        name: jax.ShapeDtypeStruct(one.shape, jnp.float32, sharding=one.sharding)
        for name, one in params().items()
    }
    assert model_cost(CONFIG, wide, RING_BYTES).weight_bytes == 2 * 184


def test_real_arrays_will_do():
    arrays = {name: jnp.zeros(shape, jnp.bfloat16) for name, shape in SHAPES.items()}
    assert model_cost(CONFIG, arrays, RING_BYTES).weight_bytes == pytest.approx(184)
    assert np.isfinite(model_cost(CONFIG, arrays, RING_BYTES).decode(1, 1).flops)
