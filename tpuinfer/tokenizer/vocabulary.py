"""What a vocabulary backend offers, and the table that turns its ids back into bytes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

WORD_MARK = "\u2581"
"""SentencePiece's visible stand-in for a space (arXiv:1808.06226)."""


@dataclass(frozen=True)
class TokenTable:
    """What each id adds to a text; the index is the id.

    Attributes:
      pieces: the bytes of each id; a character may be spread over several.
      control: ids that are left out of a text when special tokens are skipped.
      opening: ids that lose their first space when they open a text (the space that encoding
        put before the first word). Empty where encoding adds none.
      openers: id -> its bytes when it opens a text, where that is another change than `opening`'s.
      opening_run: further ids of `opening` lose theirs too until there is some text.
      byte_fallback: SentencePiece's rule for bytes that are not UTF-8: each becomes one U+FFFD.
        Otherwise the Unicode rule holds: one U+FFFD for each maximal invalid part.
      control_cuts: a skipped control token ends the character before it, as in SentencePiece
        itself; otherwise skipped tokens leave no trace.
    """

    pieces: list[bytes]
    control: frozenset[int] = frozenset()
    opening: frozenset[int] = frozenset()
    openers: Mapping[int, bytes] = field(default_factory=dict)
    opening_run: bool = False
    byte_fallback: bool = False
    control_cuts: bool = False


class Vocabulary(Protocol):
    """A file that maps text to ids.

    Attributes:
      table: the way back.
      has_text: False for a stand-in that has ids only and refuses text.
      controls: the spelling of each control token -> its id.
      reads_variants: `encode` with `parse_special` also takes text for a control token that only
        normalises to its spelling (full-width brackets, say); `encode_cut` never does.
      bos_id: the token that opens a text, where the file names one.
      eos_id: the token that ends a text, where the file names one.
      prefix_ids: what the file itself asks to put before a text.
      suffix_ids: what the file itself asks to put after a text.
    """

    table: TokenTable
    has_text: bool
    controls: dict[str, int]
    reads_variants: bool
    bos_id: int | None
    eos_id: int | None
    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        """Ids of `text`, nothing added; control-token text becomes its id if `parse_special`.

        Without it no id is a control token's. Other added tokens are found in any text.
        """

    def encode_cut(self, parts: Sequence[str]) -> list[int]:
        """Ids of a text in pieces: plain text and control texts by turns, plain text first.

        As `encode` of the joined text with `parse_special`, but control-token text within the
        plain pieces stays text.
        """

    def token_id(self, text: str) -> int | None:
        """The id of the token spelled exactly `text`, or None."""


def opening_ids(pieces: Iterable[bytes], first: int = 0) -> frozenset[int]:
    """Ids, counted from `first`, whose bytes begin with a space."""
    return frozenset(i for i, piece in enumerate(pieces, first) if piece[:1] == b" ")
