"""`python -m tpuinfer.batch`: answers a file of requests, and loses none of them."""

import asyncio
import contextlib
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

from absl import flags

from tpuinfer import flags as shared
from tpuinfer import sampling_flags
from tpuinfer.checkpoint import catalogue
from tpuinfer.errors import ConfigError, TpuinferError
from tpuinfer.offline import power
from tpuinfer.offline.batch import Batch, Care, Job, Summary
from tpuinfer.offline.ledger import Ledger
from tpuinfer.offline.meter import Bill, Floor
from tpuinfer.offline.progress import Display
from tpuinfer.offline.run import Pace, Tally
from tpuinfer.offline.source import Form
from tpuinfer.offline.table_output import check_own, is_table, write_table

if TYPE_CHECKING:
    from tpuinfer.engine.build import Loaded
    from tpuinfer.engine.encoder import EncoderPlan, LoadedEncoder
    from tpuinfer.engine.plan import Plan

flags.adopt_module_key_flags(shared)
flags.adopt_module_key_flags(sampling_flags)

_INPUT = flags.DEFINE_multi_string(
    "input", [], "File, glob, or - for stdin, may be given several times: .jsonl, .csv, .parquet."
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "File of answers, which is the journal too: run the same command again to go on. A folder in "
    "object storage gets numbered parts; .csv and .parquet are written at the end; - is stdout.",
)
_ERRORS = flags.DEFINE_string("errors", None, "File of refused lines; default: by --output.")
_PROMPT_FIELD = flags.DEFINE_string(
    "prompt-field", None, "Field of plain rows that holds the prompt; without it and --template, "
    "lines are requests in the form of OpenAI's batches."
)  # fmt: skip
_TEMPLATE = flags.DEFINE_string(
    "template", None, "Prompt made of a row's fields, such as 'Translate: {text}'."
)
_TEMPLATE_FILE = flags.DEFINE_string("template-file", None, "File with such a template.")
_TASK = flags.DEFINE_enum(
    "task", "completion", ("completion", "chat", "embedding"), "What plain rows ask for."
)
_SYSTEM = flags.DEFINE_string("system", None, "System message of --task chat.")
_ID_FIELD = flags.DEFINE_string("id-field", None, "Field of plain rows that names them.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the batch: each request's seed follows from it.")
_SERVED = flags.DEFINE_multi_string(
    "served-model-name", [], "Name that a request may give for the model, besides its own."
)
_SORT = flags.DEFINE_bool("sort", False, "Put the output in the input's order when all is done.")
_STRICT = flags.DEFINE_bool("strict", False, "Begin no more lines once one has failed.")
_RETRY_ERRORS = flags.DEFINE_bool("retry-errors", False, "Try lines that failed once more.")
_ACCEPT = flags.DEFINE_bool(
    "accept-changes", False, "Go on though the input, the model or the settings have changed."
)
_GRACE = flags.DEFINE_float(
    "grace-seconds", 25.0, "How long lines in flight may go on after SIGTERM.", lower_bound=0
)
_SYNC_LINES = flags.DEFINE_integer(
    "sync-lines", None, "Lines that a power loss may take; in object storage, of a part.",
    lower_bound=1,
)  # fmt: skip
_SYNC_SECONDS = flags.DEFINE_float(
    "sync-seconds", None, "How old such lines may be.", lower_bound=0
)
_PRICE = flags.DEFINE_float(
    "price-per-hour", None, "What the machine costs, for the price of a token.", lower_bound=0
)
_QUIET = flags.DEFINE_bool("quiet", False, "No bar, no summary, nothing measured.")

_UNFINISHED = 75  # EX_TEMPFAIL: run it again
_INTERRUPTED = 130
_STDOUT = "-"
_REASON_LETTERS = 120
_SHOW_CURSOR = b"\x1b[?25h\r\n"  # DECTCEM: a bar hides it
_PLAIN_ONLY = (_SYSTEM, _ID_FIELD)
_OF_JOURNALS = (_ERRORS, _SORT, _RETRY_ERRORS, _ACCEPT, _SYNC_LINES, _SYNC_SECONDS)

_log = logging.getLogger("tpuinfer.batch")


class UnfinishedError(TpuinferError):
    """Lines are left that the same command answers when it is run again."""

    exit_code = _UNFINISHED


class FailedLineError(TpuinferError):
    """--strict was given, and a line failed."""


def main() -> None:
    """Answer what is left of --input; nothing is loaded when that is nothing."""
    signals = _Signals()
    model = _Model()
    job, table = _job(model.name)
    care = Care(_RETRY_ERRORS.value, _ACCEPT.value, _SYNC_LINES.value, _SYNC_SECONDS.value)
    with contextlib.closing(_open(job, model, care)) as batch:
        if not batch.finished:
            summary, bill = asyncio.run(_answer(batch, model, signals))
        else:
            summary, bill = batch.summary(), None
        batch.finish(sort=_SORT.value and batch.finished)
        _say(job, summary, bill)
        _check(job, summary, signals)
        if table is not None:
            assert isinstance(batch.ledger, Ledger), "a table has a journal"
            write_table(table, batch.source, batch.ledger)


class _Model:
    """What answers, named and planned before it is loaded."""

    def __init__(self) -> None:
        self.chosen = shared.settings()
        self.engine = self.chosen.engine()
        self.name = self.chosen.model.rstrip("/").rsplit("/", 1)[-1]
        self._plan: Plan | EncoderPlan | None = None

    def identify(self) -> Mapping[str, Any]:
        from tpuinfer.engine.identity import identity

        self._plan = shared.plan_to_serve(self.chosen, self.engine)
        return identity(self._plan, name=self.name, chat_template=shared.CHAT_TEMPLATE.value)

    def load(self) -> "Loaded | LoadedEncoder":
        return shared.load_to_serve(
            self.chosen,
            self.engine,
            max_waiting=2**31,
            max_waiting_tokens=None,
            plan=self._plan,
        )

    def aliases(self) -> tuple[str, ...]:
        asked = self.chosen.model
        return (*_SERVED.value, *((asked,) if asked in catalogue.entries() else ()))


class _Signals:
    """SIGTERM and SIGINT: the first stops a run in good order, any other leaves at once.

    Leaving at once loses nothing that was written, and each line was one write. In object storage
    lines wait for their part, and those that waited run again.

    Attributes:
      seen: the first signal; None before.
    """

    def __init__(self) -> None:
        self.seen: int | None = None
        self._stop: Callable[[], object] | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hear)

    @property
    def code(self) -> int:
        return _INTERRUPTED if self.seen == signal.SIGINT else _UNFINISHED

    @contextlib.contextmanager
    def stopping(self, stop: asyncio.Event) -> Iterator[None]:
        """While inside, the first signal sets `stop`, which belongs to the running loop."""
        loop = asyncio.get_running_loop()
        self._stop = functools.partial(loop.call_soon_threadsafe, stop.set)
        try:
            yield
        finally:
            self._stop = None

    def _hear(self, number: int, _: FrameType | None) -> None:
        first, self.seen = self.seen is None, self.seen or number
        if first and self._stop is not None:
            self._stop()
            return
        if os.isatty(2):
            os.write(2, _SHOW_CURSOR)
        os.write(2, b"tpuinfer: stopped; run the same command again to go on\n")
        os._exit(self.code)


def _job(model: str) -> tuple[Job, str | None]:
    """What the flags ask for, and the table to be written at the end, if any.

    Raises:
      ConfigError: flags that are missing, or do not go together.
      BatchError: a table that another has made is there.
    """
    output, errors = _path(_OUTPUT), _path(_ERRORS)
    if not _INPUT.value:
        raise ConfigError("input is missing: give --input FILE, or --input - for stdin")
    if not output:
        raise ConfigError("output is missing: give --output FILE, or --output - for stdout")
    if errors and is_table(errors, "errors"):
        raise ConfigError(f"errors is {errors!r}: they are JSON lines; give a name in .jsonl")
    form = _form(model)
    if output == _STDOUT:
        _refuse(_OF_JOURNALS, "means nothing where --output is -: there is no journal")
    table = output if is_table(output) else None
    if table is not None:
        if form.prompt_field is None and form.template is None:
            raise ConfigError(
                f"output is {output!r}: a table is for plain rows; give --prompt-field or "
                "--template, or an output that ends in .jsonl"
            )
        _refuse((_SORT,), f"means nothing where --output is {output}: a table is always sorted")
    journal = f"{table}.journal.jsonl" if table else output
    also = (table,) if table else ()
    job = Job(_INPUT.value, journal, form, errors, _SEED.value, also=also)
    if table is not None:
        check_own(table, job.manifest_path)
    return job, table


def _path(flag: flags.FlagHolder[Any]) -> str | None:
    """The path that a flag gives, with a home folder for `~`, so that it is one to all files."""
    if flag.value is None:
        return None
    path = os.path.expanduser(flag.value)
    if path.startswith("~"):
        raise ConfigError(f"{flag.name} is {flag.value!r}: there is no such home folder")
    return path


def _form(model: str) -> Form:
    template = _TEMPLATE.value
    if _TEMPLATE_FILE.value is not None:
        if template is not None:
            raise ConfigError("both --template and --template-file are given: give one")
        template = sampling_flags.read_text("template-file", _TEMPLATE_FILE.value)
    if _PROMPT_FIELD.value is None and template is None:
        of_rows = (*_PLAIN_ONLY, _TASK)
        _refuse(of_rows, "is for plain rows: give --prompt-field or --template too")
        given = sampling_flags.values(present_only=True)
        return Form(defaults={"model": model, **given, **sampling_flags.guide_fields()})
    if _TASK.value == "embedding":
        if named := sampling_flags.present():
            raise ConfigError(f"--{named[0]} means nothing to --task embedding: leave it out")
        defaults: dict[str, Any] = {"model": model}
    else:
        fields = sampling_flags.values() | sampling_flags.guide_fields()
        defaults = {"model": model, **fields}
    if _TASK.value != "chat":
        _refuse((_SYSTEM,), "is for --task chat")
    return Form(
        prompt_field=_PROMPT_FIELD.value,
        template=template,
        task=cast(Any, _TASK.value),
        system=_SYSTEM.value,
        id_field=_ID_FIELD.value,
        defaults=defaults,
    )


def _refuse(given: tuple[flags.FlagHolder[Any], ...], why: str) -> None:
    for flag in given:
        if flag.present:
            raise ConfigError(f"--{flag.name} {why}")


def _open(job: Job, model: _Model, care: Care) -> Batch:
    if job.output != _STDOUT:
        return Batch.open(job, model.identify, care)
    _log.info("answers go to stdout, and are kept nowhere: stopped, it begins again")
    return Batch.printing(job, sys.stdout.buffer)


async def _answer(
    batch: Batch, model: _Model, signals: _Signals
) -> tuple[Summary, "Callable[[Tally, float], Bill]"]:
    """Load the model, and run the batch on it."""
    from tpuinfer.server.attach import attach
    from tpuinfer.server.bridge import Bridge
    from tpuinfer.server.desk import Desk
    from tpuinfer.server.info import ServerInfo
    from tpuinfer.server.speech import Speech

    loaded = model.load()
    bridge = Bridge(model.name)
    attach(bridge, loaded, max_waiting=2**31)
    desk = Desk(bridge, ServerInfo(model.name, model.aliases()), Speech(bridge), background=False)
    bill = _bill(loaded)
    stop = asyncio.Event()
    pace = Pace(strict=_STRICT.value, grace_seconds=_GRACE.value)
    done = len(batch) - batch.left
    try:
        with signals.stopping(stop):
            if _QUIET.value:
                return await batch.run(desk, stop=stop, pace=pace), bill
            with Display(total=len(batch), done=done, failed=batch.failed, bill=bill) as display:
                update = display.update
                return await batch.run(desk, stop=stop, pace=pace, on_progress=update), bill
    finally:
        bridge.stop()


def _bill(loaded: "Loaded | LoadedEncoder") -> Callable[[Tally, float], Bill]:
    """What a tally comes to on this machine, energy from now on included."""
    if _QUIET.value:
        return lambda tally, seconds: Bill(
            tally.answered, tally.prompt_tokens, tally.completion_tokens, seconds
        )
    platform = loaded.plan.layout.mesh.devices.flat[0].platform
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    floor = _floor(loaded)
    counters = [*power.rapl(), *(power.nvml(visible) if platform == "gpu" else ())]
    energy = power.Energy(counters)

    def bill(tally: Tally, seconds: float) -> Bill:
        return Bill(
            tally.answered,
            tally.prompt_tokens,
            tally.completion_tokens,
            seconds,
            price_per_hour=_PRICE.value,
            joules=energy.joules,
            metered=energy.of,
            floor=floor,
        )

    return bill


def _floor(loaded: "Loaded | LoadedEncoder") -> Floor | None:
    """The least time for what is answered; measures the machine, which takes a second.

    None where it is not known: of an encoder, or where the model leaves no room for measuring.
    """
    from jax.errors import JaxRuntimeError

    from tpuinfer.benchmark import floor
    from tpuinfer.engine.plan import Plan

    if not isinstance(loaded.plan, Plan):
        return None
    try:
        return floor.measured(loaded.plan)
    except JaxRuntimeError as error:
        why = " ".join(str(error).split())[:_REASON_LETTERS]
        _log.info("what this machine allows is not measured, and no bound is shown: %s", why)
        return None


def _say(job: Job, summary: Summary, bill: Callable[[Tally, float], Bill] | None) -> None:
    """How it went, on stderr."""
    if _QUIET.value:
        return
    parts = [f"{summary.lines:,} lines: {summary.answered:,} answered"]
    if summary.failed:
        where = "" if job.output == _STDOUT else f" (see {job.errors_path})"
        parts.append(f"{summary.failed:,} failed{where}")
    if summary.left:
        parts.append(f"{summary.left:,} left")
    _log.info("%s", ", ".join(parts))
    if job.output != _STDOUT:
        for line in _hints(summary.tally.statuses):
            _log.info("%s", line)
    if bill is not None:
        for line in bill(summary.tally, summary.seconds).words():
            _log.info("%s", line)


def _hints(statuses: Mapping[int, int]) -> Iterator[str]:
    """How lines that failed with these statuses may be answered after all."""
    if unknown := statuses.get(404):
        yield (
            f"{unknown:,} ask for a model of another name: give that with --served-model-name, "
            "and --retry-errors"
        )
    if broken := sum(count for status, count in statuses.items() if status >= 500):
        yield f"{broken:,} may be answered another time: give --retry-errors"


def _check(job: Job, summary: Summary, signals: _Signals) -> None:
    """Raises what the exit code says, where not every line has an outcome."""
    if _STRICT.value and summary.failed:
        where = "stdout" if job.output == _STDOUT else job.errors_path
        raise FailedLineError(
            f"{summary.failed:,} lines failed, and --strict is given: see {where}; "
            f"{summary.left:,} lines are left"
        )
    if summary.left:
        error = UnfinishedError(
            f"{summary.left:,} of {summary.lines:,} lines are left; run the same command again "
            "to go on"
        )
        error.exit_code = signals.code
        raise error


if __name__ == "__main__":
    shared.run(main)
