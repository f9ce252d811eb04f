import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from tpuinfer.errors import TokenizerError
from tpuinfer.tokenizer.load import load_tokenizer

_MARK = "\u2581"
_REPLACE = {"type": "Replace", "pattern": {"String": _MARK}, "content": " "}
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
_LLAMA = {
    "type": "Sequence",
    "decoders": [_REPLACE, {"type": "ByteFallback"}, {"type": "Fuse"}, _STRIP],
}
_METASPACE = {
    "type": "Metaspace",
    "replacement": _MARK,
    "prepend_scheme": "first",
    "split": False,
}


def _file(decoder: dict[str, Any] | None) -> dict[str, Any]:
    """A SentencePiece-like file: words over {a, b, space}, byte fallback for the rest."""
    pieces = ["<unk>", "<s>", *(f"<0x{b:02X}>" for b in range(256)), _MARK, "a", "b", _MARK + "a"]
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": 1,
                "content": "<s>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": _MARK},
                {"type": "Replace", "pattern": {"String": " "}, "content": _MARK},
            ],
        },
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": [[_MARK, "a"]],
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }


@pytest.mark.parametrize("text", ["a b", "  a", "aé🙂b", ""])
@pytest.mark.parametrize("decoder", [_LLAMA, {"type": "Sequence", "decoders": [_METASPACE]}])
def test_sentencepiece_like_files_decode_as_the_library_does(
    write: Callable[..., Path], decoder: dict[str, Any], text: str
) -> None:
    value = _file(decoder)
    tokenizer = load_tokenizer(write(tokenizer_json=value))
    ids = tokenizer.encode("<s>" + text)
    library = tokenizers.Tokenizer.from_str(json.dumps(value))
    assert ids == library.encode("<s>" + text).ids
    assert tokenizer.decode(ids) == library.decode(ids)


def test_text_comes_back_whole(write: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(write(tokenizer_json=_file(_LLAMA)))
    assert tokenizer.decode(tokenizer.encode("ab é🙂 a")) == "ab é🙂 a"


@pytest.mark.parametrize(
    ("decoder", "name"),
    [(None, "none"), ({"type": "WordPiece", "prefix": "##", "cleanup": True}, "WordPiece")],
)
def test_other_decoders_are_refused_by_name(
    write: Callable[..., Path], decoder: dict[str, Any] | None, name: str
) -> None:
    with pytest.raises(TokenizerError, match=f"decoder {name} is not known"):
        load_tokenizer(write(tokenizer_json=_file(decoder)))


def test_truncation_and_padding_in_the_file_are_ignored(write: Callable[..., Path]) -> None:
    value = _file(_LLAMA)
    value["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    value["padding"] = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    tokenizer = load_tokenizer(write(tokenizer_json=value))
    assert tokenizer.decode(tokenizer.encode("abababab")) == "abababab"
