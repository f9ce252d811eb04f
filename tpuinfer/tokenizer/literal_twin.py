"""A copy of a `tokenizer.json` in which no text that anyone can write is a control token."""

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer as HfTokenizer


class LiteralTwin:
    """Reads all text as plain text; control tokens come in by their place alone.

    In the copy each control token has a new spelling that nobody can guess: noncharacters of
    Unicode around random digits. Its id, and the spaces it takes away beside it, stay as they were;
    it is found before any normalisation and inside words too, so that its place alone decides.
    One pass over plain text and new spellings then gives the ids, so that what the file does only
    at the start of a text (or across pieces) it does as ever.

    Args:
      text: a tokenizer.json that is known to load.
      controls: spelling -> id of its control tokens.
    """

    def __init__(self, text: str, controls: Mapping[str, int]) -> None:
        salt = secrets.token_hex(8)
        self._spelling = {
            name: f"\ufdd0{salt}{number:x}\ufdd1" for number, name in enumerate(controls)
        }
        value = json.loads(text)
        value["post_processor"] = None
        _rename_in_model(value["model"], self._spelling)
        for entry in value["added_tokens"]:
            if entry["content"] in self._spelling:
                entry["content"] = self._spelling[entry["content"]]
                entry["normalized"] = entry["single_word"] = False
        self._tokenizer = HfTokenizer.from_str(json.dumps(value))
        for entry in value["added_tokens"]:  # the same places, so the same ids
            assert self._tokenizer.token_to_id(entry["content"]) == entry["id"], entry["id"]

    def encode(self, parts: Sequence[str]) -> list[int]:
        """Ids of plain text and control texts by turns, plain text first; nothing is added."""
        text = "".join(
            self._spelling[part] if index % 2 else part for index, part in enumerate(parts)
        )
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def _rename_in_model(model: dict[str, Any], spelling: Mapping[str, str]) -> None:
    """Take the old spellings out of the model's own pieces, so that nothing leads to them."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {spelling.get(text, text): token for text, token in vocab.items()}
    else:
        model["vocab"] = [[spelling.get(text, text), score] for text, score in vocab]
    if model.get("unk_token") is not None:
        model["unk_token"] = spelling.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        model["merges"] = [
            pair for pair in model["merges"] if spelling.keys().isdisjoint((*pair, "".join(pair)))
        ]
