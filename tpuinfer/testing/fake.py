"""A runner and a tokenizer with hand arithmetic, for tests of everything above the accelerator.

A token id is a character (`chr(id)`), and a row counts up: the prompt "abc" is answered "def...",
until 127 is followed by 0, the end token. `FakeRunner` has the device's exact semantics and asserts
on every misuse, so an engine that breaks the contract of `runner.py` fails loudly on it.
"""

import enum
import time
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpuinfer.engine.request import MAX_STOP_IDS, TOP_LOGPROBS
from tpuinfer.engine.runner import PrefillWork, PromptScores, StepTokens
from tpuinfer.errors import RequestError
from tpuinfer.programs.slots import SlotLayout

Rule = Callable[[Sequence[int], int], int]
"""(tokens in the row's ring, shift) -> the next token, before it is taken modulo the vocabulary."""


def count_up(tokens: Sequence[int], shift: int) -> int:
    """The last token plus one: "abc" -> "d". The shift is added."""
    return tokens[-1] + 1 + shift


def add_up(tokens: Sequence[int], shift: int) -> int:
    """The sum of all in the ring: any foreign or missing token changes all that follow."""
    return sum(tokens) + shift


def shift_of(work: PrefillWork) -> int:
    """What sampling adds to each token: nothing when greedy, else seed + choice."""
    return 0 if work.params.temperature == 0 else work.seed + work.choice


def next_of(wanted: int, allowed: Container[int], vocab: int) -> int:
    """The first allowed token at or after the wanted one, going round."""
    around = (token % vocab for token in range(wanted, wanted + vocab))
    return next(token for token in around if token in allowed)


def answer(
    prompt: Sequence[int],
    *,
    limit: int,
    stop_ids: Sequence[int] = (),
    shift: int = 0,
    vocab: int = 128,
    rule: Rule = count_up,
    capacity: int | None = None,
    allowed: Callable[[Sequence[int]], Container[int]] | None = None,
) -> list[int]:
    """The tokens a row generates when it is alone: what the runner must give under any load.

    `capacity` is the ring's when it rolls; `allowed` takes the tokens generated so far.
    """
    tokens = list(prompt)
    while len(tokens) < len(prompt) + limit:
        wanted = rule(tokens[-capacity:] if capacity else tokens, shift)
        may = allowed(tokens[len(prompt) :]) if allowed else range(vocab)
        tokens.append(next_of(wanted, may, vocab))
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
    capacity: int
    state: _State = _State.CLOSED
    tokens: list[int] = field(default_factory=list)
    generated: int = 0
    work: PrefillWork | None = None
    mask: NDArray[np.bool_] | None = None  # sent, and nothing picked with it yet

    @property
    def alternatives(self) -> int:
        """How many alternatives to each token its request asked for."""
        return (self.work and self.work.params.logprobs) or 0


class FakePending:
    """A dispatch whose tokens were fixed when it was made, however late they are read.

    They are there at the time `ready`, of `time.monotonic`.
    """

    def __init__(self, tokens: StepTokens, ready: float, read: Callable[[], None]) -> None:
        self._tokens = tokens
        self._ready = ready
        self._read = read

    def result(self) -> StepTokens:
        left = self._ready - time.monotonic()
        if left > 0:
            time.sleep(left)
        self._read()
        return self._tokens


class FakeRunner:
    """`Runner` by arithmetic: next = rule(tokens in the row's ring, shift) % vocab.

    The shift is 0 at temperature 0, else seed + choice; the weights, a number, are added to it. A
    ring that rolls forgets its oldest tokens one by one. The log-probability of token t is -t /
    vocab, of the prompt's tokens too, exact in float32 when vocab is a power of two; the
    alternative i places behind it is token (t + i) % vocab, less likely by i.

    Where the next token may not be picked, the first one after it that may is, going round: what a
    mask leaves out, stop ids before min_tokens, and what logit_bias shifts by -100. A bias of 100
    leaves only the tokens that have it, if any. Other biases and the penalties change nothing.

    Attributes:
      weights: what `update` took last; 0 at first. Anything but a whole number does not fit.
      seconds: how long each dispatch takes, or each "prefill" and each "decode"; they run one after
        the other, as on a device, and `result` waits for the end.
      events: what happened, in order: ("prefill", k) or ("decode", k) when dispatch k is made, and
        ("result", k) when it is read; ("constrain", k) before dispatch k.
      sent: for each dispatch k, the slots that could pick a token, or had a chunk.
      quotas: for each decode, what it was given.
    """

    def __init__(
        self,
        slots: int | Sequence[tuple[int, int]],
        shards: int = 1,
        *,
        capacity: int = 64,
        rolls: bool = False,
        buckets: Sequence[int] = (4, 8),
        prefill_rows: int | Mapping[int, int] = 1,
        vocab: int = 128,
        rule: Rule = count_up,
    ) -> None:
        """`slots` of one `capacity`, or ring classes as pairs (slots, capacity), shortest first.

        `prefill_rows`: per data shard, for all buckets or for each.
        """
        classes = [(slots, capacity)] if isinstance(slots, int) else slots
        counts, capacities = zip(*classes, strict=True)
        self.layout = SlotLayout(counts, capacities, shards)
        self.rolls = rolls
        self.buckets = tuple(buckets)
        self.chunk = self.buckets[-1]
        self.prefill_rows: Mapping[int, int] = (
            dict.fromkeys(buckets, prefill_rows) if isinstance(prefill_rows, int) else prefill_rows
        )
        self.recompiles = 0
        self.vocab = vocab
        self.weights = 0
        self.seconds: float | Mapping[str, float] = 0.0
        self.events: list[tuple[str, int]] = []
        self.sent: list[tuple[int, ...]] = []
        self.quotas: list[dict[int, int]] = []
        self._rule = rule
        self._free_at = 0.0
        self._rows = [_Row(self.layout.capacity_of(slot)) for slot in range(self.layout.slots)]

    def prefill(self, work: Sequence[PrefillWork]) -> FakePending:
        """Take one chunk a row; the first token of each slot whose prompt ends here."""
        self._check_batch(work)
        tokens = np.full((1, self.layout.slots), -1, np.int32)
        prompts = {}
        for one in work:
            self._check(one)
            row = self._rows[one.slot]
            if one.start == 0:
                row.tokens, row.generated = [], 0
            row.tokens.extend(one.tokens)
            row.work = one
            row.state = _State.FILLING
            if one.params.prompt_logprobs is not None:
                prompts[one.slot] = self._scores(one)
            if one.last:
                row.state = _State.LIVE
                tokens[0, one.slot] = self._grow(row)
        return self._dispatch("prefill", tuple(one.slot for one in work), tokens, prompts)

    def decode(self, steps: int, quotas: Mapping[int, int]) -> FakePending:
        """At most its quota of tokens for each live row that is named; every other one dies."""
        assert steps >= 1, f"a decode of {steps} steps"
        assert any(quotas.values()), f"a decode in which no slot may pick: {dict(quotas)}"
        for slot, quota in quotas.items():
            state = self._rows[slot].state
            assert state in (_State.LIVE, _State.STOPPED), f"slot {slot} is {state.value}"
            assert 0 <= quota <= steps, f"a quota of {quota} in {steps} steps"
        tokens = np.full((steps, self.layout.slots), -1, np.int32)
        for slot, row in enumerate(self._rows):
            if row.state is _State.LIVE and slot not in quotas:
                row.state = _State.CLOSED
            for step in range(quotas.get(slot, 0)):
                if row.state is not _State.LIVE:
                    break
                tokens[step, slot] = self._grow(row)
        self.quotas.append(dict(quotas))
        return self._dispatch("decode", tuple(slot for slot in quotas if quotas[slot]), tokens)

    def constrain(self, masks: Mapping[int, NDArray[np.int32]]) -> None:
        """Each mask is good for one token of its slot."""
        assert masks, "masks of no slot"
        for slot, words in masks.items():
            assert words.dtype == np.int32, f"a mask of {words.dtype}"
            assert words.shape == (-(-self.vocab // 32),), f"a mask of {words.shape} words"
            bits = np.unpackbits(words.astype("<i4").view(np.uint8), bitorder="little")
            self._rows[slot].mask = bits[: self.vocab].astype(bool)
            assert bits[: self.vocab].any(), f"a mask without a token for slot {slot}"
        self.events.append(("constrain", len(self.sent)))

    def update(self, params: Any) -> None:
        """Take another number, to be added to every shift."""
        if not isinstance(params, int):
            raise RequestError(f"params is {params!r}: the fake's weights are one whole number")
        self.weights = params

    def _grow(self, row: _Row) -> int:
        assert row.work is not None
        shift = shift_of(row.work) + self.weights
        wanted = self._rule(row.tokens[-row.capacity :], shift) % self.vocab
        token = next_of(wanted, self._allowed(row, row.work), self.vocab)
        row.tokens.append(token)
        row.generated += 1
        if token in row.work.stop_ids or row.generated == row.work.limit:
            row.state = _State.STOPPED
        return token

    def _allowed(self, row: _Row, work: PrefillWork) -> Container[int]:
        """The tokens that a row may pick now; uses up its mask."""
        allowed: Container[int] = range(self.vocab)
        bias, barred = work.params.logit_bias, row.generated < work.params.min_tokens
        if work.constrained:
            assert row.mask is not None, f"slot {work.slot} picks without a fresh mask"
            allowed, row.mask = set(np.flatnonzero(row.mask).tolist()), None
        if bias or barred:
            left = {token for token in range(self.vocab) if token in allowed}
            left -= {token for token in bias if bias[token] == -100}
            left -= set(work.stop_ids) if barred else set()
            allowed = {token for token in left if bias.get(token) == 100} or left
        return allowed

    def _scores(self, work: PrefillWork) -> PromptScores:
        """By the same arithmetic as for tokens that are picked."""
        behind = [] if work.last else [work.following]
        targets = np.array([*work.tokens[1:], *behind], np.int32)
        logprobs = -targets.astype(np.float32) / np.float32(self.vocab)
        top = _behind(targets, logprobs, work.params.prompt_logprobs or 0, self.vocab)
        return PromptScores(logprobs, *top)

    def _dispatch(
        self,
        kind: str,
        slots: tuple[int, ...],
        tokens: NDArray[np.int32],
        prompts: Mapping[int, PromptScores] | None = None,
    ) -> FakePending:
        number = len(self.sent)
        self.sent.append(slots)
        self.events.append((kind, number))
        logprobs = -tokens.astype(np.float32) / np.float32(self.vocab)
        top_ids, top_logprobs = self._alternatives(slots, tokens, logprobs)
        takes = self.seconds if isinstance(self.seconds, float | int) else self.seconds[kind]
        self._free_at = max(self._free_at, time.monotonic()) + takes
        return FakePending(
            StepTokens(tokens, logprobs, top_ids, top_logprobs, prompts or {}),
            self._free_at,
            lambda: self.events.append(("result", number)),
        )

    def _alternatives(
        self, slots: Sequence[int], tokens: NDArray[np.int32], logprobs: NDArray[np.float32]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]] | tuple[None, None]:
        """Ids and log-probabilities [n, slots, TOP_LOGPROBS] where a row of `slots` asked."""
        asked = {slot: self._rows[slot].alternatives for slot in slots}
        if not any(asked.values()):
            return None, None
        ids = np.full((*tokens.shape, TOP_LOGPROBS), -1, np.int32)
        scores = np.zeros(ids.shape, np.float32)
        for slot, count in asked.items():
            ids[:, slot], scores[:, slot] = _behind(
                tokens[:, slot], logprobs[:, slot], count, self.vocab
            )
        return ids, scores

    def _check_batch(self, work: Sequence[PrefillWork]) -> None:
        assert work, "a prefill of nothing"
        slots = [one.slot for one in work]
        assert len(set(slots)) == len(slots), f"two works for one slot: {slots}"
        bucket = work[0].bucket
        assert all(one.bucket == bucket for one in work), "a prefill of different buckets"
        assert bucket in self.buckets, f"bucket {bucket} is not of {self.buckets}"
        for shard, rows in Counter(map(self.layout.shard_of, slots)).items():
            most = self.prefill_rows[bucket]
            assert rows <= most, f"{rows} works on data shard {shard}: it takes {most}"

    def _check(self, work: PrefillWork) -> None:
        row, size = self._rows[work.slot], len(work.tokens)
        assert 1 <= size <= work.bucket, f"{size} tokens in bucket {work.bucket}"
        assert work.last or size == self.chunk, f"a chunk of {size} before the last"
        assert all(0 <= token < self.vocab for token in work.tokens), (
            "a token beyond the vocabulary"
        )
        if work.start:
            assert row.state is _State.FILLING, f"slot {work.slot} is {row.state.value}"
            assert work.start == len(row.tokens), f"starts at {work.start}, not {len(row.tokens)}"
            said = row.work and row.work.following
            assert said == work.tokens[0], f"{work.tokens[0]} follows, and not {said} as was said"
        assert work.last is (work.following < 0), f"token {work.following} follows the prompt"
        assert work.limit >= 1, f"a limit of {work.limit} tokens"
        end = work.start + size + work.limit
        assert self.rolls or end <= row.capacity, f"{end} tokens in a ring of {row.capacity}"
        assert len(work.stop_ids) <= MAX_STOP_IDS, f"{len(work.stop_ids)} stop ids"
        assert 0 <= work.seed < 2**32, f"seed {work.seed}"


def _behind(
    tokens: NDArray[np.int32], logprobs: NDArray[np.float32], count: int, vocab: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Each token [m] and those behind it, `count` in all, as [m, TOP_LOGPROBS]; id -1 beyond."""
    ids = np.full((tokens.size, TOP_LOGPROBS), -1, np.int32)
    scores = np.zeros(ids.shape, np.float32)
    places = np.arange(min(count, vocab), dtype=np.int32)
    ids[:, : places.size] = (tokens[:, None] + places) % vocab
    scores[:, : places.size] = logprobs[:, None] - places.astype(np.float32)
    return ids, scores


class FakeDetokenizer:
    """`chr` of each id; control tokens as their text, or left out."""

    def __init__(
        self, tokenizer: "FakeTokenizer", *, skip_special_tokens: bool, keep: frozenset[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._keep = keep

    def push(self, token: int) -> str:
        skip = self._skip and token not in self._keep
        return self._tokenizer.decode([token], skip_special_tokens=skip)

    def flush(self) -> str:
        return ""


class FakeTokenizer:
    """A token is a character. Id 0 ends a text and reads "<end>"; there is no opening token."""

    has_chat_template = True
    has_text = True
    template_source = ""
    bos_id: int | None = None

    def __init__(self, vocab_size: int = 128, eos_ids: tuple[int, ...] = (0,)) -> None:
        self.vocab_size = vocab_size
        self.eos_ids = eos_ids
        self.controls = {"<end>": eos_ids[0]} if eos_ids else {}
        self.openers: dict[int, bytes] = {}

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False
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

    def detokenizer(
        self, *, skip_special_tokens: bool = True, keep: frozenset[int] = frozenset()
    ) -> FakeDetokenizer:
        return FakeDetokenizer(self, skip_special_tokens=skip_special_tokens, keep=keep)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        strftime_now: Callable[[str], str] | None = None,
        **extra: Any,
    ) -> str:
        """A line "role:content" for each message, then "assistant:" to be continued.

        It never writes the date.
        """
        assert not extra, f"the fake template takes no {', '.join(extra)}"
        lines = [f"{message['role']}:{_text_of(message['content'])}\n" for message in messages]
        return "".join(lines) + ("assistant:" if add_generation_prompt else "")

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **extra: Any) -> list[int]:
        return self.encode(self.apply_chat_template(messages, **extra), add_special_tokens=False)


def _text_of(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
