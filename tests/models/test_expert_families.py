"""Families with experts: what becomes of published configs, where tensors lie, what is refused."""

import pytest
from whole_names import check

from tpuinfer.errors import ConfigError
from tpuinfer.model_config import Experts, Rope
from tpuinfer.models import registry
from tpuinfer.models.blueprint import weights
from tpuinfer.models.names import Part

MIXTRAL = {
    "model_type": "mixtral",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "vocab_size": 32000,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""What mistralai/Mixtral-8x7B-Instruct-v0.1 publishes."""

QWEN = {
    "model_type": "qwen3_moe",
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
"""What Qwen/Qwen3-30B-A3B publishes."""

GPT_OSS = {
    "model_type": "gpt_oss",
    "attention_bias": True,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "vocab_size": 201088,
}
"""What openai/gpt-oss-20b publishes."""

_TINY = {
    "vocab_size": 31,
    "hidden_size": 20,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
}
SMALL = {
    "mixtral": {**MIXTRAL, **_TINY, "num_local_experts": 3},
    "qwen3_moe": {
        **QWEN,
        **_TINY,
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "mlp_only_layers": [1],
        "attention_bias": True,
    },
    "gpt_oss": {
        **GPT_OSS,
        **_TINY,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
EVERY = pytest.mark.parametrize("family", SMALL)


def test_mixtral_as_published():
    config = registry.read_config(MIXTRAL)
    assert config.experts == Experts(count=8, active=2, mlp=14336, normalise=True)
    assert (config.head_dim, config.rope, config.windows) == (128, Rope(1e6), ())


def test_a_window_of_mixtral_is_that_of_every_layer():
    config = registry.read_config({**SMALL["mixtral"], "sliding_window": 4096})
    assert config.windows == (4096, 4096)


def test_qwen_as_published():
    config = registry.read_config(QWEN)
    assert config.experts == Experts(count=128, active=8, mlp=768, normalise=True)
    assert (config.mlp, config.head_dim, config.windows) == (6144, 128, ())
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (False,) * 3


@pytest.mark.parametrize(
    ("entries", "dense"),
    [
        ({"mlp_only_layers": None}, ()),
        ({"mlp_only_layers": [3, 0]}, (0, 3)),
        ({"decoder_sparse_step": 2}, (0, 2)),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, (0, 2, 3)),
    ],
)
def test_layers_of_qwen_without_experts(entries, dense):
    config = registry.read_config({**QWEN, "num_hidden_layers": 4, **entries})
    assert config.experts.dense_layers == dense
    plain = {name for name in weights(registry.build(config)) if ".mlp.gate_proj." in name}
    assert plain == {f"layers.{layer}.mlp.gate_proj.weight" for layer in dense}


def test_what_newer_configs_of_qwen_say():
    """The number of experts by another name, and a default that is no."""
    newer = {name: QWEN[name] for name in QWEN.keys() - {"num_experts", "norm_topk_prob"}}
    config = registry.read_config({**newer, "num_local_experts": 64})
    assert config.experts == Experts(count=64, active=8, mlp=768, normalise=False)


@pytest.mark.parametrize(("window", "windows"), [(256, (256, 256)), (None, ())])
def test_a_window_of_qwen_is_that_of_every_layer(window, windows):
    entries = {"use_sliding_window": True, "sliding_window": window}
    assert registry.read_config({**SMALL["qwen3_moe"], **entries}).windows == windows


def test_gpt_oss_as_published():
    config = registry.read_config(GPT_OSS)
    assert config.experts == Experts(count=32, active=4, mlp=2880, normalise=True)
    assert config.windows == (128, 0) * 12
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (True,) * 3
    assert config.rope == Rope(
        150_000.0, None, "yarn", 32.0, 4096, low=1.0, high=32.0, truncate=False
    )
    without = {name: GPT_OSS[name] for name in GPT_OSS.keys() - {"layer_types"}}
    assert registry.read_config(without) == config, "windows in every other layer, the first too"


@pytest.mark.parametrize(
    ("base", "entries", "message"),
    [
        (GPT_OSS, {"swiglu_limit": 5.0}, "swiglu_limit 5.0: gpt_oss is supported with 7.0 only"),
        (GPT_OSS, {"swiglu_alpha": 2}, "swiglu_alpha 2: gpt_oss is supported with 1.702 only"),
        (GPT_OSS, {"layer_types": ["full_attention"]}, "one of .* for each of 24 layers"),
        (GPT_OSS, {"num_experts_per_tok": 33}, "32 experts and 33 active"),
        (QWEN, {"decoder_sparse_step": 0}, "decoder_sparse_step 0: it must be at least 1"),
        (QWEN, {"mlp_only_layers": "all"}, "mlp_only_layers 'all': it must be a list of layers"),
        (QWEN, {"num_experts": None}, "num_experts is null"),
        (MIXTRAL, {"num_experts_per_tok": 0}, "8 experts and 0 active"),
        (MIXTRAL, {"hidden_act": "relu6"}, "hidden_act 'relu6'"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(base, entries, message):
    with pytest.raises(ConfigError, match=message) as caught:
        registry.read_config({**base, **entries})
    assert "\n" not in str(caught.value)


@EVERY
def test_names_cover_every_parameter_and_every_tensor(family):
    config = registry.read_config(SMALL[family])
    record = registry.family_of(config)
    wanted = weights(registry.build(config))
    check(record.hf_names(config), wanted)
    for architecture in record.architectures:
        check(record.gguf_names(config, architecture), wanted)


def test_names_of_mixtral():
    found = registry.families()["mixtral"].hf_names(registry.read_config(SMALL["mixtral"]))
    for ours, theirs, shape in (
        ("gate_proj", "w1", (12, 20)),
        ("up_proj", "w3", (12, 20)),
        ("down_proj", "w2", (20, 12)),
    ):
        tensor = f"model.layers.1.block_sparse_moe.experts.2.{theirs}.weight"
        parts = found[f"layers.1.mlp.experts.{ours}.weight"]
        assert parts[2] == Part(tensor, shape, at=2)
    gate = "model.layers.0.block_sparse_moe.gate.weight"
    assert found["layers.0.mlp.router.weight"] == (Part(gate, (3, 20)),)


def test_names_of_qwen():
    found = registry.families()["qwen3_moe"].hf_names(registry.read_config(SMALL["qwen3_moe"]))
    tensor = "model.layers.0.mlp.experts.1.down_proj.weight"
    assert found["layers.0.mlp.experts.down_proj.weight"][1] == Part(tensor, (20, 8), at=1)
    assert found["layers.0.mlp.router.weight"][0].tensor == "model.layers.0.mlp.gate.weight"
    assert found["layers.1.mlp.gate_proj.weight"][0].tensor == "model.layers.1.mlp.gate_proj.weight"


def test_names_of_gpt_oss():
    """Gate and up alternate, inputs lie before outputs, and biases likewise."""
    config = registry.read_config(SMALL["gpt_oss"])
    found = registry.families()["gpt_oss"].hf_names(config)
    path = "layers.0.mlp.experts"
    both, down = f"model.{path}.gate_up_proj", f"model.{path}.down_proj"
    expected = {
        "gate_proj.weight": Part(both, (3, 20, 24), (0, 24, 2), axis=2, swap=True),
        "up_proj.weight": Part(both, (3, 20, 24), (1, 24, 2), axis=2, swap=True),
        "down_proj.weight": Part(down, (3, 12, 20), swap=True),
        "gate_proj.bias": Part(f"{both}_bias", (3, 24), (0, 24, 2), axis=1),
        "up_proj.bias": Part(f"{both}_bias", (3, 24), (1, 24, 2), axis=1),
        "down_proj.bias": Part(f"{down}_bias", (3, 20)),
    }
    assert {name: found[f"{path}.{name}"] for name in expected} == {
        name: (part,) for name, part in expected.items()
    }
    assert found["layers.1.self_attn.sinks"] == (Part("model.layers.1.self_attn.sinks", (4,)),)
    ggml = registry.families()["gpt_oss"].gguf_names(config, "gpt-oss")
    assert ggml["layers.1.self_attn.sinks"] == (Part("blk.1.attn_sinks.weight", (4,)),)
    norm = ggml["layers.1.post_attention_layernorm.weight"]
    assert norm == (Part("blk.1.post_attention_norm.weight", (20,)),)
    assert ggml[f"{path}.up_proj.bias"] == (Part("blk.0.ffn_up_exps.bias", (3, 12)),)


def test_ggml_turns_the_pairs_of_mixtral_alone():
    for family, rotated in (("mixtral", True), ("qwen3_moe", False), ("gpt_oss", False)):
        record = registry.families()[family]
        found = record.gguf_names(registry.read_config(SMALL[family]), record.architectures[0])
        assert found["layers.0.self_attn.q_proj.weight"][0].rotary == rotated
        assert not found["layers.0.self_attn.o_proj.weight"][0].rotary
