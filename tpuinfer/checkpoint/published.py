"""Tensors as a Hugging Face checkpoint means them: what is quantised comes back as plain values.

Which methods are read, and how each lies in the files, is in the modules that METHODS names.

Weights are all that is taken of them. Scales that are stored for activations or for the KV cache
are left out, which one line in the log says: activations are then as exact as they come, and how
the cache is kept is the engine's choice (`--ring`).
"""

import logging
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tpuinfer.checkpoint import (
    layout,
    published_compressed,
    published_fp8,
    published_gptq,
    published_mxfp4,
)
from tpuinfer.checkpoint.coded import Coded, Held, Made, MisfitError, Stored, Tensor
from tpuinfer.checkpoint.safetensors import StoredTensor
from tpuinfer.errors import CheckpointError

_log = logging.getLogger(__name__)

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

KEYS = ("quantization_config", "compression_config")
"""Entries of a config.json that say how its weights are quantised."""

_DTYPES: Mapping[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
}
_READ = (
    "fp8 (a scale for blocks, rows or tensors), mxfp4, compressed-tensors (int-quantized, "
    "naive-quantized, float-quantized and pack-quantized, of 4 and 8 bits), awq (gemm, 4 bits), "
    "gptq (4 and 8 bits), and weights that are not quantised"
)
_BESIDE = (
    *("input_scale", "input_zero_point", "activation_scale", "output_scale", "output_zero_point"),
    *("k_scale", "v_scale", "q_scale", "kv_scale", "k_zero_point", "v_zero_point"),
)
"""Last parts of names of what is stored for activations and for the KV cache."""


class Method(NamedTuple):
    """One way of quantising.

    Attributes:
      refusal: quantization_config -> what of it is not read; None = all is.
      made: a stored tensor's name -> the weight that it begins; None = it begins none.
    """

    refusal: Callable[[Mapping[str, Any]], str | None]
    made: Callable[[str, Stored], Made | None]


METHODS = {
    "fp8": Method(published_fp8.refusal, published_fp8.made),
    "mxfp4": Method(published_mxfp4.refusal, published_mxfp4.made),
    "compressed-tensors": Method(published_compressed.refusal, published_compressed.made),
    "awq": Method(published_gptq.refusal_awq, published_gptq.made_awq),
    "gptq": Method(published_gptq.refusal_gptq, published_gptq.made_gptq),
}
"""By quant_method."""

_UNSAID = ("fp8", "mxfp4")
"""Methods that the tensors themselves tell, where a config.json says nothing."""


def check_method(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse, from config.json alone, a checkpoint quantised in a way that is not read.

    Raises:
      CheckpointError: names the method and those that are read.
    """
    found = _stated(config)
    if found is None:
        return
    name = found.get("quant_method") if isinstance(found, dict) else found
    method = METHODS.get(name) if isinstance(name, str) and isinstance(found, dict) else None
    what = repr(name)[:60] if method is None else method.refusal(found)
    if what is not None:
        raise CheckpointError(
            f"{path}: config.json says the weights are quantised by {what}; read are {_READ}"
        )


def logical(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> dict[str, Tensor]:
    """The tensors that a checkpoint means, by name, those stored in parts put together.

    Reads no more than the shapes of packed weights.

    Args:
      config: one that `check_method` does not refuse.

    Raises:
      CheckpointError: scales are missing or do not fit their values; all such in one message.
    """
    found = _stated(config) or {}
    stated = config.get("dtype", config.get("torch_dtype"))
    dtype = _DTYPES.get(stated, BFLOAT16) if isinstance(stated, str) else BFLOAT16
    stored = Stored(dict(tensors), found, dtype, Held())
    names = (found["quant_method"],) if found else _UNSAID
    out: dict[str, Tensor] = {}
    used: set[str] = set()
    problems = []
    for name in tensors:
        try:
            made = next(filter(None, (METHODS[one].made(name, stored) for one in names)), None)
        except MisfitError as misfit:
            problems.append(str(misfit))
            continue
        if made is not None:
            out[made.name] = made.tensor
            used |= {*made.used}
    layout.raise_all(path, problems)
    beside = {name for name in tensors if found and name.rpartition(".")[2] in _BESIDE}
    if beside:
        _log.info(
            "%s: %d scales of activations or of the KV cache are not used: activations are not "
            "rounded by them, and --ring says how the cache is kept",
            path.name,
            len(beside),
        )
    plain = {name: one for name, one in tensors.items() if name not in used | beside}
    return {**plain, **out}


def without_empty_biases(
    path: Path, tensors: Mapping[str, Tensor], wanted: Container[str]
) -> dict[str, Tensor]:
    """The tensors without biases of quantised modules that the model lacks, if they are all zero.

    Early tools for GPTQ gave every module a bias. One that is not zero is left for
    `assemble.check` to refuse.

    Args:
      wanted: names of the model's tensors.
    """
    empty = [
        name
        for name, tensor in tensors.items()
        if name.endswith(".bias")
        and name not in wanted
        and isinstance(tensors.get(name.removesuffix("bias") + "weight"), Coded)
        and not tensor.rows(0, tensor.shape[0]).any()
    ]
    if empty:
        _log.info("%s: %d biases that are all zero are left out", path.name, len(empty))
    return {name: tensor for name, tensor in tensors.items() if name not in empty}


def _stated(config: Mapping[str, Any]) -> Any:
    """What config.json says of how its weights are quantised; None = nothing."""
    return next((config[key] for key in KEYS if config.get(key) is not None), None)
