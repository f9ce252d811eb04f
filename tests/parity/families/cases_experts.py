"""Cases of families with a mixture of experts.

A mesh of 2x4 cuts 8 or 4 experts by number, and 5 or 6 within. (transformers needs F to be a
multiple of 4: it runs experts by grouped products.)
"""

from family_case import Case

_TINY = {
    "vocab_size": 61,
    "hidden_size": 36,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
_SEVERAL = {**_TINY, "num_attention_heads": 6, "num_key_value_heads": 3}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 32,
}

CASES: tuple[Case, ...] = (
    Case(
        "mixtral-window",
        "mixtral",
        "mixtral",
        {**_TINY, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 11},
    ),
    Case(
        "mixtral-tied",
        "mixtral",
        "mixtral",
        {
            **_SEVERAL,
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "tie_word_embeddings": True,
        },
        shard_size="30KB",
    ),
    Case(
        "qwen3-moe-with-a-plain-layer",
        "qwen3_moe",
        "qwen3_moe",
        {
            **_TINY,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 20,
            "mlp_only_layers": [1],
        },
    ),
    Case(
        "qwen3-moe-normalised",
        "qwen3_moe",
        "qwen3_moe",
        {
            **_SEVERAL,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 12,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 7,
        },
    ),
    Case(
        "gpt-oss-within",
        "gpt_oss",
        "gpt_oss",
        {
            **_SEVERAL,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "sliding_window": 7,
            "rope_parameters": _YARN,
        },
        shard_size="20KB",
    ),
    Case(
        "gpt-oss-by-number",
        "gpt_oss",
        "gpt_oss",
        {
            **_TINY,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "num_hidden_layers": 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 4,
            "sliding_window": 7,
            "layer_types": [_FULL, _SLIDING],
            "attention_bias": False,
            "rope_parameters": _YARN,
        },
    ),
)
