"""A family's model out of a checkpoint that holds more, as `models.family.Wrapped` says."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from tpuinfer.checkpoint import layout
from tpuinfer.models.family import Family, Wrapped

_log = logging.getLogger(__name__)

T = TypeVar("T")


def around(family: Family, config: Mapping[str, Any]) -> Wrapped | None:
    """What says how to take the family's model out; None where a checkpoint holds nothing else.

    Args:
      config: config.json.
    """
    wrapped = family.wrapped
    return wrapped if wrapped and config.get("model_type") == wrapped.model_type else None


def unwrap(path: Path, tensors: Mapping[str, T], wrapped: Wrapped) -> dict[str, T]:
    """The tensors of the family's model by their names without the rest, which is left out.

    Logs in one line what is left out.

    Raises:
      CheckpointError: two tensors come to one name; all such in one message.
    """
    unread = re.compile(wrapped.unread)
    names: dict[str, str] = {}
    problems = []
    for name in tensors:
        if unread.fullmatch(name):
            continue
        other = names.setdefault(_renamed(name, wrapped), name)
        if other != name:
            problems.append(f"{other} and {name} are both {_renamed(name, wrapped)}")
    layout.raise_all(path, problems)
    kept = {name: tensors[stored] for name, stored in names.items()}
    if len(kept) < len(tensors):
        _log.info("%s: %s (%d tensors)", path.name, wrapped.note, len(tensors) - len(kept))
    return kept


def _renamed(name: str, wrapped: Wrapped) -> str:
    for pattern, replacement in wrapped.renamed:
        if (match := re.fullmatch(pattern, name)) is not None:
            return match.expand(replacement)
    return name
