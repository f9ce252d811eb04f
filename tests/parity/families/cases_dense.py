"""Cases of dense families."""

from typing import Any

from family_case import Case

_TINY = {
    "vocab_size": 61,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}
_SEVERAL = {
    **_TINY,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
}
_OWN_HEAD = {"head_dim": 8}
_FULL, _SLIDING = "full_attention", "sliding_attention"


def _longrope(original: int, dims: int, **others: Any) -> dict[str, Any]:
    """Entries of a Phi-3 whose frequencies are divided, by other numbers beyond `original`."""
    return {
        "original_max_position_embeddings": original,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 300.0,
            "short_factor": [1.0 + 0.1 * i for i in range(dims // 2)],
            "long_factor": [1.5 + 0.7 * i for i in range(dims // 2)],
            **others,
        },
    }


_LLAMA = (
    Case(
        "llama-tied",
        "llama",
        "llama",
        {**_TINY, **_OWN_HEAD, "tie_word_embeddings": True},
    ),
    Case(
        "llama-scaled",
        "llama",
        "llama",
        {
            **_SEVERAL,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
        shard_size="20KB",
    ),
    Case(
        "llama-dynamic",
        "llama",
        "llama",
        {
            **_TINY,
            "num_hidden_layers": 2,
            "max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 3.0},
        },
        stepwise=True,
    ),
)

_MISTRAL = (
    Case("mistral-windows", "mistral", "mistral", {**_TINY, "head_dim": 10, "sliding_window": 5}),
    Case(
        "mistral-open",
        "mistral",
        "mistral",
        {**_SEVERAL, "sliding_window": None, "tie_word_embeddings": True},
    ),
)

_QWEN = (
    Case(
        "qwen2-late-windows",
        "qwen2",
        "qwen2",
        {**_TINY, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    Case(
        "qwen2-yarn",
        "qwen2",
        "qwen2",
        {
            **_SEVERAL,
            "tie_word_embeddings": True,
            "max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 200.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    Case(
        "qwen3-biased",
        "qwen3",
        "qwen3",
        {
            **_TINY,
            **_OWN_HEAD,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 13,
            "layer_types": [_SLIDING, _FULL, _SLIDING],
        },
    ),
    Case("qwen3-tied", "qwen3", "qwen3", {**_SEVERAL, "head_dim": 6, "tie_word_embeddings": True}),
)

_SMOLLM3 = (
    Case(
        "smollm3-windows",
        "smollm3",
        "smollm3",
        {
            **_TINY,
            "no_rope_layers": [1, 0, 1],
            "use_sliding_window": True,
            "sliding_window": 9,
            "pad_token_id": 0,
        },
    ),
    Case(
        "smollm3-biased",
        "smollm3",
        "smollm3",
        {
            **_SEVERAL,
            "no_rope_layer_interval": 2,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
            "pad_token_id": 0,
        },
    ),
)

_OLMO2 = (
    Case("olmo2-one-kv-head", "olmo2", "olmo2", {**_TINY, "attention_bias": True}),
    Case(
        "olmo2-cut",
        "olmo2",
        "olmo2",
        {**_SEVERAL, "num_attention_heads": 8, "num_key_value_heads": 4},
    ),
)

_GRANITE = (
    Case(
        "granite-tied",
        "granite",
        "granite",
        {
            **_TINY,
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.4,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
            "tie_word_embeddings": True,
        },
    ),
    Case(
        "granite-biased",
        "granite",
        "granite",
        {**_SEVERAL, "attention_bias": True, "mlp_bias": True},
    ),
)

_PHI3 = (
    Case(
        "phi3-long",
        "phi3",
        "phi3",
        {**_SEVERAL, **_longrope(32, 6, partial_rotary_factor=0.75), "pad_token_id": 0},
        shard_size="20KB",
    ),
    Case(
        "phi3-short",
        "phi3",
        "phi3",
        {**_TINY, **_longrope(64, 12), "sliding_window": 6, "pad_token_id": 0},
    ),
)

CASES: tuple[Case, ...] = (*_LLAMA, *_MISTRAL, *_QWEN, *_SMOLLM3, *_OLMO2, *_GRANITE, *_PHI3)
