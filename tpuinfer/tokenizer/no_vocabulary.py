"""The backend of a checkpoint without a tokenizer: token ids go in and out, and no text."""

from collections.abc import Sequence
from typing import NoReturn

from tpuinfer.errors import RequestError
from tpuinfer.tokenizer.vocabulary import TokenTable


class NoVocabulary:
    """Ids below `size` that have no spelling; see `vocabulary.Vocabulary`."""

    has_text = False

    def __init__(self, size: int) -> None:
        self.table = TokenTable(pieces=[b""] * size)
        self.controls: dict[str, int] = {}
        self.reads_variants = False
        self.bos_id: int | None = None
        self.eos_id: int | None = None
        self.prefix_ids: tuple[int, ...] = ()
        self.suffix_ids: tuple[int, ...] = ()

    def encode(self, text: str, *, parse_special: bool) -> NoReturn:
        raise RequestError(
            "prompt is text, but this checkpoint has no tokenizer: send token ids in "
            f"[0, {len(self.table.pieces) - 1}]",
            param="prompt",
        )

    def encode_cut(self, parts: Sequence[str]) -> NoReturn:
        self.encode("".join(parts), parse_special=True)

    def token_id(self, text: str) -> int | None:
        return None
