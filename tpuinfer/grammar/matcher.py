"""A compiled grammar, and how far one answer has got in it."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tpuinfer.grammar.tokens import Alphabet

if TYPE_CHECKING:
    from llguidance import LLMatcher

_ERROR_LENGTH = 200
_NO_WAY_ON = "no token of this model continues the text as asked for"


def one_line(message: str) -> str:
    """The first line of what llguidance says, cut to a length that an answer can hold."""
    line = next((line.strip() for line in message.splitlines() if line.strip()), "no reason given")
    return line if len(line) <= _ERROR_LENGTH else line[: _ERROR_LENGTH - 3] + "..."


class Matcher:
    """Follows one answer: an `engine.request.Constraint`. Belongs to one thread at a time.

    Once `error` is set it stays, and masks allow the end tokens alone; look at it after each call.
    """

    def __init__(self, alphabet: Alphabet, state: "LLMatcher") -> None:
        self._alphabet = alphabet
        self._state = state
        self._opening = bool(alphabet.opened.size)
        self._error: str | None = None
        self._complete = False
        self._mask = np.zeros((alphabet.reader.vocab_size + 31) // 32, np.int32)

    @property
    def done(self) -> bool:
        """The text is complete and no token but an end token could follow."""
        return self._error is None and (self._complete or self._state.is_stopped())

    @property
    def error(self) -> str | None:
        """Why the text cannot go on, in one line; None while it can."""
        return self._error

    def fill(self, words: NDArray[np.int32]) -> None:
        """Write which tokens may come next: bit i % 32 of words[i // 32] is that of token i.

        At least one bit is set, unless the text is `done` or in error and the model has no end
        token. Ids that the model scores and the tokenizer cannot spell are never allowed.

        Args:
          words: one bit a token of the model, rounded up; all of it is overwritten.
        """
        words[:] = 0
        if self._error is None:
            self._state.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
            self._hear()
        if self._error is None:
            self._write(words)
            if words.any():
                return
            self._complete = self._state.is_accepting()  # a model without end tokens
            if not self._complete:
                self._error = _NO_WAY_ON
        for token in self._alphabet.eos_ids:
            words.view(np.uint32)[token >> 5] |= np.uint32(1 << (token & 31))

    def take(self, token: int) -> None:
        """Move on by a token that was picked; one that the mask forbids sets `error`."""
        if self._error is not None:
            return
        if not 0 <= token < self._alphabet.size:
            self._error = f"token {token} is not one that the text can have"
            return
        number = self._alphabet.number(token, opening=self._opening)
        self._opening = False
        self._state.consume_token(number)
        self._hear()

    def _write(self, words: NDArray[np.int32]) -> None:
        """The mask just made, without the numbers that are no ids."""
        size, mask = self._alphabet.size, self._mask
        if self._opening:
            bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
            bits[self._alphabet.opened] = bits[self._alphabet.opened_numbers]
            mask = np.packbits(bits, bitorder="little").view(np.int32)
        count = (size + 31) // 32
        words[:count] = mask[:count]
        if size % 32:
            words[count - 1] &= np.int32((1 << size % 32) - 1)

    def _hear(self) -> None:
        if self._state.is_error():
            reason = one_line(self._state.get_error())
            self._error = _NO_WAY_ON if reason.startswith("NoExtension") else reason


class Grammar:
    """What texts conform, compiled for one model. Immutable; threads may share it."""

    def __init__(self, alphabet: Alphabet, start: "LLMatcher") -> None:
        self._alphabet = alphabet
        self._start = start

    def matcher(self) -> Matcher:
        """A fresh follower, at the start of a text."""
        return Matcher(self._alphabet, self._start.deep_copy())
