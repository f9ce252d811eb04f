"""Walks through a grammar: what a model that picks at random among the allowed tokens writes."""

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tpuinfer.grammar.compiler import GrammarCompiler
from tpuinfer.grammar.guide import Guide
from tpuinfer.grammar.matcher import Matcher
from tpuinfer.testing.fake import FakeTokenizer


class Spelled(FakeTokenizer):
    """Tokens of several characters: after the fake's 128, each of `texts` is one."""

    def __init__(
        self,
        texts: Sequence[bytes] = (),
        *,
        eos_ids: tuple[int, ...] = (0,),
        controls: dict[str, int] | None = None,
        openers: dict[int, bytes] | None = None,
    ) -> None:
        super().__init__(128 + len(texts), eos_ids)
        self._texts = texts
        self.controls = self.controls | (controls or {})
        self.openers = openers or {}

    def token_bytes(self, token: int) -> bytes:
        return super().token_bytes(token) if token < 128 else self._texts[token - 128]


def mask(matcher: Matcher, vocab: int = 128) -> NDArray[np.bool_]:
    """Which ids are allowed: [vocab rounded up to 32]."""
    words = np.full((vocab + 31) // 32, -1, np.int32)
    matcher.fill(words)
    return np.unpackbits(words.view(np.uint8), bitorder="little").astype(np.bool_)


def allowed(matcher: Matcher, vocab: int = 128) -> list[int]:
    """The ids that a mask allows."""
    return [int(token) for token in np.flatnonzero(mask(matcher, vocab))]


def matcher_of(kind: str, text: str = "", tokens: FakeTokenizer | None = None) -> Matcher:
    tokens = tokens or FakeTokenizer()
    compiler = GrammarCompiler(tokens, tokens.vocab_size)
    return compiler.compile(Guide(kind, text)).matcher()  # type: ignore[arg-type]


def walk(
    matcher: Matcher, rng: random.Random, ends: Sequence[int], vocab: int, most: int = 200
) -> list[int] | None:
    """The tokens of one complete answer without its end; None if it grew beyond `most`.

    It ends as soon as it may with probability 1/2, and otherwise prefers what closes JSON texts.
    """
    taken: list[int] = []
    while not matcher.done:
        may = mask(matcher, vocab)
        assert matcher.error is None, matcher.error
        assert may.any()
        over = [token for token in ends if may[token]]
        may[over] = False
        if over and (not may.any() or rng.random() < 0.5):
            matcher.take(rng.choice(over))
            assert matcher.done
            return taken
        ids = np.flatnonzero(may)
        closing = [token for token in (34, 93, 125) if may[token]]  # " ] } of the fake
        token = int(ids[rng.randrange(len(ids))])
        if closing and rng.random() < 0.3:
            token = rng.choice(closing)
        matcher.take(token)
        assert matcher.error is None, matcher.error
        taken.append(token)
        if len(taken) > most:
            return None
    return taken


def follow(matcher: Matcher, tokens: Sequence[int], vocab: int = 128) -> bool:
    """Whether each token is allowed in turn, and the text is then complete."""
    for token in tokens:
        if token not in allowed(matcher, vocab):
            return False
        matcher.take(token)
    return matcher.done or 0 in allowed(matcher, vocab)


def accepts(kind: str, condition: str, text: str) -> bool:
    """Whether a text of ASCII characters conforms."""
    return follow(matcher_of(kind, condition), text.encode())
