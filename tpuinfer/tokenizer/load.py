"""A checkpoint directory -> its tokenizer, by the files and keys Hugging Face checkpoints hold."""

import json
import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from tpuinfer.errors import TokenizerError
from tpuinfer.tokenizer import wordpiece
from tpuinfer.tokenizer.no_vocabulary import NoVocabulary
from tpuinfer.tokenizer.sentencepiece_model import AddedToken, SentencePieceVocabulary
from tpuinfer.tokenizer.template_files import read_templates
from tpuinfer.tokenizer.tokenizer import Tokenizer
from tpuinfer.tokenizer.tokenizer_json import JsonVocabulary
from tpuinfer.tokenizer.vocabulary import Vocabulary

_log = logging.getLogger(__name__)

_CONFIG = "tokenizer_config.json"

FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "special_tokens_map.json",
    _CONFIG,
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
)
"""What `load_tokenizer` may read beside config.json; a copy of a checkpoint wants them all."""

_NOT_READ = ("vocab.json", "merges.txt", "spiece.model", "tekken.json", "tokenizer.tiktoken")
"""Vocabularies in forms that are not read here: naming them beats serving bare ids."""


def load_tokenizer(
    directory: str | Path,
    *,
    chat_template: str | Path | None = None,
    vocab_size: int | None = None,
) -> Tokenizer:
    """The tokenizer of the checkpoint in `directory`.

    Reads `tokenizer.json`, or else `tokenizer.model`, or else BERT's `vocab.txt`;
    `tokenizer_config.json` (and the older `special_tokens_map.json`) for special tokens; the chat
    templates, see `template_files.read_templates`; `generation_config.json` and `config.json` for
    end tokens. Only the first of these is required.

    Args:
      chat_template: a file with the chat template to use instead of the checkpoint's own.
      vocab_size: the model's. Control tokens beyond it (Gemma 3's text models name an image token)
        are no ids of the tokenizer then. A checkpoint without any vocabulary gives a tokenizer that
        takes ids only (`Tokenizer.has_text` is False), where it is an error otherwise.

    Raises:
      TokenizerError: a file is missing or damaged, names a token that the vocabulary lacks, or is
        of another model than `vocab_size`.
    """
    folder = Path(directory)
    config = _read_json(folder / "special_tokens_map.json") | _read_json(folder / _CONFIG)
    special = dict(_special_tokens(config))
    spellings = {*special.values(), *_more_special(config)}
    vocabulary = _vocabulary(folder, config, spellings, vocab_size)
    if not vocabulary.has_text:
        return Tokenizer(vocabulary, eos_ids=_eos_ids(folder, None))
    if vocab_size is not None:
        _check_size(folder, vocabulary, vocab_size)
    bos_id = _named_id(vocabulary, special, config, "bos_token", vocabulary.bos_id)
    eos_id = _named_id(vocabulary, special, config, "eos_token", vocabulary.eos_id)
    override = None if chat_template is None else Path(chat_template).expanduser()
    templates = read_templates(folder, config, special, override)
    return Tokenizer(
        vocabulary=vocabulary,
        bos_id=bos_id,
        eos_ids=_eos_ids(folder, eos_id),
        prefix_ids=_surround(config, "add_bos_token", bos_id, vocabulary.prefix_ids),
        suffix_ids=_surround(config, "add_eos_token", eos_id, vocabulary.suffix_ids),
        template=templates.plain,
        tool_template=templates.tools,
        limit=vocab_size,
    )


def _check_size(folder: Path, vocabulary: Vocabulary, size: int) -> None:
    pieces, control = vocabulary.table.pieces, vocabulary.table.control
    if any(pieces[token] and token not in control for token in range(size, len(pieces))):
        raise TokenizerError(
            f"{folder}: the tokenizer knows {len(pieces)} ids, but the embedding has {size} rows: "
            "they are not of one model"
        )


def _vocabulary(
    folder: Path, config: Mapping[str, Any], special: Collection[str], size: int | None
) -> Vocabulary:
    path = folder / "tokenizer.json"
    if path.is_file():
        return JsonVocabulary(_read_text(path), path, special)
    path = folder / "tokenizer.model"
    if path.is_file():
        return SentencePieceVocabulary(path, _added_tokens(config), special)
    path = folder / "vocab.txt"
    if path.is_file():
        return JsonVocabulary(wordpiece.tokenizer_json(_read_text(path), config), path, special)
    others = [name for name in _NOT_READ if (folder / name).exists()]
    if others or size is None:
        what = f"its vocabulary is {', '.join(others)}" if others else "has no tokenizer"
        raise TokenizerError(
            f"{folder}: {what}; it must hold tokenizer.json, tokenizer.model or vocab.txt"
        )
    _log.warning("%s: has no tokenizer: prompts and answers are token ids only", folder)
    return NoVocabulary(size)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: not a readable {path.name} ({error})") from error


def _read_json(path: Path) -> dict[str, Any]:
    """The object in `path`, empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
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


def _more_special(config: Mapping[str, Any]) -> Iterator[str]:
    """Special tokens that have no name of their own."""
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = config.get(key)
        entries = list(value.values()) if isinstance(value, dict) else value
        for entry in entries if isinstance(entries, list) else ():
            text = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(text, str):
                yield text
    for entry in _added_tokens(config).values():
        if entry.special:
            yield entry.content


def _added_tokens(config: Mapping[str, Any]) -> dict[int, AddedToken]:
    entries = config.get("added_tokens_decoder") or {}
    problem = f"{_CONFIG}: added_tokens_decoder must map ids to objects with a content"
    try:
        added = {
            int(token): AddedToken(
                entry["content"],
                *(bool(entry.get(flag)) for flag in ("special", "lstrip", "rstrip")),
            )
            for token, entry in entries.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(problem) from error
    if not all(isinstance(token.content, str) for token in added.values()):
        raise TokenizerError(f"{problem} that is a string")
    return added


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
