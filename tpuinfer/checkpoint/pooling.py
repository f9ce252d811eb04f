"""How an encoder's tokens become one vector, from the small files sentence-transformers writes.

  modules.json                       which steps there are, and the folder of each one's config
  sentence_bert_config.json          of the encoder: most tokens, lower case
  1_Pooling/config.json              which pooling
  config_sentence_transformers.json  texts to put before a query or a passage

A checkpoint without modules.json is pooled by its mean and not normalised, as
sentence-transformers does.
"""

import logging
import re
from pathlib import Path
from typing import Any

from tpuinfer.checkpoint import layout
from tpuinfer.errors import CheckpointError
from tpuinfer.model_config import Pooling, PoolingMode

_log = logging.getLogger(__name__)

_MODULES = "modules.json"
_PROMPTS = "config_sentence_transformers.json"
_MODES: dict[str, PoolingMode] = {
    "cls_token": "cls",
    "cls": "cls",
    "mean_tokens": "mean",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "mean_sqrt_len": "mean_sqrt_len",
    "lasttoken": "last",
    "weightedmean_tokens": "weighted_mean",
    "weightedmean": "weighted_mean",
}
"""Their names, as flags and as values -> ours."""


def read_pooling(path: Path) -> Pooling:
    """How the encoder in the directory `path` pools.

    Raises:
      CheckpointError: a file is damaged, or asks for a step or a pooling that is not done here.
    """
    if not (path / _MODULES).is_file():
        _log.info("%s: no %s; pooling by mean, without normalisation", path, _MODULES)
        return Pooling()
    modules = _modules(path)
    kinds = [kind for kind, _ in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise CheckpointError(
            f"{path / _MODULES}: the steps are {', '.join(kinds) or 'none'}; done here are "
            "Transformer, Pooling and, after them or not at all, Normalize"
        )
    (_, encoder), (_, folder) = modules[:2]
    if encoder:
        raise CheckpointError(
            f"{path / _MODULES}: the encoder lies in the folder {encoder!r}; it must lie beside "
            f"{_MODULES}"
        )
    stated = _object(path / folder / "config.json")
    prompts = _object(path / _PROMPTS)
    texts = _texts(path, prompts.get("prompts") or {})
    if stated.get("include_prompt", True) is not True and any(texts.values()):
        raise CheckpointError(
            f"{path / folder}: include_prompt is false: prompts are always pooled with the text"
        )
    own = _encoder_file(path)
    return Pooling(
        mode=_mode(path / folder / "config.json", stated),
        normalise="Normalize" in kinds,
        max_tokens=_most_tokens(path, own),
        lowercase=bool(own.get("do_lower_case", False)),
        prompts=texts,
        default_prompt=_default_prompt(path, prompts, texts),
    )


def _modules(path: Path) -> list[tuple[str, str]]:
    """(kind, folder) of each step, in order; the encoder's folder is mostly ""."""
    stated = layout.read_any_json(path / _MODULES)
    try:
        found = [(str(one["type"]).rpartition(".")[2], str(one["path"])) for one in stated]
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path / _MODULES}: must be a list of objects with type and path"
        ) from error
    for _, folder in found:
        if not re.fullmatch(r"[\w-]*", folder):
            raise CheckpointError(f"{path / _MODULES}: path is {folder!r}: it must be a folder")
    return found


def _mode(path: Path, stated: dict[str, Any]) -> PoolingMode:
    """The one pooling that is asked for, by flags or by name."""
    prefix = "pooling_mode_"
    asked = [key.removeprefix(prefix) for key, v in stated.items() if key.startswith(prefix) and v]
    if isinstance(named := stated.get("pooling_mode"), str):
        asked = [named]
    if len(asked) != 1 or asked[0] not in _MODES:
        raise CheckpointError(
            f"{path}: the pooling is {' with '.join(asked) or 'not stated'}; done here is one of "
            f"{', '.join(dict.fromkeys(_MODES.values()))}"
        )
    return _MODES[asked[0]]


def _encoder_file(path: Path) -> dict[str, Any]:
    """sentence_bert_config.json, or the one of another model's name; empty if there is none."""
    names = sorted(
        entry.name for entry in path.iterdir() if re.fullmatch(r"sentence_.+_config", entry.stem)
    )
    return _object(path / names[0]) if names else {}


def _most_tokens(path: Path, own: dict[str, Any]) -> int | None:
    most = own.get("max_seq_length")
    if most is not None and (type(most) is not int or most < 1):
        raise CheckpointError(f"{path}: max_seq_length is {most!r}: it must be at least 1")
    return most


def _texts(path: Path, stated: Any) -> dict[str, str]:
    """Prompts by name."""
    if not isinstance(stated, dict) or not all(isinstance(text, str) for text in stated.values()):
        raise CheckpointError(
            f"{path / _PROMPTS}: prompts is {repr(stated)[:60]}: it must be an object of name: text"
        )
    return stated


def _default_prompt(path: Path, stated: dict[str, Any], texts: dict[str, str]) -> str | None:
    name = stated.get("default_prompt_name")
    if name is not None and name not in texts:
        raise CheckpointError(
            f"{path / _PROMPTS}: default_prompt_name is {name!r}, which prompts lack; they are "
            f"{', '.join(texts) or 'none'}"
        )
    return None if name is None else str(name)


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no such file."""
    return layout.read_json(path) if path.is_file() else {}
