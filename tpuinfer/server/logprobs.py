"""Log-probabilities in the two shapes that OpenAI's endpoints have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tpuinfer.engine.request import Delta

LEAST_LOGPROB = -9999.0
"""JSON has no minus infinity; this is what OpenAI sends for it."""


class TokenTexts(Protocol):
    """The part of a tokenizer that shows single tokens."""

    def token_text(self, token_id: int, /) -> str: ...

    def token_bytes(self, token_id: int, /) -> bytes: ...


@dataclass(frozen=True)
class Scored:
    """Tokens with their log-probabilities (None: it has none, being the first of a prompt).

    Attributes:
      top: the most likely tokens at each place, best first; None: not asked for.
    """

    token_ids: Sequence[int]
    logprobs: Sequence[float | None]
    top: Sequence[Mapping[int, float] | None] | None = None

    @classmethod
    def answer(cls, delta: Delta) -> "Scored":
        """The tokens of a delta."""
        return cls(delta.token_ids, delta.logprobs or (), delta.top_logprobs)

    @classmethod
    def prompt(cls, token_ids: Sequence[int], delta: Delta) -> "Scored":
        """The tokens of the prompt, scored by its first delta."""
        return cls(token_ids, delta.prompt_logprobs or (), delta.prompt_top_logprobs)

    def __add__(self, other: "Scored") -> "Scored":
        tops = None if self.top is None or other.top is None else [*self.top, *other.top]
        return Scored([*self.token_ids, *other.token_ids], [*self.logprobs, *other.logprobs], tops)


def chat_logprobs(tokenizer: TokenTexts, scored: Scored) -> dict[str, Any]:
    """The chat endpoint's: an entry for each token, with its bytes."""
    tops = scored.top or [None] * len(scored.token_ids)
    content = []
    for token, logprob, top in zip(scored.token_ids, scored.logprobs, tops, strict=True):
        entry = _entry(tokenizer, token, logprob)
        entry["top_logprobs"] = [_entry(tokenizer, *one) for one in (top or {}).items()]
        content.append(entry)
    return {"content": content, "refusal": None}


def completion_logprobs(tokenizer: TokenTexts, scored: Scored, offset: int) -> dict[str, Any]:
    """The completions endpoint's: parallel lists. `offset`: characters of the tokens before these.

    A dict of the most likely tokens has the chosen one too, as OpenAI's.
    """
    tokens = [tokenizer.token_text(token) for token in scored.token_ids]
    offsets = []
    for text in tokens:
        offsets.append(offset)
        offset += len(text)
    logprobs = [_finite(logprob) for logprob in scored.logprobs]
    tops: list[dict[str, float] | None] | None = None
    if scored.top is not None:
        tops = []
        for text, logprob, top in zip(tokens, logprobs, scored.top, strict=True):
            tops.append(None if top is None else _by_text(tokenizer, top))
            if tops[-1] is not None and logprob is not None:
                tops[-1].setdefault(text, logprob)
    return {
        "tokens": tokens,
        "token_logprobs": logprobs,
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def _by_text(tokenizer: TokenTexts, top: Mapping[int, float]) -> dict[str, float]:
    """Of tokens that read alike, parts of characters above all, the likeliest stands."""
    found: dict[str, float] = {}
    for token, logprob in top.items():
        found.setdefault(tokenizer.token_text(token), max(logprob, LEAST_LOGPROB))
    return found


def _entry(tokenizer: TokenTexts, token: int, logprob: float | None) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(token),
        "logprob": _finite(logprob),
        "bytes": list(tokenizer.token_bytes(token)),
    }


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST_LOGPROB)
