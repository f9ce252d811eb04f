"""What a person sees: a bar on a terminal, a line elsewhere."""

import io
import logging

from rich.console import Console

from tpuinfer.offline import progress
from tpuinfer.offline.meter import Bill
from tpuinfer.offline.progress import Display
from tpuinfer.offline.run import Tally


def bill(tally, seconds):
    return Bill(tally.answered, 0, tally.completion_tokens, 2.0, floor=lambda *_: 1.0)


def test_a_terminal_sees_lines_rates_and_the_bound(monkeypatch):
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, color_system=None)
    with Display(total=40, done=10, failed=2, bill=bill, console=console) as display:
        display.update(Tally(answered=9, failed=1, completion_tokens=100))
    shown = stream.getvalue()
    assert "20/40" in shown
    assert "3 failed, 50 tok/s, 50% of the bound" in shown


def test_elsewhere_nothing_moves(caplog):
    stream = io.StringIO()
    with (
        caplog.at_level(logging.INFO, "tpuinfer"),
        Display(total=4000, done=10, failed=2, bill=bill, console=Console(file=stream)) as display,
    ):
        display.update(Tally(answered=9))
    assert stream.getvalue() == ""
    assert [record.getMessage() for record in caplog.records] == ["4,000 lines, 10 of them done"]


def test_a_clock_is_looked_at_and_no_more():
    asked = []

    def counted(tally, seconds):
        asked.append(tally.answered)
        return bill(tally, seconds)

    console = Console(file=io.StringIO(), force_terminal=True)
    with Display(total=40, done=0, failed=0, bill=counted, console=console) as display:
        for answered in range(40):
            display.update(Tally(answered=answered))
    assert asked[0] == 0
    assert len(asked) < 5
