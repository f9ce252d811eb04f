"""Ten thousand random requests: whatever the load, each is answered as if it were alone."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tpuinfer.engine.engine import Engine
from tpuinfer.engine.request import Delta, FinishReason, Request, SamplingParams
from tpuinfer.engine.runner import PrefillWork
from tpuinfer.testing.fake import FakePending, FakeRunner, FakeTokenizer, add_up, answer

VOCAB = 16
CAPACITY = 48
CHUNK = 8
REQUESTS = 200
EXAMPLES = 50
MAX_TOKENS = 12


class WatchedRunner(FakeRunner):
    """Also notes whose prompt each slot was opened for; params are passed through, so they name."""

    def __init__(self, slots: int, shards: int) -> None:
        super().__init__(
            slots,
            shards,
            capacity=CAPACITY,
            chunk=CHUNK,
            buckets=(2, 4, 8),
            vocab=VOCAB,
            rule=add_up,
        )
        self.opened: list[list[SamplingParams]] = [[] for _ in range(shards)]
        self.holders: dict[int, SamplingParams] = {}
        self.ended: set[int] = set()

    def prefill(self, work: Sequence[PrefillWork]) -> FakePending:
        for one in work:
            if one.start == 0:
                holder = self.holders.get(one.slot)
                assert holder is None or id(holder) in self.ended, f"slot {one.slot} is taken"
                self.holders[one.slot] = one.params
                self.opened[one.slot * self.shards // self.slots].append(one.params)
            assert self.holders[one.slot] is one.params, f"a stranger's chunk in slot {one.slot}"
        return super().prefill(work)


@dataclass
class Ask:
    """A request, and what has come of it."""

    request: Request
    deadline: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    ends: list[tuple[FinishReason | None, str | int | None]] = field(default_factory=list)


def random_request(name: str, chance: random.Random) -> Request:
    characters = [chr(token) for token in range(VOCAB)]
    params = SamplingParams(
        temperature=chance.choice([0.0, 1.0]),
        seed=chance.randrange(VOCAB),
        max_tokens=chance.choice([None, 1, 2, chance.randint(1, MAX_TOKENS)]),
        ignore_eos=chance.random() < 0.5,
        stop=["".join(chance.choices(characters, k=2))] if chance.random() < 0.3 else (),
        stop_token_ids=[chance.randrange(VOCAB)] if chance.random() < 0.2 else (),
        skip_special_tokens=False,
    )
    size = chance.choice([1, chance.randint(1, CHUNK), chance.randint(1, CAPACITY - 1)])
    return Request(name, chance.choices(range(VOCAB), k=size), params, chance.randrange(3))


def limit_of(request: Request) -> int:
    room = CAPACITY - len(request.prompt_token_ids)
    return min(request.params.max_tokens or room, room)


def alone(request: Request) -> tuple[list[int], str, tuple[FinishReason, str | int | None]]:
    """Tokens, text and end of a request by the rule itself, without an engine."""
    params = request.params
    own = () if params.ignore_eos else (0,)
    stop_ids = (*own, *params.stop_token_ids)
    shift = 0 if params.temperature == 0 else params.seed + request.choice
    tokens = answer(
        request.prompt_token_ids,
        limit=limit_of(request),
        stop_ids=stop_ids,
        shift=shift,
        vocab=VOCAB,
        rule=add_up,
    )
    text = ""
    for count, token in enumerate(tokens, 1):
        if token in stop_ids:
            return tokens, text, ("stop", None if token in own else token)
        text += "<end>" if token == 0 else chr(token)
        for stop in params.stop:
            if (place := text.find(stop)) >= 0:
                return tokens[:count], text[:place], ("stop", stop)
    return tokens, text, ("length", None)


def work_of(request: Request) -> int:
    """Steps it needs at most when every step does one thing, and to be read and freed."""
    return -(-len(request.prompt_token_ids) // CHUNK) + limit_of(request) + 2


class Load:
    """Random arrivals and aborts on one engine, with what must hold checked after every step."""

    def __init__(self, chance: random.Random, slots: int, shards: int, steps: int) -> None:
        self.chance = chance
        self.runner = WatchedRunner(slots, shards)
        self.engine = Engine(self.runner, FakeTokenizer(VOCAB), steps=steps, max_waiting=10**6)
        self.live: dict[str, Ask] = {}
        self.done: list[Ask] = []
        self.aborted: list[Ask] = []
        self.order: list[SamplingParams] = []
        self.clock = 0
        self.seen = 0

    def arrive(self, name: str) -> None:
        request = random_request(name, self.chance)
        ahead = sum(work_of(ask.request) for ask in self.live.values())
        self.engine.add(request)
        self.order.append(request.params)
        self.live[name] = Ask(request, deadline=self.clock + ahead + work_of(request))

    def abort(self) -> None:
        name = self.chance.choice(list(self.live))
        assert self.engine.abort(name)
        assert not self.engine.abort(name)
        ask = self.live.pop(name)
        self.runner.ended.add(id(ask.request.params))
        self.aborted.append(ask)

    def step(self) -> None:
        self.clock += 1
        before = len(self.runner.events)
        for delta in self.engine.step():
            self.hear(delta)
        self.check_pipeline(self.runner.events[before:])
        metrics = self.engine.metrics
        assert metrics.running + metrics.waiting == len(self.live)
        late = [name for name, ask in self.live.items() if ask.deadline < self.clock]
        assert not late, f"{late} starve"

    def hear(self, delta: Delta) -> None:
        ask = self.live[delta.request_id]  # KeyError: finished, aborted or never seen
        assert delta.token_ids
        ask.tokens += delta.token_ids
        ask.text += delta.text
        if delta.finish_reason is not None:
            ask.ends.append((delta.finish_reason, delta.stop_reason))
            self.runner.ended.add(id(ask.request.params))
            self.done.append(self.live.pop(delta.request_id))

    def check_pipeline(self, events: list[tuple[str, int]]) -> None:
        """Prefill, then decode, then reads: all but the newest dispatch, or all of them."""
        kinds = [kind for kind, _ in events]
        assert kinds == sorted(kinds, key=["prefill", "decode", "result"].index)
        assert kinds.count("prefill") <= 1
        assert kinds.count("decode") <= 1
        sent = len(self.runner.sent)
        reads = [number for kind, number in events if kind == "result"]
        last = sent if len(reads) == len(kinds) else sent - 1
        assert reads == list(range(self.seen, last))
        self.seen = last

    def check_answers(self) -> None:
        for ask in self.done:
            tokens, text, end = alone(ask.request)
            assert (ask.tokens, ask.text, ask.ends) == (tokens, text, [end])
        for ask in self.aborted:
            tokens, text, _ = alone(ask.request)
            assert ask.tokens == tokens[: len(ask.tokens)]
            assert text.startswith(ask.text)
            assert ask.ends == []

    def check_admission(self) -> None:
        """Opened once, on each shard in the order of arrival; only the aborted may be missing."""
        place = {id(params): number for number, params in enumerate(self.order)}
        opened = [[place[id(params)] for params in shard] for shard in self.runner.opened]
        assert all(shard == sorted(set(shard)) for shard in opened)
        assert sum(map(len, opened)) >= len(self.done)


@settings(derandomize=True, deadline=None, max_examples=EXAMPLES)
@given(
    seed=st.integers(0, 2**32 - 1),
    shards=st.sampled_from([1, 1, 2, 4]),
    per_shard=st.integers(1, 5),
    steps=st.sampled_from([1, 1, 2, 5]),
    arrivals=st.sampled_from([0.3, 1.0, 3.0, 200.0]),
    aborts=st.sampled_from([0.0, 0.05, 0.3]),
)
def test_every_request_is_answered_once_as_if_alone(
    seed: int, shards: int, per_shard: int, steps: int, arrivals: float, aborts: float
) -> None:
    chance = random.Random(seed)
    load = Load(chance, shards * per_shard, shards, steps)
    owed, arrived = 0.0, 0
    while load.engine.has_work or arrived < REQUESTS:
        owed += chance.random() * 2 * arrivals
        while owed >= 1 and arrived < REQUESTS:
            load.arrive(str(arrived))
            owed, arrived = owed - 1, arrived + 1
        load.step()
        if load.live and chance.random() < aborts:
            load.abort()
    assert not load.live
    assert len(load.done) + len(load.aborted) == REQUESTS
    assert sum(load.engine.metrics.finished.values()) == REQUESTS
    assert (load.engine.metrics.running, load.engine.metrics.waiting) == (0, 0)
    load.check_answers()
    load.check_admission()
