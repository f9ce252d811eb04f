"""Rotary embeddings as published configs state them, and what transformers makes of each.

The golden, goldens/rope.json, holds for each case and each length of text the radians per position
that transformers' own functions give, float32, and what cosines and sines are multiplied by. Make
it again (needs torch):

    .venv/bin/python tests/parity/families/rope_cases.py
"""

import json
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[1] / "goldens" / "rope.json"

LENGTHS = (60, 5_000, 100_000)
"""Texts within every original context, beyond some, and beyond all but one."""

_ORIGINAL = "original_max_position_embeddings"

_LLAMA_31 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    _ORIGINAL: 8192,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 4.0,
    _ORIGINAL: 32_768,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0 + 0.05 * i for i in range(8)],
    "long_factor": [1.1 + 2.5 * i for i in range(8)],
    _ORIGINAL: 4096,
}

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10_000.0},
    "linear": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
    "llama3": _LLAMA_31,
    "llama3-short": _LLAMA_31 | {_ORIGINAL: 128, "factor": 32.0},
    "yarn": _YARN,
    "yarn-ramp": _YARN
    | {
        "rope_theta": 150_000.0,
        "factor": 32.0,
        "beta_fast": 24.0,
        "beta_slow": 2.0,
        "truncate": False,
        _ORIGINAL: 4096,
    },
    "yarn-mscale": _YARN | {"factor": 40.0, "mscale": 1.3, "mscale_all_dim": 0.7},
    "yarn-fixed": _YARN | {"attention_factor": 1.4},
    "longrope": _LONGROPE,
    "longrope-fixed": _LONGROPE | {"factor": 4.0, "attention_factor": 1.25},
    "longrope-partial": _LONGROPE
    | {
        "partial_rotary_factor": 0.75,
        "short_factor": _LONGROPE["short_factor"][:6],
        "long_factor": _LONGROPE["long_factor"][:6],
    },
}
"""Entries of `rope_parameters`, for a head of 16 dimensions and 2048 positions (131072 where the
entries state an original context)."""


def config_of(name: str) -> dict[str, Any]:
    """A config.json with the case's rotary embedding, in the newer style."""
    return {
        "model_type": "phi3" if "partial_rotary_factor" in ROPES[name] else "llama",
        "vocab_size": 64,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131_072 if _ORIGINAL in ROPES[name] else 2048,
        "rope_parameters": dict(ROPES[name]),
    }


def older(config: dict[str, Any]) -> dict[str, Any]:
    """The same config as it was written before 2025: `rope_theta` and `rope_scaling` apart."""
    found = {key: value for key, value in config.items() if key != "rope_parameters"}
    scaling = dict(config["rope_parameters"])
    found["rope_theta"] = scaling.pop("rope_theta")
    if "partial_rotary_factor" in scaling:
        found["partial_rotary_factor"] = scaling.pop("partial_rotary_factor")
    kind = scaling.pop("rope_type")
    found["rope_scaling"] = {"type": kind, **scaling} if kind != "default" else None
    return found


def reference(name: str) -> dict[str, Any]:
    """What transformers makes of a case: {"factor": ..., "frequencies": {length: [...]}}."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    kind = ROPES[name]["rope_type"]
    plain = LlamaRotaryEmbedding.compute_default_rope_parameters
    compute = plain if kind == "default" else ROPE_INIT_FUNCTIONS[kind]
    config = LlamaConfig(**config_of(name))
    found = {length: compute(config, seq_len=length) for length in LENGTHS}
    return {
        "factor": float(found[LENGTHS[0]][1]),
        "frequencies": {str(length): one.tolist() for length, (one, _) in found.items()},
    }


def main() -> None:
    lines = [f" {json.dumps(name)}: {json.dumps(reference(name))}" for name in ROPES]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    main()
