"""The bytes that each token of a model stands for, in the form that llguidance reads."""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class TokenSource(Protocol):
    """What grammars need of a model's tokenizer.

    Attributes:
      vocab_size: one more than the largest id that has a spelling.
      eos_ids: every token that ends a text.
      controls: the spelling of each control token -> its id.
      openers: id -> its bytes when it is the first token of a text, where they are others.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_ids(self) -> tuple[int, ...]: ...

    @property
    def controls(self) -> Mapping[str, int]: ...

    @property
    def openers(self) -> Mapping[int, bytes]: ...

    def token_bytes(self, token: int) -> bytes: ...


class Alphabet:
    """The tokens of one model as llguidance numbers them; building it takes a second at most.

    A token that reads otherwise when it opens a text (SentencePiece takes a space away there) has a
    second number: with 3 ids, of which 1 is " a" and opens as "a", and end token 2, the bytes are
    [.., b" a", end, b"a"], and number 3 stands for id 1 in the first mask of a text.

    Attributes:
      size: ids that may be picked: those that the model scores and the tokenizer spells.
      opened: ids that have another number as the first token of a text, ascending.
      opened_numbers: those numbers, in the same order.
      eos_ids: those of the model's end tokens that it scores.
    """

    def __init__(self, tokens: TokenSource, vocab: int) -> None:
        self._tokens = tokens
        self.size = min(tokens.vocab_size, vocab)
        self.opened = np.array(sorted(t for t in tokens.openers if t < self.size), np.int64)
        self.opened_numbers = self.size + np.arange(self.opened.size)
        self._second = dict(zip(self.opened.tolist(), self.opened_numbers.tolist(), strict=True))
        self.eos_ids = tuple(token for token in tokens.eos_ids if 0 <= token < self.size)

    @property
    def numbers(self) -> int:
        """How many numbers there are; without an end token the last is one that nobody picks."""
        return self.size + len(self._second) + (not self.eos_ids)

    def number(self, token: int, *, opening: bool) -> int:
        """The number of an id, as the first token of a text or a later one."""
        return self._second.get(token, token) if opening else token

    @functools.cached_property
    def reader(self) -> "LLTokenizer":
        """The form that llguidance reads."""
        from llguidance import LLTokenizer, TokenizerWrapper

        ends = list(self.eos_ids) or [self.numbers - 1]
        return LLTokenizer(TokenizerWrapper(_Spellings(self, ends)), eos_token=ends)

    def spellings(self) -> list[bytes]:
        """The bytes of every number; an id without any can never be picked."""
        tokens = self._tokens
        plain = [tokens.token_bytes(token) for token in range(self.size)]
        opened = [tokens.openers[token] for token in self._second]
        return plain + opened + [b"<end>"] * (not self.eos_ids)

    def specials(self, ends: list[int]) -> list[int]:
        """Numbers that no text can ask for: control tokens and what ends a text."""
        controls = {token for token in self._tokens.controls.values() if 0 <= token < self.size}
        return sorted(controls.union(ends))


class _Spellings:
    """What llguidance asks of a tokenizer; the names are its own."""

    bos_token_id = None

    def __init__(self, alphabet: Alphabet, ends: list[int]) -> None:
        self.eos_token_id = ends[0]
        self.tokens = alphabet.spellings()
        self.special_token_ids = alphabet.specials(ends)

    def __call__(self, text: str) -> list[int]:
        """Never asked for: it encodes text that a grammar forces, and ours force none."""
        raise NotImplementedError
