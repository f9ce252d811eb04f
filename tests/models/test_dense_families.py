"""Published config.json files of dense families: every number that defines the model arrives.

Abbreviated to the entries that describe the model, in the style of their day. The counts of
parameters are those of the model cards, so that no bias, norm or head is missing or too many.
"""

import copy
import math

import pytest

from tpuinfer.errors import ConfigError
from tpuinfer.model_config import ModelConfig, Rope
from tpuinfer.models.blueprint import weights
from tpuinfer.models.registry import build, read_config

MISTRAL = {
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NEMO = MISTRAL | {
    "vocab_size": 131072,
    "hidden_size": 5120,
    "head_dim": 128,
    "num_hidden_layers": 40,
    "max_position_embeddings": 131072,
    "rope_theta": 1000000.0,
    "sliding_window": None,
}
QWEN25 = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "attention_bias": False,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
SMOLLM3 = {
    "model_type": "smollm3",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "max_position_embeddings": 65536,
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "layer_types": ["full_attention"] * 36,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "bos_token_id": 128000,
    "eos_token_id": 128012,
}
OLMO2 = {
    "model_type": "olmo2",
    "vocab_size": 100352,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "attention_bias": False,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "eos_token_id": 100257,
}
GRANITE = {
    "model_type": "granite",
    "vocab_size": 49159,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "attention_multiplier": 0.015625,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
SHORT, LONG = [1.0 + 0.25 * i for i in range(48)], [1.0 + 1.25 * i for i in range(48)]
"""Not the published numbers, but as many."""

PHI35 = {
    "model_type": "phi3",
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "attention_bias": False,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 32000,
}
PHI4_MINI = PHI35 | {
    "vocab_size": 200064,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 0.75,
    "tie_word_embeddings": True,
    "bos_token_id": 199999,
    "eos_token_id": 199999,
}

PUBLISHED = {
    "Mistral-7B-v0.1": (MISTRAL, 7_241_732_096),
    "Mistral-Nemo-2407": (NEMO, 12_247_782_400),
    "Qwen2.5-7B": (QWEN25, 7_615_616_512),
    "Qwen3-8B": (QWEN3, 8_190_735_360),
    "SmolLM3-3B": (SMOLLM3, 3_075_098_624),
    "OLMo-2-0425-1B": (OLMO2, 1_484_916_736),
    "Granite-3.3-2B": (GRANITE, 2_533_539_840),
    "Phi-3.5-mini": (PHI35, 3_821_079_552),
    "Phi-4-mini": (PHI4_MINI, 3_836_021_760),
}

SIZES = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
"""What every config.json states; the rest may equal the default of its class and be left out."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_count_is_that_of_the_model_card(name):
    hf, count = PUBLISHED[name]
    found = weights(build(read_config(hf))).values()
    assert sum(math.prod(weight.shape) for weight in found) == count


def test_mistral_looks_back_at_a_window_or_at_everything():
    assert read_config(MISTRAL).windows == (4096,) * 32
    assert read_config(NEMO).windows == ()
    assert read_config({name: MISTRAL[name] for name in SIZES}).windows == (4096,) * 32
    assert read_config(NEMO).head_dim == 128


def test_qwen_switches_windows_on_from_a_layer():
    assert read_config(QWEN25).windows == read_config(QWEN3).windows == ()
    on = {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 25}
    assert read_config(QWEN25 | on).windows == (0,) * 25 + (512,) * 3
    assert read_config(QWEN3 | on).windows == (0,) * 25 + (512,) * 11
    listed = on | {"layer_types": ["sliding_attention"] * 4 + ["full_attention"] * 24}
    assert read_config(QWEN25 | listed).windows == (512,) * 4 + (0,) * 24


def test_qwen_biases():
    assert (read_config(QWEN25).qkv_bias, read_config(QWEN25).o_bias) == (True, False)
    biased = read_config(QWEN3 | {"attention_bias": True})
    assert (biased.qkv_bias, biased.o_bias) == (True, True)
    assert not read_config(QWEN3).qkv_bias


def test_smollm3_leaves_layers_unrotated():
    config = read_config(SMOLLM3)
    assert config.unrotated == tuple(range(3, 36, 4))
    assert (config.tie_embeddings, config.windows) == (True, ())
    every = {key: value for key, value in SMOLLM3.items() if key != "no_rope_layers"}
    assert read_config(every) == config
    assert read_config(every | {"no_rope_layer_interval": 18}).unrotated == (17, 35)
    windows = {"use_sliding_window": True, "sliding_window": 64, "layer_types": None}
    assert read_config(SMOLLM3 | windows).windows == (0, 0, 0, 64) * 9


def test_olmo2_norms_queries_and_keys_over_all_heads():
    found = weights(build(read_config(OLMO2 | {"num_key_value_heads": 4})))
    assert found["layers.0.self_attn.q_norm.weight"].shape == (16, 128)
    assert found["layers.0.self_attn.k_norm.weight"].shape == (4, 128)
    assert not any("input_layernorm" in name for name in found)


def test_granite_multipliers():
    config = read_config(GRANITE)
    assert (config.query_scale, config.embed_scale) == (0.015625, 12.0)
    assert (config.residual_scale, config.logit_scale) == (0.22, 0.125)
    plain = read_config({key: value for key, value in GRANITE.items() if "multipl" not in key})
    assert (plain.query_scale, plain.embed_scale, plain.residual_scale) == (1.0, 1.0, 1.0)


def test_phi3_rope():
    assert read_config(PHI35).rope == Rope(
        kind="longrope", factor=32.0, original=4096, short=tuple(SHORT), long=tuple(LONG)
    )
    assert read_config(PHI4_MINI).rope.dim == 96
    first = PHI35 | {"rope_scaling": PHI35["rope_scaling"] | {"type": "su"}}
    assert read_config(first) == read_config(PHI35)
    assert read_config(PHI35 | {"rope_scaling": None}).rope == Rope()


def test_a_longer_context_takes_the_long_divisors_from_the_first_token_on():
    config = read_config(PHI35)
    assert config.settled(4096) == config
    assert config.settled(4097).rope.short == tuple(LONG)
    assert config.settled(4097).settled(10).rope.short == tuple(LONG)
    plain = read_config(QWEN3)
    assert plain.settled(40960) == plain


def test_stretched_positions_reach_further_than_the_config_says():
    """Such configs keep the context of training beside the factor; others state the sum of both."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert read_config(QWEN25 | {"rope_scaling": yarn}).context == 131072
    dynamic = {"type": "dynamic", "factor": 2.0}
    assert read_config(QWEN25 | {"rope_scaling": dynamic}).context == 65536
    linear = {"type": "linear", "factor": 2.0}
    assert read_config(QWEN25 | {"rope_scaling": linear}).context == 32768
    assert read_config(PHI35).context == 131072


@pytest.mark.parametrize(
    ("hf", "entry", "message"),
    [
        (MISTRAL, {"layer_types": ["sliding_attention"] * 32}, "layer_types .* for mistral"),
        (MISTRAL, {"sliding_window": -1}, "windows has 32 entries, the least -1"),
        (QWEN25, {"use_sliding_window": "yes"}, "use_sliding_window is 'yes'"),
        (QWEN25, {"layer_types": ["full_attention"]}, "qwen2 needs one of full_attention, slid"),
        (QWEN3, {"layer_types": ["sliding_attention"] * 36}, "sliding_window None and layers of"),
        (SMOLLM3, {"no_rope_layers": [1, 0, 1]}, "no_rope_layers .* each of 36 layers"),
        (SMOLLM3, {"no_rope_layers": [2] * 36}, "no_rope_layers .* each of 36 layers"),
        (SMOLLM3, {"no_rope_layers": None, "no_rope_layer_interval": 0}, "interval 0: at least 1"),
        (OLMO2, {"clip_qkv": 8.0}, "clip_qkv 8.0: not supported for olmo2"),
        (GRANITE, {"logits_scaling": 0}, "logits_scaling 0.0: logits are divided by it"),
        (PHI35, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "phi3 has longrope or none"),
        (PHI35, {"lm_head_bias": True}, "lm_head_bias True: not supported for phi3"),
        (PHI35, {"partial_rotary_factor": 0.5}, "short_factor .* must be 24 numbers"),
    ],
)
def test_what_a_family_does_not_do_is_refused_by_name(hf, entry, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(hf | entry)
    assert "\n" not in str(caught.value)


def through_transformers(hf) -> ModelConfig:
    """What we read of what transformers makes of the same entries, defaults of its class added."""
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    config_class = transformers.CONFIG_MAPPING[hf["model_type"]]
    entries = {key: copy.deepcopy(value) for key, value in hf.items() if key != "model_type"}
    return read_config(config_class(**entries).to_dict())


@pytest.mark.parity
@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_reads_the_same(name):
    hf, _ = PUBLISHED[name]
    assert read_config(hf) == through_transformers(hf)


@pytest.mark.parity
@pytest.mark.parametrize("hf", [MISTRAL, QWEN25, QWEN3, SMOLLM3, OLMO2, GRANITE, PHI35])
def test_what_is_left_out_is_the_default_of_its_class(hf):
    least = {name: hf[name] for name in SIZES}
    if hf["model_type"] in ("qwen2", "qwen3"):
        least["num_attention_heads"] = 32
    assert read_config(least) == through_transformers(least)
