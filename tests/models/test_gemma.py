"""Gemma's config.json and names, old and new ways of writing them, and what is refused."""

import dataclasses
import re

import pytest

from tpuinfer.errors import ConfigError
from tpuinfer.model_config import Rope
from tpuinfer.models import gemma2, gemma3, registry
from tpuinfer.models.blueprint import weights

GEMMA3_4B = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "eos_token_id": [1, 106],
    "torch_dtype": "bfloat16",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"model_type": "siglip_vision_model"},
}
"""What google/gemma-3-4b-it publishes: of the text model only what differs from its defaults."""

GEMMA3_1B = {
    "model_type": "gemma3_text",
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
SMALL = {
    **GEMMA3_1B,
    "hidden_size": 24,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "vocab_size": 31,
    "head_dim": 8,
}


def read(hf, **changes):
    return registry.read_config({**hf, **changes})


def test_gemma2_without_entries_is_the_class_of_the_reference():
    config = registry.read_config({"model_type": "gemma2"})
    assert (config.vocab, config.embed, config.mlp, config.layers) == (256_000, 2304, 9216, 26)
    assert (config.heads, config.kv_heads, config.head_dim, config.context) == (8, 4, 256, 8192)
    assert config.windows == (4096, 0) * 13
    assert (config.score_cap, config.logit_cap) == (50.0, 30.0)
    assert (config.query_scale, config.embed_scale) == (1 / 16, 48.0)
    assert (config.activation, config.tie_embeddings) == ("gelu_tanh", True)
    assert (config.eos_ids, config.bos_id, config.norm_eps) == ((1,), 2, 1e-6)
    assert config.rope == Rope(10_000.0)
    assert config.local_rope is None


def test_a_cap_of_null_is_no_cap():
    nulls = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    config = read({"model_type": "gemma2"}, **nulls)
    assert (config.score_cap, config.logit_cap) == (None, None)
    one = read({"model_type": "gemma2"}, final_logit_softcapping=12.5)
    assert (one.score_cap, one.logit_cap) == (50.0, 12.5)


def test_gemma3_in_the_way_it_was_published():
    config = read(GEMMA3_1B)
    assert config.windows == (512,) * 5 + (0,) + ((512,) * 5 + (0,)) * 3 + (512, 512)
    assert (config.rope, config.local_rope) == (Rope(1e6), Rope(1e4))
    assert (config.score_cap, config.logit_cap, config.query_scale) == (None, None, 1 / 16)
    assert config.embed_scale == pytest.approx(33.941125)
    assert [config.rope_of(layer).theta for layer in (4, 5, 6)] == [1e4, 1e6, 1e4]


def test_gemma3_in_the_new_way_is_the_same():
    new = {name: value for name, value in GEMMA3_1B.items() if "rope" not in name}
    del new["sliding_window_pattern"]
    new["layer_types"] = [
        "sliding_attention" if (layer + 1) % 6 else "full_attention" for layer in range(26)
    ]
    new["rope_parameters"] = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert read(new) == read(GEMMA3_1B)
    assert read(new, rope_parameters=None) == read(GEMMA3_1B)


def test_scaling_is_of_layers_without_a_window_only():
    config = read(GEMMA3_1B, rope_scaling={"rope_type": "linear", "factor": 8.0})
    assert config.rope == Rope(1e6, kind="linear", factor=8.0)
    assert config.local_rope == Rope(1e4)
    assert read(GEMMA3_1B, sliding_window_pattern=2).windows == (512, 0) * 13
    assert read(GEMMA3_1B, rope_local_base_freq=77).local_rope == Rope(77.0)


def test_the_text_model_of_a_multimodal_checkpoint():
    config = registry.read_config(GEMMA3_4B)
    assert (config.vocab, config.heads, config.kv_heads, config.head_dim) == (262_208, 8, 4, 256)
    assert (config.embed, config.layers, config.context) == (2560, 34, 131_072)
    assert (config.eos_ids, config.tie_embeddings) == ((1, 106), True)
    assert config.rope == Rope(1e6, kind="linear", factor=8.0)
    alone = gemma3.text_config(GEMMA3_4B)
    assert (alone["model_type"], alone["torch_dtype"]) == ("gemma3_text", "bfloat16")
    assert "vision_config" not in alone
    assert registry.read_config(alone) == config


@pytest.mark.parametrize(
    ("hf", "says"),
    [
        ({**GEMMA3_1B, "use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "not supported for gemma2"),
        ({**GEMMA3_1B, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
        ({**GEMMA3_1B, "sliding_window_pattern": 0}, "one layer in 0 is full_attention"),
        ({**GEMMA3_1B, "sliding_window": 0}, "sliding_window 0"),
        ({**GEMMA3_1B, "sliding_window": None}, "sliding_window None"),
        ({**GEMMA3_1B, "hidden_activation": "relu"}, "hidden_activation 'relu'"),
        ({**GEMMA3_1B, "layer_types": ["full_attention"]}, "for each of 26 layers"),
        ({**GEMMA3_1B, "rope_parameters": {"rope_theta": 1e6}}, "needs full_attention and"),
        ({"model_type": "gemma3"}, "text_config 'None'"),
    ],
)
def test_what_is_refused_is_named(hf, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        registry.read_config(hf)


def test_a_window_is_needed_by_sliding_layers_only():
    config = read(GEMMA3_1B, sliding_window=None, layer_types=["full_attention"] * 26)
    assert config.windows == ()


@pytest.mark.parametrize("module", [gemma2, gemma3])
def test_names_of_ggml(module):
    config = dataclasses.replace(registry.read_config(SMALL), family=module.FAMILY.name)
    names = module.gguf_names(config, module.FAMILY.architectures[0])
    assert names.keys() == weights(module.blueprint(config)).keys()
    tensors = {name: part.tensor for name, (part,) in names.items()}
    layer = "layers.1."
    assert tensors["embed_tokens.weight"] == "token_embd.weight"
    assert tensors["norm.weight"] == "output_norm.weight"
    assert tensors[f"{layer}input_layernorm.weight"] == "blk.1.attn_norm.weight"
    assert tensors[f"{layer}post_attention_layernorm.weight"] == "blk.1.post_attention_norm.weight"
    assert tensors[f"{layer}pre_feedforward_layernorm.weight"] == "blk.1.ffn_norm.weight"
    assert tensors[f"{layer}post_feedforward_layernorm.weight"] == "blk.1.post_ffw_norm.weight"
    assert tensors[f"{layer}mlp.down_proj.weight"] == "blk.1.ffn_down.weight"
    added = {name: part.add for name, (part,) in names.items()}
    assert {name for name, add in added.items() if add == -1.0} == {
        name for name in names if "norm" in name
    }
    assert set(added.values()) == {0.0, -1.0}
    assert not any(part.rotary for (part,) in names.values())


def test_the_head_is_the_embedding_unless_it_is_said():
    assert "lm_head.weight" not in gemma3.hf_names(read(SMALL))
    names = gemma3.hf_names(read(SMALL, tie_word_embeddings=False))
    assert names["lm_head.weight"][0].tensor == "lm_head.weight"
    assert names["layers.0.self_attn.q_norm.weight"][0].shape == (8,)
