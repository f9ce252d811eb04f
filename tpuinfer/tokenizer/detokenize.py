"""From a stream of token ids to a stream of text: whole characters, and stop strings."""

import codecs
from collections import deque
from collections.abc import Sequence

from tpuinfer.tokenizer.vocabulary import TokenTable

_EACH_BYTE = "tpuinfer.replace_each_byte"


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(_EACH_BYTE, _replace_each_byte)


class Detokenizer:
    """Decodes one row, token by token, at a cost that does not grow with the row.

    The pieces that `push` and `flush` return join to what decoding the whole row at once gives.
    """

    def __init__(
        self,
        table: TokenTable,
        *,
        skip_special_tokens: bool = True,
        keep: frozenset[int] = frozenset(),
    ) -> None:
        """`keep`: control tokens whose text is there even where the others are skipped."""
        self._table = table
        self._skip = table.control - keep if skip_special_tokens else frozenset[int]()
        errors = _EACH_BYTE if table.byte_fallback else "replace"
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)
        self._opening = bool(table.opening)

    def push(self, token: int) -> str:
        """The characters that `token` completes; ids outside the vocabulary add nothing."""
        table = self._table
        if token in self._skip:
            return self.flush() if table.control_cuts else ""
        if not 0 <= token < len(table.pieces):
            return ""
        piece = table.pieces[token]
        if self._opening and piece:
            piece = table.openers.get(token, piece[1:] if token in table.opening else piece)
            self._opening = table.opening_run and not piece
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What is left of a character cut short, as U+FFFD; nothing the second time."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class StopChecker:
    """Finds the first of several stop strings in a stream of text, in linear time.

    An Aho-Corasick automaton (Commun. ACM 18(6), 1975): a state is the longest suffix of the text
    that begins some stop string, and that suffix is what is held back. With stops ["</s>", "s>a"]
    and the text "x</s" the state is "</s": "x" is safe to emit, "</s" is held.

    The stop string that is complete first wins; among those complete at the same character, the
    longest, so that no part of any stop string is emitted.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._match: list[str | None] = [None]
        for text in filter(None, stop):
            self._add(text)
        self._fallback = [0] * len(self._next)
        self._link()
        self._state = 0
        self._held: deque[str] = deque()
        self._hit: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that is now safe to emit, and the stop string if one is complete.

        After a hit all further text is dropped and the same stop string is returned.
        """
        if self._hit is not None:
            return "", self._hit
        if len(self._next) == 1:
            return text, None
        for char in text:
            self._held.append(char)
            self._state = self._step(self._state, char)
            self._hit = self._match[self._state]
            if self._hit is not None:
                safe = self._release(len(self._hit))
                self._held.clear()
                return safe, self._hit
        return self._release(self._depth[self._state]), None

    def pass_by(self, text: str) -> str:
        """The text that is now safe to emit; no stop string counts that is complete in `text`.

        One that begins in it and is complete later does.
        """
        if len(self._next) == 1:
            return text
        for char in text:
            self._held.append(char)
            self._state = self._step(self._state, char)
        return self._release(self._depth[self._state])

    def flush(self) -> str:
        """The text still held when the row ends without a stop string."""
        self._state = 0
        return self._release(0)

    def _release(self, keep: int) -> str:
        return "".join(self._held.popleft() for _ in range(len(self._held) - keep))

    def _add(self, text: str) -> None:
        node = 0
        for char in text:
            if char not in self._next[node]:
                self._next[node][char] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[node] + 1)
                self._match.append(None)
            node = self._next[node][char]
        self._match[node] = text

    def _link(self) -> None:
        """Point each state at its longest proper suffix that is a state, and inherit its match."""
        queue = deque(self._next[0].values())
        while queue:
            node = queue.popleft()
            if self._match[node] is None:
                self._match[node] = self._match[self._fallback[node]]
            for char, child in self._next[node].items():
                self._fallback[child] = self._step(self._fallback[node], char)
                queue.append(child)

    def _step(self, state: int, char: str) -> int:
        while state and char not in self._next[state]:
            state = self._fallback[state]
        return self._next[state].get(char, 0)
