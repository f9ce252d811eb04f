"""Rows, the table, and JSON."""

import dataclasses
import json

import pytest

from tpuinfer.benchmark.report import Report, number, render, row
from tpuinfer.benchmark.rounds import Outcome

CASE = {"live_slots": 8}


def made(theirs=None, ratios=None):
    outcome = Outcome((40.0, 50.0, 60.0), theirs, ratios)
    one = row("decode step, 8 live", CASE, outcome, tokens=8, bound=10, bound_by="memory")
    machine = {"platform": "cpu", "read_gb_per_second": 29.94}
    return Report("decode", machine, {"name": "tiny", "peer": None}, {"slots": 8}, [one], ["note"])


def test_a_row_by_hand():
    (one,) = made((90.0, 110.0), (2.0, 2.5, 1.5)).rows
    assert (one.median, one.p10, one.p90) == (50, 42, 58)
    assert one.tokens_per_second == 160
    assert (one.bound, one.fraction) == (10, 0.2)
    assert (one.peer, one.ratio) == (100, 2)
    assert (one.ratio_p10, one.ratio_p90) == pytest.approx((1.6, 2.4))


def test_without_a_peer_the_table_has_no_columns_for_one():
    text = render(made())
    assert "ratio" not in text
    assert "decode step, 8 live  ms    50.0" in text
    assert "0.20" in text


def test_the_table_says_what_it_ran_on_and_lines_up():
    lines = render(made((100.0,), (2.0,))).splitlines()
    assert lines[:3] == [
        "decode  name tiny",
        "on  platform cpu, read gb per second 29.9",
        "with  slots 8",
    ]
    head, body = lines[4:6]
    for column, cell in (("median", "50.0"), ("of bound", "0.20"), ("peer", "100")):
        assert head.index(column) == body.index(cell)
    assert lines[-1] == "note"


def test_a_peer_has_a_line_of_its_own():
    report = dataclasses.replace(made(), model={"name": "tiny", "peer": {"torch": "2"}})
    assert render(report).splitlines()[3] == "peer  torch 2"


def test_json_holds_plain_values():
    report = json.loads(json.dumps(made().as_json()))
    assert report["rows"][0]["case"] == CASE
    assert report["rows"][0]["ratio"] is None
    assert report.keys() == {"mode", "machine", "model", "settings", "rows", "notes"}


def test_numbers_keep_three_digits():
    assert [number(x) for x in (1234.5, 48.25, 1.2345, 0.01239, None)] == [
        "1234",
        "48.2",
        "1.23",
        "0.0124",
        "-",
    ]
