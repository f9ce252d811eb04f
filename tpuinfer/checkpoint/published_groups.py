"""The config_groups of compressed-tensors' quantization_config: which module is quantised how.

Source: the package compressed-tensors, github.com/vllm-project/compressed-tensors. What is stored
says which modules are quantised; `targets` only say by which group, where there are several.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpuinfer.checkpoint.coded import MisfitError

_FORMATS = ("int-quantized", "naive-quantized", "float-quantized", "pack-quantized")
_BITS = {"int": (4, 8), "float": (8,)}
_STRATEGIES = ("tensor", "channel", "group", "block")


@dataclass(frozen=True)
class Group:
    """How some of the modules are quantised.

    Attributes:
      targets: names, "re:" and a pattern, or classes of modules.
      kind: "int" or "float".
      block: (rows, columns) that share a scale; 0 = all of them.
      dynamic: activations are rounded to int8 codes around 0 when they come, with a scale a token.
    """

    targets: tuple[str, ...]
    bits: int
    kind: str
    block: tuple[int, int]
    symmetric: bool
    dynamic: bool

    def block_of(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of a matrix that share a scale."""
        rows, columns = self.block
        return rows or shape[0], columns or shape[1]


def refusal(found: Mapping[str, Any]) -> str | None:
    """What of a quantization_config is not read; None = it is."""
    found = _inner(found)
    sparsity, transforms = found.get("sparsity_config"), found.get("transform_config")
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
        return f"compressed-tensors with sparse weights, {str(sparsity['format'])[:40]!r}"
    if isinstance(transforms, dict) and transforms.get("config_groups"):
        return "compressed-tensors with a transform_config"
    entries = found.get("config_groups")
    if not isinstance(entries, dict) or not all(isinstance(one, dict) for one in entries.values()):
        return f"compressed-tensors with config_groups {str(entries)[:40]}"
    for name, entry in entries.items():
        form = entry.get("format") or found.get("format")
        if form not in _FORMATS:
            return f"compressed-tensors with format {repr(form)[:40]}"
        if (why := _refused(entry)) is not None:
            return f"compressed-tensors with {why} in {str(name)[:40]}"
    return None


def groups(found: Mapping[str, Any]) -> list[Group]:
    """The groups of a quantization_config that is not refused."""
    return [_group(entry) for entry in _inner(found)["config_groups"].values()]


def group_of(module: str, of: Sequence[Group]) -> Group:
    """The group of a module that is stored quantised: by name, by pattern or by class, in turn.

    Raises:
      MisfitError: there are several groups, and none has it for a target.
    """
    if len(of) == 1:
        return of[0]
    for fits in (str.__eq__, _by_pattern, _by_class):
        for group in of:
            if any(fits(target, module) for target in group.targets):
                return group
    raise MisfitError(f"{module} is stored quantised, and no targets of config_groups are it")


def _inner(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entries of a quantization_config, which early releases kept one level deeper."""
    deeper = found.get("quantization_config")
    return {**found, **deeper} if isinstance(deeper, dict) else found


def _by_pattern(target: str, module: str) -> bool:
    return target.startswith("re:") and re.match(target.removeprefix("re:"), module) is not None


def _by_class(target: str, module: str) -> bool:
    """Embedding is the class of embed_tokens; all else that is quantised is linear."""
    return target == ("Embedding" if module.endswith("embed_tokens") else "Linear")


def _group(entry: Mapping[str, Any]) -> Group:
    weights, inputs = entry["weights"], entry.get("input_activations") or {}
    blocks = {
        "tensor": (0, 0),
        "channel": (1, 0),
        "group": (1, weights.get("group_size")),
        "block": _sizes(weights.get("block_structure")) or (0, 0),
    }
    return Group(
        targets=tuple(entry.get("targets") or ()),
        bits=_bits(weights),
        kind=_kind(weights),
        block=blocks[_strategy(weights)],
        symmetric=weights.get("symmetric", True),
        dynamic=inputs.get("dynamic") is True
        and (_bits(inputs), _kind(inputs)) == (8, "int")
        and inputs.get("strategy") == "token"
        and inputs.get("symmetric", True) is True,
    )


def _refused(entry: Mapping[str, Any]) -> str | None:
    """What of a group is not read; None = it is."""
    weights, targets = entry.get("weights"), entry.get("targets") or []
    if not isinstance(weights, dict):
        return f"weights {str(weights)[:40]}"
    if not isinstance(entry.get("input_activations") or {}, dict):
        return f"input_activations {str(entry['input_activations'])[:40]}"
    return next(_problems(weights, targets), None)


def _problems(weights: Mapping[str, Any], targets: Any) -> Iterator[str]:
    if _bits(weights) not in _BITS.get(_kind(weights), ()):
        yield f"{_bits(weights)} bits of {_kind(weights)!r}"
    if weights.get("dynamic"):
        yield "dynamic weights"
    if (strategy := _strategy(weights)) not in _STRATEGIES:
        yield f"strategy {strategy!r}"
    if strategy == "group" and not _is_size(weights.get("group_size")):
        yield f"group_size {str(weights.get('group_size'))[:40]}"
    if strategy == "block" and _sizes(weights.get("block_structure")) is None:
        yield f"block_structure {str(weights.get('block_structure'))[:40]}"
    if not isinstance(weights.get("symmetric", True), bool):
        yield f"symmetric {str(weights['symmetric'])[:40]}"
    if not isinstance(targets, list) or not all(_is_target(one) for one in targets):
        yield f"targets {str(targets)[:60]}"


def _is_target(one: Any) -> bool:
    try:
        return isinstance(one, str) and bool(re.compile(one.removeprefix("re:")))
    except (re.error, RecursionError, OverflowError):
        return False


def _strategy(weights: Mapping[str, Any]) -> str:
    """As stated, or as the group size says."""
    stated, size = weights.get("strategy"), weights.get("group_size")
    if stated is not None:
        return str(stated)[:40].lower()
    return "tensor" if size is None else "channel" if size == -1 else "group"


def _kind(of: Mapping[str, Any]) -> str:
    return str(of.get("type", "int"))[:40].lower()


def _bits(of: Mapping[str, Any]) -> Any:
    bits = of.get("num_bits", 8)
    return bits if type(bits) is int else str(bits)[:40]


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _sizes(value: Any) -> tuple[int, int] | None:
    """Rows and columns of a block, [128, 128] or, as early releases wrote it, "128x128"."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,6}x\d{1,6}", value):
        value = [int(size) for size in value.split("x")]
    fits = isinstance(value, list) and len(value) == 2 and all(map(_is_size, value))
    return (value[0], value[1]) if fits else None
