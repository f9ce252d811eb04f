"""The same decode steps by several schemes of one model in turn: what each takes and gives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tpuinfer.benchmark import report, rounds, steps, workload
from tpuinfer.benchmark.bounds import Cost
from tpuinfer.benchmark.modes import Options
from tpuinfer.benchmark.report import Report, Row
from tpuinfer.benchmark.subject import Subject
from tpuinfer.config import RING_DTYPES
from tpuinfer.errors import ConfigError


@dataclass(frozen=True)
class _Entrant:
    """One of those that run in turn.

    Attributes:
      run: (prompt, live, new tokens) -> milliseconds per step.
      cost: (live, position) -> of a step; None = not known.
      memory: bytes of weights, and of caches; None = not known.
    """

    name: str
    run: Callable[[Sequence[int], int, int], list[float]]
    cost: Callable[[int, float], Cost] | None
    memory: tuple[int | None, int | None]


def parse(text: str) -> list[tuple[str, str, str]]:
    """What `--schemes` asks for: (as written, weights, ring or "") of each.

    >>> parse("none int8/fp8")
    [('none', 'none', ''), ('int8/fp8', 'int8', 'fp8')]

    Raises:
      ConfigError: fewer than two, or one twice.
    """
    words = text.split()
    if len(words) < 2 or len(set(words)) < len(words):
        raise ConfigError(
            f"schemes is {text!r}: write at least two, all different, WEIGHTS or WEIGHTS/RING "
            'with spaces between; nearest: "none int8"'
        )
    found = []
    for word in words:
        weights, _, ring = word.rpartition("/")
        is_ring = weights and ring in RING_DTYPES
        found.append((word, weights, ring) if is_ring else (word, word, ""))
    return found


def decode(subjects: Mapping[str, Subject], options: Options) -> Report:
    """Milliseconds per step of each scheme, and of the first one's peer, at each number of slots.

    Args:
      subjects: by what the user calls its scheme; the ratios are to the first.

    Raises:
      ConfigError: more live slots than there are, or a context that does not hold them.
    """
    (name, first), *_ = subjects.items()
    prompt = workload.prompt_ids(options.prompt_tokens, first.plan.config.vocab)
    entrants = [_ours(name, subject) for name, subject in subjects.items()]
    entrants += _peers(first)
    rows = [row for live in options.batch for row in _rows(first, entrants, prompt, live, options)]
    settings = {
        "slots": first.runner.layout.slots,
        "context": first.runner.layout.capacity,
        "steps_per_dispatch": first.plan.settings.steps,
        "rounds": options.rounds,
        "schemes": " ".join(subjects),
    }
    notes = [
        "bound: the least time for its bytes and FLOPs at this machine's measured limits",
        f"peer: {name}; ratio: how many times faster than that, median over rounds run in turn",
        *(f"{name}: weights {one.weights}; ring {one.ring}" for name, one in subjects.items()),
    ]
    return Report("decode", first.describe_machine(), first.describe_model(), settings, rows, notes)


def _rows(
    first: Subject,
    entrants: Sequence[_Entrant],
    prompt: Sequence[int],
    live: int,
    options: Options,
) -> list[Row]:
    """One of each at one number of live slots."""
    new, position = options.new_tokens, options.prompt_tokens + options.new_tokens / 2

    def turn(entrant: _Entrant) -> rounds.Round:
        return lambda: entrant.run(prompt, live, new)

    samples = rounds.in_turn([turn(one) for one in entrants], options.rounds)
    rows = []
    for index, (entrant, own) in enumerate(zip(entrants, samples, strict=True)):
        cost = entrant.cost(live, position) if entrant.cost else None
        row = report.row(
            f"decode step, {live} live, {entrant.name}",
            {"live_slots": live, "scheme": index, "new_tokens": new, "prompt_tokens": len(prompt)},
            rounds.outcome(own, samples[0] if index else None),
            tokens=live,
            bound=None if cost is None else 1e3 * cost.seconds(first.machine),
            bound_by="" if cost is None else cost.bound_by(first.machine),
            memory=entrant.memory,
        )
        rows.append(row)
    return rows


def _ours(name: str, subject: Subject) -> _Entrant:
    def run(prompt: Sequence[int], live: int, new_tokens: int) -> list[float]:
        width = subject.plan.settings.steps
        return steps.decode_round(
            subject.runner, prompt, live=live, new_tokens=new_tokens, steps=width
        )

    return _Entrant(name, run, subject.cost.decode, (subject.weight_bytes, subject.kv_bytes))


def _peers(first: Subject) -> list[_Entrant]:
    """The peer, if there is one; its memory where it knows it."""
    peer = first.peer
    if peer is None:
        return []

    def run(prompt: Sequence[int], live: int, new_tokens: int) -> list[float]:
        return peer.decode_round(prompt, live=live, new_tokens=new_tokens)

    says = peer.settings
    words = (says["name"], says.get("weights"))
    name = " ".join(word for word in words if word)
    return [_Entrant(name, run, None, (says.get("weight_bytes"), says.get("kv_bytes")))]
