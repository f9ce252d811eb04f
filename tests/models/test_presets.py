"""Every table of rules gives the logits of one device, for every family."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpuinfer.cache.held import Rows
from tpuinfer.cache.ring import RingAttention
from tpuinfer.config import EngineConfig
from tpuinfer.engine.plan import abstract_device, plan_of
from tpuinfer.models import registry
from tpuinfer.models.blueprint import abstract_params, bind, weights
from tpuinfer.platform import platform_settings
from tpuinfer.programs.state import zeros
from tpuinfer.sharding.presets import PRESETS, from_data

SLOTS, WIDTH, CONTEXT = 8, 12, 32

PLAIN = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "pad_token_id": 0,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
}
TWO_KINDS = {"num_hidden_layers": 2}
WINDOWED = {
    **TWO_KINDS,
    "sliding_window": 8,
    "query_pre_attn_scalar": 8,
    "hidden_activation": "gelu_pytorch_tanh",
}
FAMILIES = {
    "gemma2": WINDOWED | {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
    "gemma3": WINDOWED | {"model_type": "gemma3_text", "sliding_window_pattern": 2},
    "gpt_oss": TWO_KINDS | {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 8},
    "granite": {
        "attention_multiplier": 0.1,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 4.0,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 8},
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None},
    "olmo2": {},
    "phi3": {"original_max_position_embeddings": 64},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"attention_bias": False},
    "qwen3_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "norm_topk_prob": True,
    },
    "smollm3": TWO_KINDS | {"no_rope_layers": [1, 0]},
}
MESHES = dict.fromkeys(PRESETS, "2x4") | {"expert": "data=2,expert=2,model=2"}


def config_of(family):
    found = registry.read_config({"model_type": family, **PLAIN, **FAMILIES[family]})
    assert found.family == family
    return found


@functools.cache
def random_weights(family):
    """Numbers by the blueprint's shapes, scaled so that all layers matter."""
    random = np.random.default_rng(5)

    def draw(shape):
        normal = random.standard_normal(shape).astype(np.float32)
        return 1 + 0.1 * normal if len(shape) == 1 else normal * np.float32(2 / shape[-1] ** 0.5)

    blueprint = registry.build(config_of(family))
    return {name: draw(w.shape) for name, w in weights(blueprint).items()}


def plan_for(family, mesh, rules):
    settings = dataclasses.replace(platform_settings("cpu", 8), block=8, chunk=16)
    return plan_of(
        config_of(family),
        mesh=mesh,
        rules=rules,
        dtype="float32",
        engine=EngineConfig.parse(f"{SLOTS}x{CONTEXT}"),
        settings=settings,
    )


def logits(family, mesh, rules):
    """[SLOTS, WIDTH + 1, V]: of a chunk, and of a step that decodes one token more.

    An all-reduce would cut sums by position, and then a row's bits depend on its slot.
    """
    plan = plan_for(family, mesh, rules)
    layout, blueprint = plan.layout, registry.build(plan.config)
    own = SLOTS // layout.shards("batch")
    params = {
        name: jax.device_put(random_weights(family)[name], one.sharding)
        for name, one in abstract_params(blueprint, layout, "float32").items()
    }
    tokens = np.random.default_rng(1).integers(3, 96, (SLOTS, WIDTH + 1)).astype(np.int32)
    slot = jnp.arange(SLOTS, dtype=jnp.int32) % own

    def run(params, rings, tokens):
        model, each = bind(blueprint, params), []
        for mode, part, start in (
            ("prefill", tokens[:, :-1], 0),
            ("decode", tokens[:, -1:], WIDTH),
        ):
            by = layout.prefill if mode == "prefill" else layout
            full = jnp.full(SLOTS, part.shape[1], jnp.int32)
            rows = Rows(slot, jnp.full(SLOTS, start, jnp.int32), full)
            attend = RingAttention(by, plan.settings.block, mode)
            x, rings = model.hidden(part, rings, rows, attend, by, jnp.dtype("float32"))
            flat = x.reshape(SLOTS * part.shape[1], -1)
            each.append(model.logits(flat, by).reshape(*part.shape, -1))
        return jnp.concatenate(each, axis=1)

    rings = zeros(abstract_device(plan)[0].rings)
    program = jax.jit(run).lower(params, rings, tokens).compile()
    assert " all-reduce(" not in program.as_text()
    return np.asarray(program(params, rings, tokens)), layout


@functools.cache
def on_one_device(family):
    return logits(family, "1", None)[0]


def test_every_decoder_family_is_here():
    assert FAMILIES.keys() == registry.families().keys() - {"bert"}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_preset_gives_the_logits_of_one_device(family, preset):
    found, _ = logits(family, MESHES[preset], PRESETS[preset])
    np.testing.assert_allclose(found, on_one_device(family), rtol=1e-5, atol=5e-5)


THREE = "data=2,expert=2,model=2"
TABLES = {
    "sums that stay cut, of rows that came together": (
        "2x4",
        {"preset": "2d", "axes": {"residual": "model"}},
    ),
    "weights gathered while prefilling only": (
        "2x4",
        {"preset": "2d", "prefill": {"gather": ["embed", "expert_mlp"]}},
    ),
    "other places while prefilling": (
        "2x4",
        {"prefill": {"axes": {"mlp": "", "expert": "", "vocab": "", "residual": "model"}}},
    ),
    "MLPs over rows' axes": ("2x4", {"axes": {"mlp": ["data", "model"]}}),
    "rows over two axes, of which one cuts experts": (
        THREE,
        {"preset": "expert", "axes": {"mlp": ["expert", "model"], "expert_mlp": ["data", "model"]}},
    ),
    "rows on data only, and everything else cut twice": (
        THREE,
        {"axes": {name: ["expert", "model"] for name in ("heads", "kv_heads", "mlp", "vocab")}},
    ),
    "an embedding cut along embed alone": ("2x4", {"axes": {"vocab": "", "embed": "data"}}),
    "sums in order, of rows that came together": ("2x4", {"preset": "2d", "reduce": "exact"}),
    "everything gathered": (
        "2x4",
        {
            "preset": "fsdp",
            "gather": ["embed", "expert_embed", "mlp", "vocab", "expert", "expert_mlp"],
        },
    ),
}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_gives_the_logits_of_one_device(table):
    family = "gpt_oss"  # experts, biases, sinks and windows
    mesh, data = TABLES[table]
    found, layout = logits(family, mesh, from_data(data))
    assert layout.mesh.size == 8
    np.testing.assert_allclose(found, on_one_device(family), rtol=1e-5, atol=5e-5)
