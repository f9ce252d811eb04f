"""Pictures: what is in them, how large they are, and what is said without matplotlib."""

import builtins
import struct

import matplotlib as mpl
import pytest
from experiment.made_records import GB, WHERE, cells, record, records
from matplotlib.collections import LineCollection

from tpuinfer.errors import ConfigError
from tpuinfer.experiment.plots import plot


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


@pytest.mark.parametrize("count", [2, 24])
def test_a_bar_a_cell_in_three_panels(tmp_path, count):
    figure = plot(records(count), tmp_path / "a.png")
    width, height = png_size(tmp_path / "a.png")
    assert (width > height) == (count == 24)
    assert height == 1200
    steps, memory, collectives = figure.axes
    assert [ax.get_ylabel() for ax in figure.axes] == [
        "decode step (ms)",
        "memory of a device (GB)",
        "collectives of a step (kB)",
    ]
    assert len(steps.patches) == count - 1
    assert [bar.get_height() for bar in steps.patches] == [1.0 + at for at in range(count - 1)]
    assert len(memory.patches) == 4 * count
    assert len(collectives.patches) == 2 * count
    labels = [one.get_text() for one in collectives.get_xticklabels()]
    assert (len(labels), labels[0]) == (count, "1  1d")
    assert "refused" in [one.get_text() for one in steps.texts]


def test_bounds_and_capacities_are_lines():
    steps, memory, _ = plot([record(cell) for cell in cells()]).axes
    bounds = [one for one in steps.collections if isinstance(one, LineCollection)]
    assert {float(one.get_segments()[0][0][1]) for one in bounds} >= {1.0}
    lines = [float(one.get_segments()[0][0][1]) for one in memory.collections]
    assert lines == [8.0] * 4
    assert memory.get_ylim()[1] > 8


def test_a_capacity_far_away_is_written():
    far = {**record(cells()[0]).hbm, "capacity": 100 * GB}
    _, memory, _ = plot([record(cell, hbm=far) for cell in cells()]).axes
    assert memory.get_title("left") == "capacity, beyond the scale: 100.0 GB"
    assert memory.get_ylim()[1] < 10


def test_what_did_not_run_is_drawn_at_its_bound():
    steps, _, _ = plot([record(cell, None) for cell in cells()]).axes
    assert [bar.get_height() for bar in steps.patches] == [1.0] * 4
    assert all(bar.get_hatch() for bar in steps.patches)
    legend = [one.get_text() for one in steps.get_legend().get_texts()]
    assert legend == ["1d (bound)", "data (bound)"]


def test_devices_that_are_simulated_are_told_wherever_they_stand():
    real, simulated = (
        record(cell, where={**WHERE, "simulated": made})
        for cell, made in zip(cells()[:2], (False, True), strict=True)
    )
    said = "simulated devices on one machine"
    assert said in plot([real, simulated]).get_suptitle()
    assert said not in plot([real]).get_suptitle()


def test_unknown_collectives_are_a_question_mark():
    given = record(cells()[0])
    programs = {"decode": {**given.decode, "collectives": None}}
    _, _, ax = plot([record(cells()[0], programs=programs), record(cells()[1])]).axes
    assert [one.get_text() for one in ax.texts] == ["?", "5"]


def test_nothing_global_is_touched(tmp_path):
    before = mpl.get_backend(auto_select=False)
    figure = plot(records(3), tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().count("<svg") == 1
    assert mpl.get_backend(auto_select=False) == before
    assert figure._repr_png_()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("name", "says"), [("a.pdf", r"nearest: a\.png"), ("none/a.png", "is no folder")]
)
def test_a_file_that_cannot_be_is_refused(tmp_path, name, says):
    with pytest.raises(ConfigError, match=says):
        plot(records(2), tmp_path / name)


def test_no_records_no_plot():
    with pytest.raises(ConfigError, match="no records to plot"):
        plot([])


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *given, **others):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *given, **others)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"pip install 'tpuinfer\[plot\]'"):
        plot(records(2))
