"""Names of a GGUF file's tensors, as old files have them too."""

import re
from collections.abc import Collection

from tpuinfer.models.names import Names, Part

_STACKED = re.compile(r"(blk\.\d+\.ffn_(?:gate|up|down))_exps\.(weight|bias)")


def as_written(names: Names, tensors: Collection[str]) -> Names:
    """The parts of parameters by the names that a file's tensors have.

    Before April 2024 llama.cpp kept each expert in a tensor of its own, blk.N.ffn_gate.E.weight.

    Args:
      names: of the family's, for files of today.
      tensors: names of those in the file.
    """
    return {name: _apart(parts, tensors) for name, parts in names.items()}


def _apart(parts: tuple[Part, ...], tensors: Collection[str]) -> tuple[Part, ...]:
    match = _STACKED.fullmatch(parts[0].tensor)
    if match is None or len(parts) > 1 or f"{match[1]}.0.{match[2]}" not in tensors:
        return parts
    experts, *shape = parts[0].shape
    if experts > len(tensors):
        return parts
    return tuple(
        Part(f"{match[1]}.{expert}.{match[2]}", tuple(shape), at=expert)
        for expert in range(experts)
    )
