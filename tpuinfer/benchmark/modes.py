"""What `python -m tpuinfer.bench` runs: a mode takes what is measured, gives a report."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass

from tpuinfer.benchmark import host as host_side
from tpuinfer.benchmark import offline, report, rounds, steps, workload
from tpuinfer.benchmark.bounds import Cost
from tpuinfer.benchmark.report import Report, Row
from tpuinfer.benchmark.subject import Subject
from tpuinfer.engine.accept import Tokenizer
from tpuinfer.engine.engine import Engine
from tpuinfer.errors import ConfigError

HOST_GOAL_MS = 0.5
"""What one engine step may take on the host with 64 slots streaming."""

SERVER_GOAL = 30_000
"""Server-sent events a second that 64 streaming clients should get together."""

_STREAMED = 400
"""Tokens that each client streams in a round."""

_PREFILLS = 2
"""Timed prefills in a round."""

_HOST_STEPS = 400


@dataclass(frozen=True)
class Options:
    """How much of what to run.

    Attributes:
      batch: for decode, numbers of live slots; one row of the report each.
      prompt_tokens, new_tokens: for prefill and decode, of each prompt and answer.
      rounds: how often each piece of work is timed, and as often a peer's in turn.
      requests, seed: for batch, how many requests, and which mix of them.
      prompts, answers: for batch, the shortest and the longest, tokens; lengths: how they are
        spread, one of `workload.LENGTHS`.
    """

    batch: tuple[int, ...] = (1, 8, 16)
    prompt_tokens: int = 32
    new_tokens: int = 128
    rounds: int = 5
    requests: int = 64
    seed: int = 0
    prompts: tuple[int, int] = (16, 256)
    answers: tuple[int, int] = (16, 192)
    lengths: str = "uniform"

    def __post_init__(self) -> None:
        values = {"prompt-tokens": self.prompt_tokens, "new-tokens": self.new_tokens}
        values |= {"rounds": self.rounds, "requests": self.requests}
        values["batch"] = min(self.batch, default=0)
        for name, value in values.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}: it must be at least 1; nearest: 1")


def decode(subject: Subject, options: Options) -> Report:
    """Milliseconds per step at each number of live slots.

    Raises:
      ConfigError: more live slots than there are, or a context that does not hold them.
    """
    prompt = workload.prompt_ids(options.prompt_tokens, subject.plan.config.vocab)
    position = options.prompt_tokens + options.new_tokens / 2
    rows = []
    for live in options.batch:
        outcome = rounds.alternate(
            *_decode_rounds(subject, prompt, live, options.new_tokens), options.rounds
        )
        case = {
            "live_slots": live,
            "prompt_tokens": options.prompt_tokens,
            "new_tokens": options.new_tokens,
        }
        name = f"decode step, {live} live"
        rows.append(_row(subject, name, case, outcome, subject.cost.decode(live, position), live))
    return _report("decode", subject, rows, options, *_memory(subject))


def prefill(subject: Subject, options: Options) -> Report:
    """Milliseconds from a prompt to its first token.

    Raises:
      ConfigError: the context does not hold the prompt.
    """
    prompt = workload.prompt_ids(options.prompt_tokens, subject.plan.config.vocab)
    peer = subject.peer
    outcome = rounds.alternate(
        lambda: steps.prefill_round(subject.runner, prompt, _PREFILLS),
        None if peer is None else lambda: peer.prefill_round(prompt, _PREFILLS),
        options.rounds,
    )
    tokens = options.prompt_tokens
    row = _row(
        subject,
        f"prefill of {tokens}",
        {"prompt_tokens": tokens},
        outcome,
        subject.cost.prefill(tokens),
        tokens,
    )
    return _report("prefill", subject, [row], options)


def batch(subject: Subject, tokenizer: Tokenizer, options: Options) -> Report:
    """Milliseconds for a mix of requests through the whole engine; the rate counts output tokens.

    Raises:
      RequestError: a request does not fit the context.
    """
    plan, slots = subject.plan, subject.runner.layout.slots
    items = workload.mixed(
        options.requests,
        plan.config.vocab,
        seed=options.seed,
        prompt=options.prompts,
        output=options.answers,
        lengths=options.lengths,
    )
    engine = Engine(
        subject.runner,
        tokenizer,
        steps=plan.settings.steps,
        max_waiting=options.requests,
        prefill_wait=plan.engine.prefill_wait_ms / 1000,
    )
    peer = subject.peer
    outcome = rounds.alternate(
        lambda: [1e3 * offline.serve(engine, items)],
        None if peer is None else lambda: [1e3 * peer.serve(items, slots)],
        options.rounds,
    )
    output = sum(item.new_tokens for item in items)
    row = report.row(
        f"{options.requests} requests, {slots} slots",
        {"requests": options.requests, "slots": slots, "output_tokens": output},
        outcome,
        tokens=output,
        bound=1e3 * _batch_seconds(subject, items, slots),
        bound_by="both",
    )
    return _report("batch", subject, [row], options, workload.describe(items))


def host(tokenizer: Tokenizer, name: str, slots: int, options: Options) -> Report:
    """Milliseconds of one engine step on the host with every slot streaming, the device faked."""
    outcome = rounds.alternate(
        lambda: host_side.host_round(tokenizer, slots=slots, steps=_HOST_STEPS),
        None,
        options.rounds,
    )
    figure, case = f"engine step, {slots} streaming", {"slots": slots}
    row = report.row(figure, case, outcome, tokens=slots, bound=HOST_GOAL_MS, bound_by="goal")
    p99 = rounds.quantile(sorted(outcome.ours), 0.99)
    return Report(
        "host",
        {"platform": "host", "cpus": os.cpu_count(), "python": platform.python_version()},
        {"name": name, "vocabulary": tokenizer.vocab_size},
        {"slots": slots, "rounds": options.rounds, "steps_per_round": _HOST_STEPS},
        [row],
        [f"p99 {report.number(p99)} ms; the goal is a median under {HOST_GOAL_MS} ms"],
    )


def server(tokenizer: Tokenizer, name: str, slots: int, options: Options) -> Report:
    """Milliseconds for clients, one a slot, to stream an answer each, the device faked."""
    from tpuinfer.benchmark import serving  # the other modes need no web server

    heard: list[serving.Streamed] = []

    def ours() -> list[float]:
        heard.append(serving.stream(port, clients=slots, tokens=_STREAMED))
        return [1e3 * heard[-1].seconds]

    with serving.server(tokenizer, slots=slots, context=_STREAMED + 16) as port:
        outcome = rounds.alternate(ours, None, options.rounds)
    events = heard[-1].events
    figure, case = f"{slots} clients stream", {"clients": slots, "events": events}
    goal = 1e3 * events / SERVER_GOAL
    row = report.row(figure, case, outcome, tokens=events, bound=goal, bound_by="goal")
    each = [1e6 * one.cpu_seconds / one.events for one in heard[1:]]
    return Report(
        "server",
        {"platform": "host", "cpus": os.cpu_count(), "python": platform.python_version()},
        {"name": name, "vocabulary": tokenizer.vocab_size},
        {"clients": slots, "rounds": options.rounds, "tokens_per_client": _STREAMED},
        [row],
        [
            f"{report.number(rounds.spread(each).median)} us of the server's CPU time for each "
            f"event (tok/s: events/s; the goal is {SERVER_GOAL}), clients on the same cores"
        ],
    )


def _decode_rounds(
    subject: Subject, prompt: tuple[int, ...], live: int, new_tokens: int
) -> tuple[rounds.Round, rounds.Round | None]:
    """Our round and the peer's at one number of live slots."""
    width, peer = subject.plan.settings.steps, subject.peer

    def ours() -> list[float]:
        return steps.decode_round(
            subject.runner, prompt, live=live, new_tokens=new_tokens, steps=width
        )

    theirs: Callable[[], list[float]] | None = None
    if peer is not None:

        def theirs() -> list[float]:
            return peer.decode_round(prompt, live=live, new_tokens=new_tokens)

    return ours, theirs


def _row(
    subject: Subject,
    figure: str,
    case: dict[str, int],
    outcome: rounds.Outcome,
    cost: Cost,
    tokens: int,
) -> Row:
    """A row whose bound is what the machine needs for a cost."""
    machine = subject.machine
    return report.row(
        figure,
        case,
        outcome,
        tokens=tokens,
        bound=1e3 * cost.seconds(machine),
        bound_by=cost.bound_by(machine),
    )


def _batch_seconds(subject: Subject, items: list[workload.Item], slots: int) -> float:
    """The least time for a list of requests.

    All prompts share one read of the weights, and every decode step has all slots busy.
    """
    prompts = [subject.cost.prefill(len(item.prompt)) for item in items]
    prefilling = Cost(subject.cost.read_bytes, sum(cost.flops for cost in prompts))
    decoded = sum(item.new_tokens - 1 for item in items)
    positions = sum(
        (item.new_tokens - 1) * (len(item.prompt) + item.new_tokens / 2) for item in items
    )
    step = subject.cost.decode(slots, positions / max(decoded, 1))
    machine = subject.machine
    return prefilling.seconds(machine) + decoded / slots * step.seconds(machine)


def _memory(subject: Subject) -> list[str]:
    """A note on what weights and caches take, ours and a peer's that knows its own."""
    sizes = {"ours": (subject.weight_bytes, subject.kv_bytes)}
    theirs = {} if subject.peer is None else subject.peer.settings
    if "weight_bytes" in theirs:
        sizes[theirs["name"]] = theirs["weight_bytes"], theirs["kv_bytes"]
    each = (
        f"{name} {report.number(weights / 1e6)} MB of weights, "
        f"{report.number(kv / 1e6)} MB of keys and values"
        for name, (weights, kv) in sizes.items()
    )
    return [f"memory: {'; '.join(each)}"]


def _report(mode: str, subject: Subject, rows: list[Row], options: Options, *notes: str) -> Report:
    plan, layout = subject.plan, subject.runner.layout
    settings = {
        "mesh": ",".join(f"{name}={size}" for name, size in plan.layout.mesh.shape.items()),
        "slots": layout.slots,
        "context": layout.capacity,
        "steps_per_dispatch": plan.settings.steps,
        "rounds": options.rounds,
    }
    bounds = "bound: the least time for its bytes and FLOPs at this machine's measured limits"
    peers = ["ratio: how many times faster than the peer, median over rounds run in turn"]
    lines = [*notes, bounds, *(peers if subject.peer else [])]
    return Report(mode, subject.describe_machine(), subject.describe_model(), settings, rows, lines)
