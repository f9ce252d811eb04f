"""What a person sees of a run: a bar on a terminal; elsewhere a line in the log as it begins."""

import logging
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tpuinfer.offline.meter import Bill
from tpuinfer.offline.run import Tally

_log = logging.getLogger(__name__)

_EVERY = 0.25
"""Seconds between two looks at a run."""


class Display:
    """Shows one run. Use as a context manager, and hand `update` to it."""

    def __init__(
        self,
        *,
        total: int,
        done: int,
        failed: int,
        bill: Callable[[Tally, float], Bill],
        console: Console | None = None,
    ) -> None:
        """Shows the lines of the batch, those of earlier runs included.

        Args:
          total: lines of the input. done: those with an outcome before, `failed` of them failed.
          bill: what a tally comes to after so many seconds.
        """
        self._total, self._done, self._failed, self._bill = total, done, failed, bill
        self._start = self._next = time.monotonic()
        console = console or Console(stderr=True)
        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._shown = console.is_terminal
        self._task = self._bar.add_task("", total=total, completed=done, rates="")

    def __enter__(self) -> "Display":
        self._start = self._next = time.monotonic()
        self._bar.start()
        if not self._shown:
            _log.info("%s lines, %s of them done", f"{self._total:,}", f"{self._done:,}")
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, tally: Tally) -> None:
        """Called as often as one likes; looks at the clock only, but for a few times a second."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _EVERY
        bill = self._bill(tally, now - self._start)
        if self._shown:
            self._bar.update(
                self._task,
                completed=self._done + tally.answered + tally.failed,
                rates=_rates(bill, self._failed + tally.failed),
            )


def _rates(bill: Bill, failed: int) -> str:
    parts = [f"{failed:,} failed"] if failed else []
    if rate := bill.generated_per_second:
        parts.append(f"{rate:,.0f} tok/s")
    elif rate := bill.prompt_per_second:
        parts.append(f"{rate:,.0f} prompt tok/s")
    if (fraction := bill.fraction) is not None:
        parts.append(f"{fraction:.0%} of the bound")
    return ", ".join(parts)
