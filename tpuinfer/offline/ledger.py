"""What a batch has answered and what it has refused: two journals, and the marks they make.

An id has an answer, or an error, or is still to do. The journals say which, and nothing else:

    out.jsonl          a  c           a and c are answered
    out.errors.jsonl   b  c           b is refused; c once was: its line here is stale
    marks              a answered, b failed, c answered; d to do

Lines are only appended while a batch runs, so that a kill at any moment leaves journals that say
what was done. Stale lines are dropped by rewriting the errors whole, at the next start at the
latest.
"""

import contextlib
import logging
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from tpuinfer.offline.disk import place
from tpuinfer.offline.index import Index
from tpuinfer.offline.journal import Journal
from tpuinfer.offline.parts import Parts, open_journal
from tpuinfer.offline.task import BatchError, Task

_LOG = logging.getLogger(__name__)
_FOREIGN = -1  # the position of a line whose request is not in the input
_MOVED = -2  # that of an error known by its place, where another line may stand now


class Ledger:
    """Both journals of one batch, open, and its `Index`, marked with what they hold.

    Attributes:
      foreign: lines in either journal whose request is not in the input; they are kept.
    """

    def __init__(self, output: Journal | Parts, errors: Journal | Parts, index: Index) -> None:
        """Takes open journals that have not been read; `open` reads them."""
        self.foreign = 0
        self._output = output
        self._errors = errors
        self._index = index
        self._foreign_answers: list[tuple[int, int]] = []  # (offset, length)
        self._retrying = False
        self._stale = False  # the errors may hold lines that an outcome has overtaken

    @classmethod
    def open(
        cls,
        output: str,
        errors: str,
        index: Index,
        *,
        accept: bool = False,
        retry_errors: bool = False,
        sync_lines: int | None = None,
        sync_seconds: float | None = None,
    ) -> "Ledger":
        """Opens both journals, marks in `index` what they hold, and drops stale errors.

        Args:
          output, errors: paths, or URLs of object storage.
          index: of the input, without marks.
          accept: whether the input may have changed: answers to requests that are not in it are
            kept, not refused; errors known by their place alone are dropped, and what stands there
            now is to do.
          retry_errors: whether what has failed is still to do; its error stays until it has
            another outcome.
          sync_lines, sync_seconds: as `open_journal` takes them.

        Raises:
          BatchError: a journal cannot be opened; a line in it is no line of a batch, answers a
            request that is not in the input, or one that has been answered (file and line are
            named).
        """
        if place(output) == place(errors):
            raise BatchError(
                f"{errors}: answers and errors go to two files; give --errors another path"
            )
        with contextlib.ExitStack() as stack:
            answers, refusals = (
                stack.enter_context(
                    contextlib.closing(
                        open_journal(path, sync_lines=sync_lines, sync_seconds=sync_seconds)
                    )
                )
                for path in (output, errors)
            )
            ledger = cls(answers, refusals, index)
            ledger._read_answers(accept)
            ledger._read_errors(accept, retry_errors)
            stack.pop_all()
        return ledger

    def is_done(self, position: int) -> bool:
        """Whether the line has an outcome: an answer, or an error that is not to be tried again."""
        return self._index.is_done(position)

    def record(self, task: Task, line: bytes, ok: bool) -> None:
        """Appends the outcome of a task to its journal, and marks it.

        Args:
          line: JSON, without its end; it holds the task's `custom_id`, or null and its `where` as
            "line".
          ok: whether it is an answer.

        Raises:
          BatchError: it could not be written; the task is not marked.
        """
        if self._index.is_done(task.position):
            raise ValueError(f"{task.where} has an outcome already")
        if ok:
            offset = self._output.append(line)
            self._index.mark(task.position, offset=offset, length=len(line))
        else:
            self._errors.append(line)
            self._index.mark_failed(task.position)
        self._stale = self._stale or self._retrying

    def sort(self) -> None:
        """Puts the answers in the input's order; foreign ones behind them.

        A file of this machine is replaced whole, and is a journal as before; beside parts,
        sorted.jsonl is written. Where all is in order nothing is done.

        Raises:
          BatchError: it could not be written; the output is as it was.
        """
        self.flush()
        size, last, in_order = 0, -1, True
        for offset, length in self._places():
            in_order = in_order and offset > last
            size, last = size + length + 1, offset
        lines = (self._output.read(offset, length) for offset, length in self._places())
        if isinstance(self._output, Parts):
            self._output.put_sorted(lines, size)
        elif size != self._output.size:
            raise BatchError(
                f"{self._output.path}: has {self._output.size:,} bytes, and answers known of have "
                f"{size:,}; something else has written to it: run the command again"
            )
        elif not in_order:
            self._output.rewrite(lines)
            self._follow_sort()

    def flush(self) -> None:
        """Makes all that was recorded durable, and drops errors that an outcome has overtaken.

        Raises:
          BatchError: a file cannot be written; what was recorded before is safe.
        """
        self._output.flush()  # before the errors: one is dropped only for an answer that is safe
        self._errors.flush()
        if self._stale:
            self._drop_stale(*self._scan_errors(accept=True))

    def outcomes(self) -> Iterator[bytes | None]:
        """Each request's line, in the input's order; None of one that has none yet.

        It takes 16 bytes for a line of the input.

        Raises:
          BatchError: a journal cannot be read.
        """
        offsets, lengths = array("q", [-1]) * len(self._index), array("q", [0]) * len(self._index)
        positions, keep = self._scan_errors(accept=True)
        for (offset, line), position, kept in zip(
            self._errors.lines(), positions, keep, strict=True
        ):
            if kept and position != _FOREIGN:
                offsets[position], lengths[position] = offset, len(line)
        answers = self._index.in_order()
        answer = next(answers, None)
        for position, offset in enumerate(offsets):
            if answer is not None and answer[0] == position:
                yield self._output.read(answer[1], answer[2])
                answer = next(answers, None)
            else:
                yield None if offset < 0 else self._errors.read(offset, lengths[position])

    def close(self) -> None:
        """Makes all durable and closes both journals; closing twice is closing once.

        Raises:
          BatchError: a journal could not be written, now or before.
        """
        try:
            self._output.close()
        finally:
            self._errors.close()

    def _read_answers(self, accept: bool) -> None:
        """Marks what the output holds."""
        strangers = _Strangers(self._output, accept)
        for number, (offset, line) in enumerate(self._output.lines(), start=1):
            record = _parsed(self._output.path, number, line)
            custom_id = _text(record, "custom_id", self._output.path, number)
            position = self._index.position_of(custom_id)
            if position is None:
                strangers.add(number, custom_id)
                self._foreign_answers.append((offset, len(line)))
            elif self._index.is_done(position):
                raise BatchError(
                    f"{self._output.path}: custom_id {custom_id!r} is answered twice, the second "
                    f"time in line {number}; delete one of the two lines and run the command again"
                )
            else:
                self._index.mark(position, offset=offset, length=len(line))
        self.foreign += strangers.checked()

    def _read_errors(self, accept: bool, retry_errors: bool) -> None:
        """Marks what the errors hold, unless they are to be tried again, and drops stale ones."""
        positions, keep = self._scan_errors(accept, moved=accept)
        self.foreign += positions.count(_FOREIGN)
        self._drop_stale(positions, keep)
        self._retrying = retry_errors
        if not retry_errors:
            for position in positions:
                if position >= 0:
                    self._index.mark_failed(position)  # which changes nothing for an answered one

    def _scan_errors(self, accept: bool, *, moved: bool = False) -> tuple["array[int]", bytearray]:
        """(position, whether it is to be kept) of each line of the errors, in their order.

        Args:
          accept: whether there may be foreign ones.
          moved: whether those known by their place alone are stale.

        Kept is the last error of each request that has no answer, and what is foreign:

            lines      b   c   b   x        c has an answer; x is not in the input
            positions  1   2   1  -1
            keep       0   0   1   1

        It takes 9 bytes for a line of errors, and a bit for one of the input.
        """
        strangers = _Strangers(self._errors, accept)
        positions = array("q")
        for number, (_, line) in enumerate(self._errors.lines(), start=1):
            record = _parsed(self._errors.path, number, line)
            if "custom_id" in record and record["custom_id"] is None:
                name = _text(record, "line", self._errors.path, number)
                position = _MOVED if moved else self._index.position_at(name)
            else:
                name = _text(record, "custom_id", self._errors.path, number)
                position = self._index.position_of(name)
            if position is None:
                strangers.add(number, name)
            positions.append(_FOREIGN if position is None else position)
        strangers.checked()
        keep = bytearray(len(positions))
        seen = bytearray(len(self._index) // 8 + 1)
        for number in range(len(positions) - 1, -1, -1):
            position = positions[number]
            if position == _MOVED:
                continue
            byte, bit = position >> 3, 1 << (position & 7)
            if position == _FOREIGN:
                keep[number] = 1
            elif not seen[byte] & bit and not self._index.is_answered(position):
                keep[number] = 1
                seen[byte] |= bit
        return positions, keep

    def _drop_stale(self, positions: "array[int]", keep: bytearray) -> None:
        dropped = keep.count(0)
        if dropped:
            pairs = zip(self._errors.lines(), keep, strict=True)
            self._errors.rewrite(line for (_, line), kept in pairs if kept)
            _LOG.info("%s: %d of %d errors are overtaken", self._errors.path, dropped, len(keep))
        self._stale = False

    def _places(self) -> Iterator[tuple[int, int]]:
        """(offset, length) of each answer, in the order that sorting gives them."""
        for _, offset, length in self._index.in_order():
            yield offset, length
        yield from self._foreign_answers

    def _follow_sort(self) -> None:
        """Tells the index where answers lie in order: each where those before it end."""
        end = 0
        for position, _, length in self._index.in_order():
            self._index.move(position, offset=end, length=length)
            end += length + 1
        for number, (_, length) in enumerate(self._foreign_answers):
            self._foreign_answers[number] = (end, length)
            end += length + 1


class _Strangers:
    """Lines of a journal whose requests are not in the input: refused all together, or counted."""

    def __init__(self, journal: Journal | Parts, accept: bool) -> None:
        self._path = journal.path
        self._accept = accept
        self._first = ""
        self._count = 0

    def add(self, number: int, name: str) -> None:
        """Line `number` is about `name`, an id or a place."""
        self._first = self._first or f"{self._path}:{number}: {name!r}"
        self._count += 1

    def checked(self) -> int:
        """How many there are.

        Raises:
          BatchError: there are some, and they were not to be accepted.
        """
        if self._count and not self._accept:
            more = f" (and {self._count - 1:,} more lines)" if self._count > 1 else ""
            raise BatchError(
                f"{self._first} is not in the input{more}; give the input it was made from, "
                "another --output, or --accept-changes to keep it"
            )
        return self._count


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """A line of a journal.

    Raises:
      BatchError: it is no JSON object.
    """
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise BatchError(
            f"{path}:{number}: is no JSON object, so this journal is damaged or is none; delete "
            "that line, and its request runs again"
        )
    return value


def _text(record: dict[str, Any], name: str, path: Path, number: int) -> str:
    """A field of a line.

    Raises:
      BatchError: it is not there, or no text.
    """
    value = record.get(name)
    if not isinstance(value, str):
        raise BatchError(
            f"{path}:{number}: has no {name!r} that is a text, so it is no line of a batch; delete "
            "that line, and its request runs again"
        )
    return value
