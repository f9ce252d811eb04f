"""Which of our schemes comes nearest to how a GGUF file keeps a tensor.

Codes are fitted anew to the dequantised values. Where ggml's blocks are ranges in equal steps, as
in Q8_0, Q4_0 and Q4_1, the fit finds the same codes again; of the others it is the nearest.
"""

from collections.abc import Mapping

from tpuinfer.checkpoint.gguf_tensor import TYPES, GgufTensor
from tpuinfer.errors import ConfigError
from tpuinfer.models.blueprint import Weight
from tpuinfer.models.names import Names
from tpuinfer.quant.schemes import Scheme

_NEAREST = {
    "Q4_0": "int4:32",
    "Q4_1": "int4z:32",
    "Q4_K": "int4z:32",
    "IQ4_NL": "int4z:32",
    "IQ4_XS": "int4z:32",
    "Q2_K": "int4z:16",
    "Q3_K": "int4z:16",
    "Q5_0": "int8:32",
    "Q5_1": "int8:32",
    "Q5_K": "int8:32",
    "Q6_K": "int8:16",
    "Q8_0": "int8:32",
    "MXFP4": "int8:32",
}
"""ggml's name of a type -> scheme; those that are not here are dequantised."""


def nearest(
    tensors: Mapping[str, GgufTensor], names: Names, weights: Mapping[str, Weight]
) -> dict[str, Scheme]:
    """The scheme of each parameter all of whose tensors are of one such kind."""
    found = {}
    for name, weight in weights.items():
        kinds = {TYPES[tensors[part.tensor].type_id].name for part in names[name]}
        scheme = _NEAREST.get(kinds.pop()) if len(kinds) == 1 else None
        if scheme is None or not weight.contracted:
            continue
        width = 1
        for size in weight.shape[-weight.contracted :]:
            width *= size
        try:
            found[name] = Scheme.parse(scheme).fitted(width)
        except ConfigError:
            continue
    return found
