"""A tokenizer.json as converted from a SentencePiece model, in miniature."""

from typing import Any

_MARK = "\u2581"
_REPLACE = {"type": "Replace", "pattern": {"String": _MARK}, "content": " "}
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
LLAMA = {
    "type": "Sequence",
    "decoders": [_REPLACE, {"type": "ByteFallback"}, {"type": "Fuse"}, _STRIP],
}
METASPACE = {
    "type": "Metaspace",
    "replacement": _MARK,
    "prepend_scheme": "first",
    "split": False,
}


def sentencepiece_like(decoder: dict[str, Any] | None) -> dict[str, Any]:
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
