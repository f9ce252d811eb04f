"""A checkpoint directory -> its tokenizer, by the files and keys Hugging Face checkpoints hold."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tpuinfer.errors import TokenizerError
from tpuinfer.tokenizer.sentencepiece_model import AddedToken, SentencePieceVocabulary
from tpuinfer.tokenizer.template import ChatTemplate
from tpuinfer.tokenizer.tokenizer import Tokenizer
from tpuinfer.tokenizer.tokenizer_json import JsonVocabulary
from tpuinfer.tokenizer.vocabulary import Vocabulary

_CONFIG = "tokenizer_config.json"


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of the checkpoint in `directory`.

    Reads `tokenizer.json` or else `tokenizer.model`; `tokenizer_config.json` (and the older
    `special_tokens_map.json`) for special tokens and the chat template; `chat_template.jinja`,
    which wins over the template there; `generation_config.json` and `config.json` for end tokens.
    Only the first of these is required.

    Raises:
      TokenizerError: a file is missing or damaged, or names a token that the vocabulary lacks.
    """
    folder = Path(directory)
    config = _read_json(folder / "special_tokens_map.json") | _read_json(folder / _CONFIG)
    vocabulary = _vocabulary(folder, config)
    special = dict(_special_tokens(config))
    bos_id = _named_id(vocabulary, special, config, "bos_token", vocabulary.bos_id)
    eos_id = _named_id(vocabulary, special, config, "eos_token", vocabulary.eos_id)
    source = _template_source(folder, config)
    return Tokenizer(
        vocabulary=vocabulary,
        bos_id=bos_id,
        eos_ids=_eos_ids(folder, eos_id),
        prefix_ids=_surround(config, "add_bos_token", bos_id, vocabulary.prefix_ids),
        suffix_ids=_surround(config, "add_eos_token", eos_id, vocabulary.suffix_ids),
        template=None if source is None else ChatTemplate(source, special),
    )


def _vocabulary(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    if (folder / "tokenizer.json").is_file():
        return JsonVocabulary(folder / "tokenizer.json")
    if (folder / "tokenizer.model").is_file():
        return SentencePieceVocabulary(folder / "tokenizer.model", _added_tokens(config))
    raise TokenizerError(
        f"{folder}: has no tokenizer; it must hold tokenizer.json or tokenizer.model"
    )


def _read_json(path: Path) -> dict[str, Any]:
    """The object in `path`, empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: holds a {type(value).__name__}, it must hold an object")
    return value


def _special_tokens(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """("bos_token", "<s>") and the like; a value may be a string or {"content": ...}."""
    for key, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            yield key, text


def _added_tokens(config: Mapping[str, Any]) -> dict[int, AddedToken]:
    entries = config.get("added_tokens_decoder") or {}
    try:
        return {
            int(token): AddedToken(entry["content"], bool(entry.get("special")))
            for token, entry in entries.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(
            f"{_CONFIG}: added_tokens_decoder must map ids to objects with a content"
        ) from error


def _named_id(
    vocabulary: Vocabulary,
    special: Mapping[str, str],
    config: Mapping[str, Any],
    key: str,
    default: int | None,
) -> int | None:
    """The id of the token that `key` names; None if it names none; `default` without the key."""
    if key not in special:
        return None if key in config else default
    token = vocabulary.token_id(special[key])
    if token is None:
        raise TokenizerError(f"{_CONFIG}: {key} is {special[key]!r}, which the vocabulary lacks")
    return token


def _eos_ids(folder: Path, own: int | None) -> tuple[int, ...]:
    """Every end token that a file names, each once, in the order found."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(token) is int and token >= 0 for token in ids):
            raise TokenizerError(f"{folder / name}: eos_token_id is {value!r}: it must be ids >= 0")
        found += ids
    return tuple(dict.fromkeys(found if own is None else [*found, own]))


def _surround(
    config: Mapping[str, Any], key: str, token: int | None, default: tuple[int, ...]
) -> tuple[int, ...]:
    """What goes before (after) a text: the config decides, and without the key the vocabulary."""
    wanted = config.get(key)
    if wanted is None:
        return default
    if wanted and token is None:
        raise TokenizerError(f"{_CONFIG}: {key} is {wanted} but no such token is named")
    return (token,) if wanted and token is not None else ()


def _template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template's text: a file of its own, a string, or the "default" of a named list."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"{path}: cannot be read ({error})") from error
    value = config.get("chat_template")
    if value is None or isinstance(value, str):
        return value
    try:
        named = {entry["name"]: str(entry["template"]) for entry in value}
    except (KeyError, TypeError) as error:
        raise TokenizerError(
            f"{_CONFIG}: chat_template must be a string or a list of {{name, template}}"
        ) from error
    if "default" not in named:
        raise TokenizerError(
            f"{_CONFIG}: chat_template names {', '.join(named) or 'nothing'}; one must be 'default'"
        )
    return named["default"]
