"""A runner and a tokenizer with hand arithmetic, for tests of everything above the accelerator.

A token id is a character (`chr(id)`), and a row counts up: the prompt "abc" is answered "def...",
until 127 is followed by 0, the end token. `FakeRunner` has the device's exact semantics and asserts
on every misuse, so an engine that breaks the contract of `runner.py` fails loudly on it.
"""

import enum
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tpuinfer.engine.request import MAX_STOP_IDS
from tpuinfer.engine.runner import PrefillWork, StepTokens

Rule = Callable[[Sequence[int], int], int]
"""(tokens of the row so far, shift) -> the next token, before it is taken modulo the vocabulary."""


def count_up(tokens: Sequence[int], shift: int) -> int:
    """The last token plus one: "abc" -> "d". The shift is added."""
    return tokens[-1] + 1 + shift


def add_up(tokens: Sequence[int], shift: int) -> int:
    """The sum of the whole row: any foreign or missing token changes all that follow."""
    return sum(tokens) + shift


def shift_of(work: PrefillWork) -> int:
    """What sampling adds to each token: nothing when greedy, else seed + choice."""
    return 0 if work.params.temperature == 0 else work.seed + work.choice


def answer(
    prompt: Sequence[int],
    *,
    limit: int,
    stop_ids: Sequence[int] = (),
    shift: int = 0,
    vocab: int = 128,
    rule: Rule = count_up,
) -> list[int]:
    """The tokens a row generates when it is alone: what the runner must give under any load."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + limit:
        tokens.append(rule(tokens, shift) % vocab)
        if tokens[-1] in stop_ids:
            break
    return tokens[len(prompt) :]


class _State(enum.Enum):
    CLOSED = "closed"  # never opened, or left out of a decode
    FILLING = "filling"  # some of its prompt is in
    LIVE = "live"  # decoding
    STOPPED = "stopped"  # ended by a stop id or at its limit


@dataclass
class _Row:
    state: _State = _State.CLOSED
    tokens: list[int] = field(default_factory=list)
    generated: int = 0
    work: PrefillWork | None = None


class FakePending:
    """A dispatch whose tokens were fixed when it was made, however late they are read."""

    def __init__(self, tokens: StepTokens, seconds: float, read: Callable[[], None]) -> None:
        self._tokens = tokens
        self._seconds = seconds
        self._read = read

    def result(self) -> StepTokens:
        if self._seconds:
            time.sleep(self._seconds)
        self._read()
        return self._tokens


class FakeRunner:
    """`Runner` by arithmetic: next = rule(tokens of the row, shift) % vocab.

    The shift is 0 at temperature 0, else seed + choice. The log-probability of token t is
    -t / vocab, exact in float32 when vocab is a power of two.

    Attributes:
      events: what happened, in order: ("prefill", k) or ("decode", k) when dispatch k is made, and
        ("result", k) when it is read.
      sent: for each dispatch k, the slots it was for.
    """

    def __init__(
        self,
        slots: int,
        shards: int = 1,
        *,
        capacity: int = 64,
        chunk: int = 8,
        buckets: Sequence[int] | None = None,
        vocab: int = 128,
        rule: Rule = count_up,
        seconds: float = 0.0,
    ) -> None:
        """`seconds` is how long each `result` takes; `buckets` defaults to (chunk / 2, chunk)."""
        assert slots % shards == 0, f"{slots} slots do not divide over {shards} shards"
        self.slots = slots
        self.shards = shards
        self.capacity = capacity
        self.chunk = chunk
        self.buckets = tuple(buckets or sorted({max(1, chunk // 2), chunk}))
        assert self.buckets[-1] == chunk, f"last of buckets {self.buckets} is not chunk {chunk}"
        self.vocab = vocab
        self.seconds = seconds
        self.events: list[tuple[str, int]] = []
        self.sent: list[tuple[int, ...]] = []
        self._rule = rule
        self._rows = [_Row() for _ in range(slots)]

    def prefill(self, work: Sequence[PrefillWork]) -> FakePending:
        """Take one chunk a shard; the first token of each slot whose prompt ends here."""
        assert work, "a prefill of nothing"
        shards = [one.slot // (self.slots // self.shards) for one in work]
        assert len(set(shards)) == len(work), f"two works on one data shard: {shards}"
        assert len({one.bucket for one in work}) == 1, "a prefill of different buckets"
        tokens = np.full((1, self.slots), -1, np.int32)
        for one in work:
            self._check(one)
            row = self._rows[one.slot]
            if one.start == 0:
                row.tokens, row.generated = [], 0
            row.tokens.extend(one.tokens)
            row.work = one
            row.state = _State.FILLING
            if one.last:
                row.state = _State.LIVE
                tokens[0, one.slot] = self._grow(row)
        return self._dispatch("prefill", tuple(one.slot for one in work), tokens)

    def decode(self, steps: int, active: Sequence[int]) -> FakePending:
        """Up to `steps` tokens for each live row of `active`; every other live row dies."""
        assert steps >= 1, f"a decode of {steps} steps"
        assert active, "a decode of no slot"
        assert len(set(active)) == len(active), f"a slot twice in {list(active)}"
        for slot in active:
            state = self._rows[slot].state
            assert state in (_State.LIVE, _State.STOPPED), f"slot {slot} is {state.value}"
        tokens = np.full((steps, self.slots), -1, np.int32)
        chosen = set(active)
        for slot, row in enumerate(self._rows):
            if row.state is _State.LIVE and slot not in chosen:
                row.state = _State.CLOSED
            for step in range(steps):
                if row.state is not _State.LIVE:
                    break
                tokens[step, slot] = self._grow(row)
        return self._dispatch("decode", tuple(active), tokens)

    def _grow(self, row: _Row) -> int:
        assert row.work is not None
        token = self._rule(row.tokens, shift_of(row.work)) % self.vocab
        row.tokens.append(token)
        row.generated += 1
        if token in row.work.stop_ids or row.generated == row.work.limit:
            row.state = _State.STOPPED
        return token

    def _dispatch(self, kind: str, slots: tuple[int, ...], tokens: np.ndarray) -> FakePending:
        number = len(self.sent)
        self.sent.append(slots)
        self.events.append((kind, number))
        logprobs = -tokens.astype(np.float32) / np.float32(self.vocab)
        return FakePending(
            StepTokens(tokens, logprobs),
            self.seconds,
            lambda: self.events.append(("result", number)),
        )

    def _check(self, work: PrefillWork) -> None:
        row, size = self._rows[work.slot], len(work.tokens)
        assert work.bucket in self.buckets, f"bucket {work.bucket} is not of {self.buckets}"
        assert 1 <= size <= work.bucket, f"{size} tokens in bucket {work.bucket}"
        assert work.last or size == self.chunk, f"a chunk of {size} before the last"
        assert all(0 <= token < self.vocab for token in work.tokens), (
            "a token beyond the vocabulary"
        )
        if work.start:
            assert row.state is _State.FILLING, f"slot {work.slot} is {row.state.value}"
            assert work.start == len(row.tokens), f"starts at {work.start}, not {len(row.tokens)}"
        assert work.limit >= 1, f"a limit of {work.limit} tokens"
        assert work.start + size + work.limit <= self.capacity, "beyond the capacity"
        assert len(work.stop_ids) <= MAX_STOP_IDS, f"{len(work.stop_ids)} stop ids"
        assert 0 <= work.seed < 2**32, f"seed {work.seed}"


class FakeDetokenizer:
    """`chr` of each id; control tokens as their text, or left out."""

    def __init__(self, tokenizer: "FakeTokenizer", *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens

    def push(self, token: int) -> str:
        return self._tokenizer.decode([token], skip_special_tokens=self._skip)

    def flush(self) -> str:
        return ""


class FakeTokenizer:
    """A token is a character. Id 0 ends a text and reads "<end>"; there is no opening token."""

    has_chat_template = True
    bos_id: int | None = None

    def __init__(self, vocab_size: int = 128, eos_ids: tuple[int, ...] = (0,)) -> None:
        self.vocab_size = vocab_size
        self.eos_ids = eos_ids

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True
    ) -> list[int]:
        """One id a character, "?" for one beyond the vocabulary; "<end>" is 0 when parsed."""
        if parse_special:
            text = text.replace("<end>", "\0")
        start = [self.bos_id] if add_special_tokens and self.bos_id is not None else []
        return start + [ord(char) if ord(char) < self.vocab_size else ord("?") for char in text]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        kept = [one for one in ids if not (skip_special_tokens and one in self.eos_ids)]
        return "".join(map(self.token_text, kept))

    def token_text(self, token: int) -> str:
        return "<end>" if token in self.eos_ids else chr(token)

    def token_bytes(self, token: int) -> bytes:
        return self.token_text(token).encode()

    def detokenizer(self, *, skip_special_tokens: bool = True) -> FakeDetokenizer:
        return FakeDetokenizer(self, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        """A line "role:content" for each message, then "assistant:" to be continued."""
        assert not extra, f"the fake template takes no {', '.join(extra)}"
        lines = [f"{message['role']}:{_text_of(message['content'])}\n" for message in messages]
        return "".join(lines) + ("assistant:" if add_generation_prompt else "")

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return self.encode(self.apply_chat_template(messages), add_special_tokens=False)


def _text_of(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
