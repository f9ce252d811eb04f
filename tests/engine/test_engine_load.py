"""Ten thousand random requests: whatever the load, each is answered as if it were alone.

Who is admitted when is checked step by step in test_scheduler_load; here it is what comes out.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from tpuinfer.engine import engine as engine_module
from tpuinfer.engine.choices import split
from tpuinfer.engine.engine import Engine
from tpuinfer.engine.request import Delta, FinishReason, Request, SamplingParams
from tpuinfer.engine.runner import PrefillWork
from tpuinfer.testing.constraint import FakeConstraint
from tpuinfer.testing.fake import FakePending, FakeRunner, FakeTokenizer, add_up, answer

VOCAB = 16
CAPACITIES = (12, 24, 48)
CHUNK = 8
BUCKETS = (2, 4, 8)
MAX_TOKENS = 12
CROWD = 100  # nobody comes while so many are here


@dataclass(frozen=True)
class Setting:
    """What an engine is made of: `counts` slots a shard in each class; times in steps.

    `background` is the part of the prompts that are background requests.
    """

    counts: tuple[int, ...] = (2,)
    shards: int = 1
    rows: int = 1
    rolls: bool = False
    steps: int = 1
    wait: float = 0.0
    background: float = 0.0

    @property
    def classes(self) -> list[tuple[int, int]]:
        counts = [count * self.shards for count in self.counts]
        return list(zip(counts, CAPACITIES[-len(counts) :], strict=True))


Name = tuple[int, int]


def name_of(one: Request | PrefillWork) -> Name:
    """Params are passed through, so that they and the choice name a request."""
    return id(one.params), one.choice


class Condition(NamedTuple):
    """What a constrained request may pick, and after how many tokens it is done, or fails."""

    key: int
    done: int | None
    fails: int | None

    def allowed(self, tokens: Sequence[int]) -> list[int]:
        """Two thirds of the vocabulary, depending on all that was picked so far."""
        return [t for t in range(VOCAB) if (7 * t + 3 * sum(tokens) + self.key) % 3]

    def constraint(self) -> FakeConstraint:
        return FakeConstraint(self.allowed, done=self.done, fails=self.fails)


class WatchedRunner(FakeRunner):
    """Also notes whose prompt each slot was opened for; see `name_of`."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(
            setting.classes,
            setting.shards,
            rolls=setting.rolls,
            buckets=BUCKETS,
            prefill_rows=setting.rows,
            vocab=VOCAB,
            rule=add_up,
        )
        self.opened: list[Name] = []
        self.holders: dict[int, Name] = {}
        self.replaced: list[Name] = []
        self.ended: set[Name] = set()

    def prefill(self, work: Sequence[PrefillWork]) -> FakePending:
        for one in work:
            name = name_of(one)
            if one.start == 0:
                if one.slot in self.holders:
                    self.replaced.append(self.holders[one.slot])
                self.holders[one.slot] = name
                self.opened.append(name)
            assert self.holders[one.slot] == name, f"a stranger's chunk in slot {one.slot}"
        return super().prefill(work)


@dataclass
class Ask:
    """A request, and what has come of it."""

    request: Request
    condition: Condition | None = None
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    prompt: list[float | None] | None = None
    prompt_top: list[dict[int, float] | None] | None = None
    ends: list[tuple[FinishReason | None, str | int | None]] = field(default_factory=list)


def random_asks(name: str, chance: random.Random, setting: Setting) -> list[Ask]:
    characters = [chr(token) for token in range(VOCAB)]
    most = chance.choice([None, 1, 2, chance.randint(1, MAX_TOKENS)])
    longest = 2 * CAPACITIES[-1] if setting.rolls else CAPACITIES[-1] - 1
    size = chance.choice([1, chance.randint(1, CHUNK), chance.randint(1, longest)])
    least = chance.randint(0, min(most or MAX_TOKENS, max(0, CAPACITIES[-1] - size)))
    condition = None
    if chance.random() < 0.4:
        condition = Condition(
            chance.randrange(3),
            done=chance.choice([None, chance.randrange(MAX_TOKENS)]),
            fails=chance.choice([None, None, chance.randrange(MAX_TOKENS)]),
        )
    params = SamplingParams(
        n=chance.choice([1, 1, 1, 3]),
        temperature=chance.choice([0.0, 1.0]),
        seed=chance.randrange(VOCAB),
        max_tokens=most,
        min_tokens=0 if condition else chance.choice([0, 0, least]),
        ignore_eos=chance.random() < 0.5,
        stop=["".join(chance.choices(characters, k=2))] if chance.random() < 0.3 else (),
        stop_token_ids=[chance.randrange(VOCAB)] if chance.random() < 0.2 else (),
        skip_special_tokens=False,
        logprobs=chance.choice([None, None, 0, 3]),
        prompt_logprobs=chance.choice([None, None, 0, 2]),
    )
    make = condition.constraint if condition else None
    prompt = chance.choices(range(VOCAB), k=size)
    behind = chance.random() < setting.background
    requests = split(name, prompt, params, constraint=make, background=behind)
    return [Ask(one, condition) for one in requests]


def limit_of(request: Request, rolls: bool) -> int:
    context, asked = CAPACITIES[-1], request.params.max_tokens
    if rolls:
        return asked or context
    return min(asked or context, context - len(request.prompt_token_ids))


def alone(ask: Ask, rolls: bool) -> tuple[list[int], str, tuple[FinishReason, str | int | None]]:
    """Tokens, text and end of a request by the rule itself, without an engine."""
    request, params, condition = ask.request, ask.request.params, ask.condition
    own = () if params.ignore_eos else (0,)
    stop_ids = (*own, *params.stop_token_ids)
    shift = 0 if params.temperature == 0 else params.seed + request.choice

    def allowed(tokens: Sequence[int]) -> set[int]:
        left = set(condition.allowed(tokens) if condition else range(VOCAB))
        return left - set(stop_ids) if len(tokens) < params.min_tokens else left

    tokens = answer(
        request.prompt_token_ids,
        limit=limit_of(request, rolls),
        stop_ids=stop_ids,
        shift=shift,
        vocab=VOCAB,
        rule=add_up,
        capacity=CAPACITIES[-1],
        allowed=allowed,
    )
    text, end = "", ("length", None)
    for count in range(len(tokens) + 1):
        if count:
            token = tokens[count - 1]
            if token in stop_ids:
                return tokens, text, ("stop", None if token in own else token)
            text += "<end>" if token == 0 else chr(token)
            for stop in params.stop:
                if text.endswith(stop) and count > params.min_tokens:
                    return tokens[:count], text.removesuffix(stop), ("stop", stop)
        if condition and count == condition.fails:
            return tokens[:count], text, ("error", None)
        if condition and count == condition.done:
            return tokens[:count], text, ("stop", None)
    return tokens, text, end


def scores_of(
    request: Request,
) -> tuple[list[float | None] | None, list[dict[int, float] | None] | None]:
    """The fake's log-probabilities of a prompt, and two alternatives each where they were asked."""
    asked = request.params.prompt_logprobs
    if asked is None:
        return None, None
    tokens = request.prompt_token_ids[1:]
    top = [None, *[{(t + i) % VOCAB: -t / VOCAB - i for i in range(asked)} for t in tokens]]
    return [None, *[-t / VOCAB for t in tokens]], top if asked else None


def top_of(request: Request, tokens: Sequence[int]) -> list[dict[int, float]] | None:
    """The fake's alternatives to these tokens, three each where they were asked for."""
    if not request.params.logprobs:
        return None
    return [{(t + i) % VOCAB: -t / VOCAB - i for i in range(3)} for t in tokens]


class Clock:
    """Stands in for `time` in the engine: a step takes a second, a nap nothing."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 0.001


class Load:
    """Random arrivals and aborts on one engine, with what must hold checked after every step."""

    def __init__(self, chance: random.Random, setting: Setting) -> None:
        self.chance, self.setting = chance, setting
        self.clock = Clock()
        self.runner = WatchedRunner(setting)
        self.engine = Engine(
            self.runner,
            FakeTokenizer(VOCAB),
            steps=setting.steps,
            max_waiting=10**6,
            prefill_wait=setting.wait,
        )
        self.live: dict[str, Ask] = {}
        self.done: list[Ask] = []
        self.aborted: list[Ask] = []
        self.preempted: list[Request] = []
        self.seen = self.arrived = 0

    def arrive(self) -> None:
        for ask in random_asks(f"r{self.arrived}", self.chance, self.setting):
            self.engine.add(ask.request)
            self.live[ask.request.request_id] = ask
            self.arrived += 1

    def abort(self) -> None:
        name = self.chance.choice(list(self.live))
        assert self.engine.abort(name)
        assert not self.engine.abort(name)
        ask = self.live.pop(name)
        self.runner.ended.add(name_of(ask.request))
        self.aborted.append(ask)

    def step(self) -> None:
        self.clock.now += 1
        before = len(self.runner.events)
        for delta in self.engine.step():
            self.hear(delta)
        taken = [name for name in self.runner.replaced if name not in self.runner.ended]
        assert not taken, f"the slots of {taken} are given away"
        self.runner.replaced.clear()
        self.check_pipeline(self.runner.events[before:])
        metrics = self.engine.metrics
        assert metrics.running + metrics.waiting == len(self.live)

    def hear(self, delta: Delta) -> None:
        ask = self.live[delta.request_id]  # KeyError: finished, aborted or never seen
        assert delta.choice == ask.request.choice
        if delta.finish_reason == "preempted":
            self.again(ask, delta)
            return
        if not delta.token_ids:
            assert ask.condition
            assert 0 in (ask.condition.done, ask.condition.fails)
        elif not ask.tokens:
            ask.prompt, ask.prompt_top = delta.prompt_logprobs, delta.prompt_top_logprobs
            assert (ask.prompt, ask.prompt_top) == scores_of(ask.request)
        assert not ask.tokens or delta.prompt_logprobs is None
        ask.tokens += delta.token_ids
        ask.text += delta.text
        if delta.token_ids:
            assert (delta.logprobs is None) is (ask.request.params.logprobs is None)
            assert delta.top_logprobs == top_of(ask.request, delta.token_ids)
        assert (delta.error is None) is (delta.finish_reason != "error")
        if delta.finish_reason is not None:
            ask.ends.append((delta.finish_reason, delta.stop_reason))
            self.runner.ended.add(name_of(ask.request))
            self.done.append(self.live.pop(delta.request_id))

    def again(self, ask: Ask, delta: Delta) -> None:
        """A background request lost its slot: what came is void, and it joins the queue anew."""
        old = ask.request
        assert old.background
        assert delta == Delta(old.request_id, finish_reason="preempted", choice=old.choice)
        tokens, text, _ = alone(ask, self.setting.rolls)
        assert ask.tokens == tokens[: len(ask.tokens)]
        assert text.startswith(ask.text)
        self.runner.ended.add(name_of(old))
        self.preempted.append(old)
        fresh = ask.condition.constraint() if ask.condition else None
        ask.request = replace(old, params=replace(old.params), constraint=fresh)
        ask.tokens, ask.text = [], ""
        self.engine.add(ask.request)

    def check_pipeline(self, events: list[tuple[str, int]]) -> None:
        """Masks, prefill, decode, then reads: all but the newest dispatch, or all of them."""
        kinds = [kind for kind, _ in events]
        order = ["constrain", "prefill", "decode", "result"]
        assert kinds == sorted(kinds, key=order.index)
        assert all(kinds.count(kind) <= 1 for kind in order[:-1])
        sent = len(self.runner.sent)
        reads = [number for kind, number in events if kind == "result"]
        last = sent if len(reads) == len(kinds) else sent - 1
        assert reads == list(range(self.seen, last))
        self.seen = last

    def check_answers(self) -> None:
        for ask in self.done:
            tokens, text, end = alone(ask, self.setting.rolls)
            assert (ask.tokens, ask.text, ask.ends) == (tokens, text, [end])
        for ask in self.aborted:
            tokens, text, _ = alone(ask, self.setting.rolls)
            assert ask.tokens == tokens[: len(ask.tokens)]
            assert text.startswith(ask.text)
            assert ask.ends == []

    def check_end(self) -> None:
        """All have ended; each was opened once, and only the aborted may never have been."""
        assert not self.live
        assert len(self.done) + len(self.aborted) == self.arrived
        metrics = self.engine.metrics
        assert sum(metrics.finished.values()) == self.arrived + len(self.preempted)
        assert metrics.preemptions == len(self.preempted)
        assert (metrics.background_running, metrics.background_waiting) == (0, 0)
        assert (metrics.running, metrics.waiting) == (0, 0)
        assert (metrics.ring_tokens, metrics.waiting_tokens) == (0, 0)
        opened = set(self.runner.opened)
        assert len(opened) == len(self.runner.opened)
        assert opened >= {name_of(ask.request) for ask in self.done if ask.tokens}
        self.check_answers()

    def run(self, requests: int, arrivals: float, aborts: float) -> None:
        """`arrivals` a step on average; each step aborts one with probability `aborts`."""
        owed = 0.0
        with mock.patch.object(engine_module, "time", self.clock):
            while self.engine.has_work or self.arrived < requests:
                owed += self.chance.random() * 2 * arrivals
                while owed >= 1 and self.arrived < requests and len(self.live) < CROWD:
                    self.arrive()
                    owed -= 1
                self.step()
                if self.live and self.chance.random() < aborts:
                    self.abort()
        self.check_end()


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    setting=st.builds(
        Setting,
        counts=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
        shards=st.sampled_from([1, 1, 2, 4]),
        rows=st.sampled_from([1, 1, 2, 4]),
        rolls=st.booleans(),
        steps=st.sampled_from([1, 1, 2, 5]),
        wait=st.sampled_from([0, 0, 3]),
        background=st.sampled_from([0.0, 0.5, 0.9]),
    ),
    arrivals=st.sampled_from([0.3, 1.0, 3.0, 200.0]),
    aborts=st.sampled_from([0.0, 0.05, 0.3]),
)
def test_every_request_is_answered_once_as_if_alone(
    seed: int, setting: Setting, arrivals: float, aborts: float
) -> None:
    Load(random.Random(seed), setting).run(100, arrivals, aborts)


def test_ten_thousand_requests() -> None:
    setting = Setting(counts=(4, 2, 2), shards=2, rows=4, steps=2, wait=2)
    load = Load(random.Random(0), setting)
    load.run(10_000, arrivals=2.0, aborts=0.05)
    assert len(load.done) > 9000


def test_ten_thousand_requests_of_both_kinds() -> None:
    setting = Setting(counts=(4, 2, 2), shards=2, rows=4, steps=2, wait=2, background=0.5)
    load = Load(random.Random(1), setting)
    load.run(10_000, arrivals=1.0, aborts=0.05)
    assert len(load.done) > 9000
    assert len(load.preempted) > 300
