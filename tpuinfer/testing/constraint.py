"""A constraint by hand: which tokens may come next is a function of those before."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


class FakeConstraint:
    """`tpuinfer.engine.request.Constraint` for tests; asserts that it is asked in turn.

    Attributes:
      taken: the tokens so far.
    """

    def __init__(
        self,
        allowed: Callable[[Sequence[int]], Iterable[int]],
        *,
        done: int | None = None,
        fails: int | None = None,
    ) -> None:
        """`done`: complete after so many tokens; `fails`: after so many it cannot go on."""
        self.taken: list[int] = []
        self._allowed = allowed
        self._done = done
        self._fails = fails
        self._filled = False

    @property
    def done(self) -> bool:
        return len(self.taken) == self._done

    @property
    def error(self) -> str | None:
        count = len(self.taken)
        return f"nothing may follow {count} tokens" if count == self._fails else None

    def fill(self, words: NDArray[np.int32]) -> None:
        """One bit for each allowed token."""
        assert not self.done, "a mask for an answer that is complete"
        bits = np.zeros(32 * words.size, np.uint8)
        bits[list(self._allowed(self.taken))] = 1
        words[:] = np.packbits(bits, bitorder="little").view("<i4")
        self._filled = True

    def take(self, token: int) -> None:
        """The token must be one that the last mask allowed."""
        assert self._filled, f"token {token} was picked without a mask"
        assert token in self._allowed(self.taken), f"token {token} was not allowed"
        self.taken.append(token)
        self._filled = False
