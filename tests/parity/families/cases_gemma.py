"""Cases of families called Gemma."""

from family_case import Case

_TINY = {
    "vocab_size": 61,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "query_pre_attn_scalar": 5,
    "sliding_window": 7,
}
_SEVERAL = {**_TINY, "num_attention_heads": 6, "num_key_value_heads": 3}
_FULL, _SLIDING = "full_attention", "sliding_attention"

_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

CASES: tuple[Case, ...] = (
    Case(
        "gemma2-capped",
        "gemma2",
        "gemma2",
        {**_TINY, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0},
        norm_centre=0.0,
    ),
    Case(
        "gemma2-plain",
        "gemma2",
        "gemma2",
        {
            **_SEVERAL,
            "layer_types": [_FULL, _SLIDING, _SLIDING],
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
        norm_centre=0.0,
        shard_size="20KB",
    ),
    Case(
        "gemma3-text",
        "gemma3",
        "gemma3_text",
        {**_TINY, "layer_types": [_SLIDING, _SLIDING, _FULL]},
        norm_centre=0.0,
    ),
    Case(
        "gemma3-scaled",
        "gemma3",
        "gemma3_text",
        {
            **_SEVERAL,
            "sliding_window": 19,
            "layer_types": [_SLIDING, _FULL, _SLIDING],
            "final_logit_softcapping": 3.0,
            "rope_parameters": {
                _FULL: {"rope_type": "linear", "rope_theta": 300.0, "factor": 8.0},
                _SLIDING: {"rope_type": "default", "rope_theta": 50.0},
            },
        },
        norm_centre=0.0,
    ),
    Case(
        "gemma3-with-vision",
        "gemma3",
        "gemma3",
        {
            "text_config": {**_TINY, "num_hidden_layers": 2, "layer_types": [_SLIDING, _FULL]},
            "vision_config": _VISION,
            "mm_tokens_per_image": 4,
        },
        norm_centre=0.0,
    ),
)
