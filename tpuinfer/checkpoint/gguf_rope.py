"""Rotary positions as GGUF files state them -> config.json's `rope_theta` and `rope_scaling`.

What a key that is missing means follows llama.cpp, which defines the format: llama_model's
load_hparams in src/llama-model.cpp, and get_rope_factors beside it.
"""

from collections.abc import Mapping
from typing import Any

from tpuinfer.checkpoint.gguf import GgufFile
from tpuinfer.checkpoint.gguf_keys import Keys

FREQUENCIES = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"

Entries = dict[str, Any]


def read_rope(keys: Keys, file: GgufFile, context: int, dims: int) -> tuple[Entries, set[str]]:
    """Entries of config.json, and the tensors that they hold.

    Args:
      context: the longest sequence, tokens.
      dims: how many dimensions of a head turn.
    """
    entries: Entries = {"rope_theta": keys.real("rope.freq_base", 10_000.0)}
    original = keys.integer("rope.scaling.original_context_length", context)
    kind = keys.text("rope.scaling.type", "linear")
    factor = keys.factor("rope.scaling.factor", keys.factor("rope.scale_linear"))
    tensors = {name for name in (FREQUENCIES, LONG, SHORT) if name in file.tensors}
    scaling: Mapping[str, Any] = {}
    if tensors:
        if factor != 1:
            keys.refuse("rope.scaling.factor", f"beside tensor {min(tensors)} is not supported")
        scaling = _divided(keys, file, tensors, original, dims)
    elif kind == "yarn":
        scaling = _yarn(keys, factor, original)
    elif kind == "longrope":
        keys.problems.append(f"rope scaling 'longrope' needs tensors {LONG} and {SHORT}")
    elif kind == "linear" and factor != 1:
        scaling = {"rope_type": "linear", "factor": factor}
    elif kind not in ("linear", "none"):
        keys.refuse("rope.scaling.type", "supported are none, linear, longrope and yarn")
    if scaling:
        entries["rope_scaling"] = scaling
    return entries, tensors


def _divided(
    keys: Keys, file: GgufFile, tensors: set[str], original: int, dims: int
) -> Mapping[str, Any]:
    """Frequencies with a divisor each.

    llama.cpp's converter works Llama 3.1's rule out into one table, which is what longrope is when
    its two tables are the same and it leaves the scores alone.
    """
    single = FREQUENCIES in tensors
    short, long = (FREQUENCIES, FREQUENCIES) if single else (SHORT, LONG)
    if not single and len(tensors) != 2:
        keys.problems.append(f"tensors {LONG} and {SHORT} belong together, and one is missing")
        return {}
    for name in sorted(tensors):
        if file.tensors[name].shape != (dims // 2,):
            shape = list(file.tensors[name].shape)
            keys.problems.append(f"tensor {name} has shape {shape}, not {[dims // 2]}")
    return {
        "rope_type": "longrope",
        "short_factor": file.read(short).reshape(-1).tolist(),
        "long_factor": file.read(long).reshape(-1).tolist(),
        "original_max_position_embeddings": original,
        "attention_factor": keys.factor("rope.scaling.attn_factor"),
    }


def _yarn(keys: Keys, factor: float, original: int) -> Mapping[str, Any]:
    """YaRN; llama.cpp's own factor of the scores is that of the paper, as Hugging Face's is."""
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": keys.factor("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": keys.factor("rope.scaling.yarn_beta_slow", 1.0),
    }
