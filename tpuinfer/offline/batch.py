"""One batch from its files to its files: what the front door and the server both run.

    Batch.open    lock -> input read once -> model named -> manifest -> journals read
    await run     any number of times, until nothing is left or the answers end
    finish        output in input order, everything on the disk
    close         always

For `--output out.jsonl` there are out.jsonl, out.errors.jsonl, out.jsonl.manifest.json and
out.jsonl.lock.
"""

import asyncio
import contextlib
import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

from tpuinfer.offline.index import Index
from tpuinfer.offline.ledger import Ledger
from tpuinfer.offline.lock import Lock
from tpuinfer.offline.manifest import Manifest, check
from tpuinfer.offline.printed import Printed
from tpuinfer.offline.run import Marks, Pace, Tally, run
from tpuinfer.offline.source import Form, Source, open_source
from tpuinfer.offline.task import Answerer, BatchError

_SUFFIX = ".jsonl"
_VERSIONED = ("tpuinfer", "jax", "jaxlib")

Identify = Callable[[], Mapping[str, Any]]
"""Says which model answers: flat, JSON; two that differ in anything may answer differently."""


@dataclass(frozen=True)
class Job:
    """What a batch is: what goes in, where it goes, and all that its answers depend on but a model.

    Attributes:
      inputs: paths, globs, or "-". output: of answers, a path or a URL of object storage.
      form: how lines are read. errors: for refused lines; None derives it from `output`.
      seed: of the batch: requests that set none get theirs from it and their id.
      created: seconds since the epoch; None is now. Only a new batch takes it.
      name: sets the ids of answers apart from those of other batches; None leaves them to the seed.
      also: paths besides, that are written from the output later: no input may be one of them.
    """

    inputs: Sequence[str]
    output: str
    form: Form = field(default_factory=Form)
    errors: str | None = None
    seed: int = 0
    created: int | None = None
    name: str | None = None
    also: Sequence[str] = ()

    @property
    def errors_path(self) -> str:
        """out.jsonl -> out.errors.jsonl"""
        return self.errors or f"{self.output.removesuffix(_SUFFIX)}.errors{_SUFFIX}"

    @property
    def manifest_path(self) -> str:
        return f"{self.output}.manifest.json"

    @property
    def lock_path(self) -> str:
        return f"{self.output}.lock"

    @property
    def written(self) -> tuple[str, ...]:
        """Every path that the batch writes."""
        return self.output, self.errors_path, self.manifest_path, self.lock_path, *self.also

    def settings(self) -> dict[str, Any]:
        """What answers depend on, for the manifest."""
        form = {name: value for name, value in asdict(self.form).items() if value is not None}
        return {"seed": self.seed, **form}


@dataclass(frozen=True)
class Care:
    """How files are treated; nothing here changes an answer.

    Attributes:
      retry_errors: lines that failed are to do again.
      accept_changes: go on where the manifest says the batch was begun differently.
      sync_lines, sync_seconds: lines, and their age in seconds, that a power loss may take;
        None as suits where the output lies.
      to_end: the batch is opened to be ended, and nothing more of it is answered: it does not
        matter with which model or software it was begun. Its input is the same.
    """

    retry_errors: bool = False
    accept_changes: bool = False
    sync_lines: int | None = None
    sync_seconds: float | None = None
    to_end: bool = False


@dataclass(frozen=True)
class Summary:
    """Where a batch stands after a run, and what that run has done.

    Attributes:
      lines: of the input. answered, failed: of them, earlier runs included. left: the others.
      tally: of this run. seconds: it took.
    """

    lines: int
    answered: int
    failed: int
    left: int
    tally: Tally
    seconds: float


class Batch:
    """A batch that is open: nobody else writes its files. `close` it.

    Attributes:
      source: its lines. index: what became of each. ledger: where its outcomes stand.
    """

    def __init__(
        self,
        job: Job,
        created: int,
        source: Source,
        index: Index,
        ledger: Ledger | Printed,
        lock: Lock | None = None,
    ) -> None:
        """Takes what `open` or `printing` made, which are the ways to one."""
        self.job, self.source, self.index, self.ledger = job, source, index, ledger
        self._marks, self._lock = Marks(job.seed, created, job.name or ""), lock
        self._closing = contextlib.ExitStack()

    @classmethod
    def open(cls, job: Job, identify: Identify, care: Care | None = None) -> "Batch":
        """Reads the input once and the journals, and refuses what does not belong together.

        Blocks: for as long as that takes. No model is needed but for its name.

        Args:
          identify: called once the input is known to be good.

        Raises:
          BatchError: another process writes these files; the input cannot be read or names an id
            twice; the files were begun with other input, another model or other settings.
        """
        care = care or Care()
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(Lock(job.lock_path))
            source, index = _read(job, stack, job.written)
            wanted = Manifest.make(
                created=int(time.time()) if job.created is None else job.created,
                inputs=source.digests(),
                lines=len(index),
                model=identify(),
                settings=job.settings(),
                versions={name: importlib.metadata.version(name) for name in _VERSIONED},
            )
            journals = (job.output, job.errors_path)
            manifest = check(
                job.manifest_path,
                wanted,
                journals=journals,
                accept=care.accept_changes or care.to_end,
                by_place=job.form.plain and job.form.id_field is None,
            )
            ledger = Ledger.open(
                *journals,
                index,
                retry_errors=care.retry_errors,
                accept=care.accept_changes,
                sync_lines=care.sync_lines,
                sync_seconds=care.sync_seconds,
            )
            stack.enter_context(contextlib.closing(ledger))
            batch = cls(job, manifest.created, source, index, ledger, lock)
            batch._closing = stack.pop_all()
            return batch

    @classmethod
    def printing(cls, job: Job, stream: BinaryIO) -> "Batch":
        """A batch whose lines go to a stream, and that cannot be gone on with.

        Raises:
          BatchError: the input cannot be read, or names an id twice.
        """
        with contextlib.ExitStack() as stack:
            source, index = _read(job, stack)
            created = int(time.time()) if job.created is None else job.created
            batch = cls(job, created, source, index, Printed(stream, index))
            batch._closing = stack.pop_all()
            return batch

    def __len__(self) -> int:
        """Lines of the input."""
        return len(self.index)

    @property
    def answered(self) -> int:
        """Lines that have an answer, of earlier runs too."""
        return self.index.done

    @property
    def failed(self) -> int:
        """Lines whose error is recorded; with `retry_errors` those of earlier runs do not count."""
        return self.index.failed

    @property
    def left(self) -> int:
        """Lines still to do."""
        return len(self) - self.answered - self.failed

    @property
    def finished(self) -> bool:
        """Whether every line has an outcome."""
        return self.left == 0

    async def run(
        self,
        answerer: Answerer,
        *,
        stop: asyncio.Event,
        pace: Pace | None = None,
        on_progress: Callable[[Tally], None] | None = None,
    ) -> Summary:
        """Answers what is left; may be called again, with the same answerer or another.

        Args:
          stop: begin nothing new, wait for what is in flight for `pace.grace_seconds`, and return.

        Raises:
          BatchError: the input cannot be read on, a journal not written, or the lock was lost.
          TpuinferError: as the answerer raised it: nothing can be answered any more.
        """
        start = time.monotonic()

        def seen(tally: Tally) -> None:
            if self._lock is not None:
                self._lock.check()
            if on_progress is not None:
                on_progress(tally)

        tally = await run(
            self.source.tasks(),
            self.ledger,
            answerer,
            self._marks,
            stop=stop,
            pace=pace,
            on_progress=seen,
        )
        return self.summary(tally, time.monotonic() - start)

    def summary(self, tally: Tally | None = None, seconds: float = 0.0) -> Summary:
        """Where the batch stands now."""
        return Summary(len(self), self.answered, self.failed, self.left, tally or Tally(), seconds)

    def finish(self, *, sort: bool = False) -> None:
        """Makes all that was recorded durable; with `sort`, puts the output in input order first.

        Blocks. The batch stays open.

        Raises:
          BatchError: a file cannot be written; it is as it was before then.
        """
        if sort:
            self.ledger.sort()
        self.ledger.flush()

    def close(self) -> None:
        """Closes the files and gives the lock back; again does nothing."""
        self._closing.close()


def _read(
    job: Job, stack: contextlib.ExitStack, written: Sequence[str] = ()
) -> tuple[Source, Index]:
    source = open_source(job.inputs, job.form, written=written)
    index = stack.enter_context(contextlib.closing(Index.build(source)))
    if not len(index):
        raise BatchError(f"{', '.join(source.names)}: there is no line in it to answer")
    return source, index
