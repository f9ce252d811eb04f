"""Requests of every kind, served alone and in mixes, and what may not differ between the two."""

import dataclasses
import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from numpy.typing import NDArray

from tpuinfer.engine.engine import Engine
from tpuinfer.engine.request import Delta, Request, SamplingParams
from tpuinfer.engine.runner import Pending, PrefillWork, Runner
from tpuinfer.programs.buckets import Chunk
from tpuinfer.programs.compile import Program
from tpuinfer.programs.state import DecodeState
from tpuinfer.testing.fake import FakeTokenizer
from tpuinfer.testing.tiny import Tiny

LENGTHS = (1, 2, 3, 8, 15, 16, 17, 24, 31, 32, 33, 48, 49, 60)
"""Prompts around the edges of chunks of 16 and 32, and of rings of 32."""

LOGPROBS = (None, 0, 5, 20)


class Record(NamedTuple):
    """All of an answer that must be the same under any load.

    Attributes:
      tokens: ids. end: finish reason and stop reason.
      logprobs: the float32 bytes of the tokens' log-probabilities.
      top: the alternatives to each token: their ids, and the float32 bytes.
      prompt: of each token of the prompt behind the first, if it asked: the ids of its
        alternatives, and the float32 bytes of its own log-probability and theirs.
      chunks: how the prompt was cut on its way into the runner.
    """

    tokens: tuple[int, ...]
    end: tuple[str | None, str | int | None]
    logprobs: bytes
    top: tuple[tuple[tuple[int, ...], bytes], ...]
    prompt: tuple[tuple[tuple[int, ...], bytes], ...]
    chunks: tuple[Chunk, ...]


@dataclass
class Traffic:
    """What a runner was asked to do: shows that a mix was one.

    Attributes:
      slots: where each request ran, by seed and choice; these are its name here.
      chunks: how its prompt was cut.
      prefills: prompts in each prefill. decodes: slots in each decode.
      aborted: how many requests were, while they lived.
      masks: how many were sent. waits: decodes in which some row stood still.
    """

    slots: dict[tuple[int, int], int] = field(default_factory=dict)
    chunks: dict[tuple[int, int], list[Chunk]] = field(default_factory=dict)
    prefills: list[int] = field(default_factory=list)
    decodes: list[int] = field(default_factory=list)
    aborted: int = 0
    masks: int = 0
    waits: int = 0


class Watched:
    """A runner that keeps a record of its traffic."""

    def __init__(self, runner: Runner) -> None:
        self.traffic = Traffic()
        self.layout, self.rolls = runner.layout, runner.rolls
        self.chunk, self.buckets, self.vocab = runner.chunk, runner.buckets, runner.vocab
        self._runner = runner

    @property
    def prefill_rows(self) -> Mapping[int, int]:
        return self._runner.prefill_rows

    @property
    def recompiles(self) -> int:
        return self._runner.recompiles

    def prefill(self, work: Sequence[PrefillWork]) -> Pending:
        for one in work:
            name = (one.seed, one.choice)
            self.traffic.slots[name] = one.slot
            chunk = Chunk(one.start, len(one.tokens), one.bucket)
            self.traffic.chunks.setdefault(name, []).append(chunk)
        self.traffic.prefills.append(len(work))
        return self._runner.prefill(work)

    def decode(self, steps: int, quotas: Mapping[int, int]) -> Pending:
        self.traffic.decodes.append(len(quotas))
        self.traffic.waits += 0 in quotas.values()
        return self._runner.decode(steps, quotas)

    def constrain(self, masks: Mapping[int, NDArray[np.int32]]) -> None:
        self.traffic.masks += len(masks)
        self._runner.constrain(masks)

    def update(self, params: Any) -> None:
        self._runner.update(params)


class Walk:
    """A constraint made by hand: after token t only those a square number further on may come.

    It depends on every token that was picked, so a mask for another step or slot shows.
    """

    done, error = False, None

    def __init__(self, first: int, vocab: int) -> None:
        self._last, self._vocab = first, vocab

    def fill(self, words: NDArray[np.int32]) -> None:
        near = {(self._last + n * n) % (self._vocab - 1) + 1 for n in range(1, 8)}
        bits = np.isin(np.arange(len(words) * 32), [*near])
        words[:] = np.packbits(bits, bitorder="little").view(np.int32)

    def take(self, token: int) -> None:
        self._last = token


def ask(
    number: int, chance: random.Random, vocab: int, longest: int = 60, limit: int = 24
) -> Request:
    """Request r<number>, with a seed that no other has: of every length and kind in turn."""
    lengths = [length for length in LENGTHS if length <= longest]
    size = lengths[number % len(lengths)] if number % 3 else chance.randint(1, longest)
    params = SamplingParams(
        temperature=(0.0, 0.7, 1.3)[number % 3] if number % 5 else 0.0,
        top_k=chance.choice([0, 0, 5, 40]),
        top_p=chance.choice([1.0, 1.0, 0.8, 0.95]),
        min_p=chance.choice([0.0, 0.0, 0.05]),
        seed=chance.randrange(2**22) << 10 | number,
        max_tokens=chance.randint(1, limit),
        ignore_eos=chance.random() < 0.7,
        stop_token_ids=chance.sample(range(1, vocab), k=4) if chance.random() < 0.3 else (),
        logprobs=LOGPROBS[chance.randrange(4)],
    )
    prompt = chance.choices(range(1, vocab), k=size)
    params = dataclasses.replace(params, **_steering(number, chance, vocab, params.max_tokens or 1))
    return Request(f"r{number}", prompt, params, choice=number % 2)


def _steering(number: int, chance: random.Random, vocab: int, most: int) -> dict[str, Any]:
    """What half of the requests ask for beside: nothing, one thing or several."""
    if number % 2:
        return {}
    fields: dict[str, Any] = {
        "repetition_penalty": chance.choice([0.7, 1.3]),
        "presence_penalty": chance.choice([-1.0, 0.6]),
        "frequency_penalty": chance.choice([-0.5, 0.4]),
        "logit_bias": {chance.randrange(vocab): chance.uniform(-9, 9) for _ in range(5)},
        "min_tokens": chance.randint(1, most),
        "prompt_logprobs": chance.choice([0, 5, 20]),
    }
    return {name: value for name, value in fields.items() if chance.random() < 0.4}


def guided(request: Request, vocab: int) -> Request:
    """Each sixth request is constrained; a constraint goes along with one answer, so it is new."""
    if int(request.request_id[1:]) % 6 != 1:
        return request
    return dataclasses.replace(request, constraint=Walk(request.prompt_token_ids[-1], vocab))


def key(request: Request) -> tuple[int, int]:
    """A request's name in `Traffic`."""
    return (request.params.seed or 0, request.choice)


def serve(
    runner: Runner,
    requests: Sequence[Request],
    *,
    tokenizer: FakeTokenizer,
    steps: int = 1,
    chance: random.Random | None = None,
    doomed: Sequence[Request] = (),
) -> tuple[dict[str, Record], Traffic]:
    """Serve `requests` to their end: their answers by name, and what the runner was asked.

    They arrive all at once, or in another order between steps as chance has it; then the `doomed`
    are among them, and are aborted now and then.
    """
    watched = Watched(runner)
    engine = Engine(watched, tokenizer, steps=steps)
    waiting, fated = [*requests, *doomed], [one.request_id for one in doomed]
    if chance:
        chance.shuffle(waiting)
    deltas: dict[str, list[Delta]] = {one.request_id: [] for one in waiting}
    while waiting or engine.has_work:
        while waiting and (chance is None or chance.random() < 0.8):
            engine.add(guided(waiting.pop(0), runner.vocab))
        if chance and fated and chance.random() < 0.3:
            watched.traffic.aborted += engine.abort(chance.choice(fated))
        for delta in engine.step():
            deltas[delta.request_id].append(delta)
    traffic = watched.traffic
    return {
        one.request_id: _record(deltas[one.request_id], traffic.chunks[key(one)])
        for one in requests
    }, traffic


def _record(deltas: list[Delta], chunks: list[Chunk]) -> Record:
    logprobs = [value for delta in deltas for value in delta.logprobs or []]
    top = [one for delta in deltas for one in delta.top_logprobs or []]
    return Record(
        tokens=tuple(token for delta in deltas for token in delta.token_ids),
        end=(deltas[-1].finish_reason, deltas[-1].stop_reason),
        logprobs=np.array(logprobs, np.float32).tobytes(),
        top=tuple((tuple(one), np.array([*one.values()], np.float32).tobytes()) for one in top),
        prompt=_prompt(deltas[0]),
        chunks=tuple(chunks),
    )


def _prompt(first: Delta) -> tuple[tuple[tuple[int, ...], bytes], ...]:
    own = (first.prompt_logprobs or [])[1:]
    tops = (first.prompt_top_logprobs or [])[1:] or [{}] * len(own)
    return tuple(
        (tuple(top or {}), np.array([value, *(top or {}).values()], np.float32).tobytes())
        for value, top in zip(own, tops, strict=True)
    )


def differences(alone: Mapping[str, Record], mixed: Mapping[str, Record]) -> list[str]:
    """What is not the same, in words; empty when every answer kept all its bits.

    Bytes are counted, not tokens: logprobs[4] is the second token's.
    """
    found = []
    for name, one in alone.items():
        for part, mine, other in zip(Record._fields, one, mixed[name], strict=True):
            if mine != other:
                pairs = enumerate(zip(mine, other, strict=False))
                at = next((index for index, (a, b) in pairs if a != b), "the end")
                found.append(f"{name}: {part}[{at}] differs")
    return found


def serve_alone(
    model: Tiny, requests: Sequence[Request], programs: Mapping[str, Program] | None = None
) -> tuple[dict[str, Record], Traffic]:
    """Each request on a runner that nobody used before; `programs` in place of the model's."""
    answers: dict[str, Record] = {}
    traffic = Traffic()
    for request in requests:
        runner = model.runner(idle(model), programs)
        own, seen = serve(runner, [request], tokenizer=tokenizer_of(model))
        answers |= own
        traffic.slots |= seen.slots
        traffic.masks += seen.masks
    return answers, traffic


def idle(model: Tiny) -> DecodeState:
    """A state of zeros, without compiling what makes it."""
    zeros = jax.tree.map(
        lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), model.state
    )
    return cast(DecodeState, zeros)


def serve_mixed(
    model: Tiny,
    requests: Sequence[Request],
    *,
    steps: int,
    chance: random.Random,
    doomed: Sequence[Request] = (),
    programs: Mapping[str, Program] | None = None,
) -> tuple[dict[str, Record], Traffic]:
    """All on one runner, in any order; whatever is padding holds other tokens each time."""
    junked = junk_in_padding(programs or model.programs, chance.randrange(2**32))
    runner = model.runner(idle(model), junked)
    return serve(
        runner,
        requests,
        tokenizer=tokenizer_of(model),
        steps=steps,
        chance=chance,
        doomed=doomed,
    )


def tokenizer_of(model: Tiny) -> FakeTokenizer:
    return FakeTokenizer(model.config.vocab, model.config.eos_ids)


def junk_in_padding(programs: Mapping[str, Program], seed: int) -> dict[str, Program]:
    """The same programs, but the tokens of a prefill that nobody asked for are random."""
    random_ids = np.random.default_rng(seed)

    def junked(call: Any, params: Any, state: Any, tables: Any, given: Any) -> Any:
        padding = np.arange(given.tokens.shape[1])[None, :] >= given.length[:, None]
        junk = random_ids.integers(1, 64, given.tokens.shape, np.int32)
        tokens = np.where(padding, junk, given.tokens)
        return call(params, state, tables, dataclasses.replace(given, tokens=tokens))

    return {
        name: dataclasses.replace(program, call=functools.partial(junked, program.call))
        if name.startswith("prefill")
        else program
        for name, program in programs.items()
    }
