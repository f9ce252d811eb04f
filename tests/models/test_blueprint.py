"""A blueprint's names, shapes and axes; binding arrays to it; the nnx convention beneath."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tpuinfer.models import blueprint, registry
from tpuinfer.models.blueprint import Weight, abstract_params, bind, weights
from tpuinfer.sharding.layout import resolve
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.rules import ShardingRules
from tpuinfer.testing.tiny import ODD, TINY


def test_llama_by_hand():
    one = registry.build(dataclasses.replace(ODD, layers=1, tie_embeddings=False))
    embed, heads = "embed", ("heads", "head_dim", "embed")
    kv = ("kv_heads", "head_dim", "embed")
    layer = {
        "input_layernorm.weight": Weight((36,), ("residual",)),
        "mlp.down_proj.weight": Weight((36, 60), (embed, "mlp"), 1),
        "mlp.gate_proj.weight": Weight((60, 36), ("mlp", embed), 1),
        "mlp.up_proj.weight": Weight((60, 36), ("mlp", embed), 1),
        "post_attention_layernorm.weight": Weight((36,), ("residual",)),
        "self_attn.k_proj.weight": Weight((1, 8, 36), kv, 1),
        "self_attn.o_proj.weight": Weight((36, 3, 8), (embed, "heads", "head_dim"), 2),
        "self_attn.q_proj.weight": Weight((3, 8, 36), heads, 1),
        "self_attn.v_proj.weight": Weight((1, 8, 36), kv, 1),
    }
    assert weights(one) == {
        "embed_tokens.weight": Weight((97, 36), ("vocab", embed), 1),
        **{f"layers.0.{name}": weight for name, weight in layer.items()},
        "lm_head.weight": Weight((97, 36), ("vocab", embed), 1),
        "norm.weight": Weight((36,), ("residual",)),
    }


def test_every_layer_has_the_same_weights_and_a_tied_head_has_none():
    assert ODD.tie_embeddings
    names = weights(registry.build(ODD))
    assert "lm_head.weight" not in names
    first, second = (
        {
            name.removeprefix(f"layers.{n}."): w
            for name, w in names.items()
            if f"layers.{n}." in name
        }
        for n in range(2)
    )
    assert first == second
    assert list(names) == sorted(names)


def test_shape_and_axes_must_agree():
    with pytest.raises(ValueError, match="differ in length"):
        blueprint.weight((2, 3), ("embed",))


def test_abstract_params_say_where_each_weight_lies():
    layout = resolve(
        ShardingRules(), build_mesh(parse_mesh("2x4")), registry.axis_sizes(TINY, slots=4)
    )
    made = abstract_params(registry.build(TINY), layout, "bfloat16")
    q = made["layers.1.self_attn.q_proj.weight"]
    assert (q.shape, q.dtype) == ((16, 8, 32), jnp.bfloat16)
    assert q.sharding.shard_shape(q.shape) == (4, 8, 32)
    norm = made["norm.weight"]
    assert norm.sharding.shard_shape(norm.shape) == (32,)


def test_bind_takes_the_arrays_by_name_and_leaves_the_blueprint_alone():
    model = registry.build(TINY)
    params = {name: np.full(w.shape, i) for i, (name, w) in enumerate(weights(model).items())}
    bound = bind(model, params)
    position = list(params).index("layers.1.mlp.up_proj.weight")
    assert (bound.layers[1].mlp.up_proj.weight.get_value() == position).all()
    assert bound.layers[1].mlp.up_proj.weight.axes == ("mlp", "embed")
    assert isinstance(model.layers[1].mlp.up_proj.weight.get_value(), jax.ShapeDtypeStruct)


def test_bind_refuses_a_missing_weight():
    model = registry.build(TINY)
    params = dict.fromkeys(weights(model), np.zeros(()))
    del params["layers.0.mlp.up_proj.weight"]
    with pytest.raises(KeyError, match=r"layers\.0\.mlp\.up_proj\.weight"):
        bind(model, params)


class Scale(nnx.Module):
    def __init__(self) -> None:
        self.weight = blueprint.weight((3,), ("embed",))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.weight.get_value()


class Stack(nnx.Module):
    def __init__(self, count: int) -> None:
        self.layers = nnx.List([Scale() for _ in range(count)])


def test_nnx_keeps_shape_structs_in_params():
    """The convention of the whole room: flax must neither refuse, fill nor convert them."""
    model = Stack(2)
    graph, state = nnx.split(model)
    leaves = jax.tree.leaves(state)
    assert leaves == [jax.ShapeDtypeStruct((3,), jnp.float32)] * 2
    merged = nnx.merge(graph, state)
    assert merged.layers[0].weight.axes == ("embed",)
    assert jax.eval_shape(lambda tree: tree, state) is not None


def test_a_bound_model_runs_under_jit():
    model = Stack(2)
    params = {f"layers.{n}.weight": jnp.full(3, n + 2.0) for n in range(2)}

    @jax.jit
    def run(params, x):
        for layer in bind(model, params).layers:
            x = layer(x)
        return x

    assert run(params, jnp.ones(3)).tolist() == [6, 6, 6]


def test_layers_of_equal_structure_are_traced_once():
    model = Stack(5)
    traces = []

    def apply(layer, x):
        traces.append(layer)
        return layer(x)

    @jax.jit
    def run(params, x):
        once = blueprint.traced_once(apply)
        for layer in bind(model, params).layers:
            x = once(layer, x)
        return x

    params = {f"layers.{n}.weight": jnp.full(3, n + 1.0) for n in range(5)}
    assert run(params, jnp.ones(3)).tolist() == [120, 120, 120]
    assert len(traces) == 1
