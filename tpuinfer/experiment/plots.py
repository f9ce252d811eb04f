"""Records as a picture: step times, memory, collectives; one bar a cell in each of three panels.

matplotlib is needed here and nowhere else. No pyplot: nothing is global, and no display is asked.
"""

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpuinfer.errors import ConfigError
from tpuinfer.experiment.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")

# Okabe and Ito's colours, which the colour-blind tell apart (jfly.uni-koeln.de/color).
_BLUE, _ORANGE, _GREEN, _SKY = "#0072B2", "#E69F00", "#009E73", "#56B4E9"
_RED, _PINK, _YELLOW, _GREY = "#D55E00", "#CC79A7", "#F0E442", "#999999"
_PALETTE = (_BLUE, _ORANGE, _GREEN, _PINK, _SKY, _RED, _YELLOW, _GREY)

_MEMORY = {"weights": _BLUE, "rings": _ORANGE, "state": _PINK, "temporaries": _SKY}

_WIDTH = 0.8
"""Of a bar; between meshes there is half a bar's place more."""

_INCHES_A_CELL, _LEAST_INCHES, _MOST_INCHES, _HEIGHT = 0.5, 7.0, 24.0, 10.0

_FAR = 3.0
"""A capacity so many times what is used is written, not drawn: it would flatten the bars."""


@dataclass(frozen=True)
class _Bars:
    """The cells along the x axis.

    Attributes:
      places: of the bars. labels: what tells the cells apart.
    """

    records: Sequence[Record]
    places: Sequence[float]
    labels: Sequence[str]


def plot(records: Sequence[Record], path: str | Path | None = None) -> "Figure":
    """Three panels: decode steps with their bounds, memory of a device, collectives of a step.

    Args:
      path: where to write it, PNG or SVG by its suffix; None = nowhere, a notebook shows it.

    Returns:
      The figure, a `matplotlib.figure.Figure`.

    Raises:
      ConfigError: matplotlib is not installed, there are no records, or the file cannot be written.
    """
    if path is not None:
        check(path)
    if not records:
        raise ConfigError("there are no records to plot: sweep at least one cell")
    figure = _figure(len(records))
    bars = _bars(records)
    axes = figure.subplots(3, 1, sharex=True)
    _steps(axes[0], bars)
    _memory(axes[1], bars)
    _collectives(axes[2], bars)
    axes[2].set_xticks(bars.places, bars.labels, rotation=45, ha="right", rotation_mode="anchor")
    axes[2].set_xlim(bars.places[0] - 0.75, bars.places[-1] + 0.75)
    figure.suptitle("\n".join(textwrap.wrap(_title(records), 12 * int(figure.get_figwidth()))))
    if path is not None:
        _save(figure, Path(path).expanduser())
    return figure


def check(path: str | Path) -> None:
    """Whether a plot could be written there, before a sweep is run for it.

    Raises:
      ConfigError: as `plot`.
    """
    path = Path(path).expanduser()
    _import()
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"plot is {str(path)!r}: PNG and SVG are drawn; nearest: {path.stem}.png")
    if not path.parent.is_dir():
        raise ConfigError(f"plot is {str(path)!r}: {path.parent} is no folder; make it")


def _import() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "matplotlib, which draws, is not installed: pip install 'tpuinfer[plot]'"
        ) from error


def _figure(cells: int) -> "Figure":
    """An empty figure that notebooks show as it is."""
    _import()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    class Shown(Figure):
        def _repr_png_(self) -> bytes:
            made = io.BytesIO()
            self.savefig(made, format="png")
            return made.getvalue()

    width = min(_MOST_INCHES, max(_LEAST_INCHES, 3.5 + _INCHES_A_CELL * cells))
    figure = Shown(figsize=(width, _HEIGHT), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _bars(records: Sequence[Record]) -> _Bars:
    """Places with a gap wherever mesh or topology change, and labels of what differs."""
    parts: list[Callable[[Record], str]] = [
        lambda one: str(one.cell["model"]),
        lambda one: str(one.cell["topology"] or one.where["device_kind"]),
        lambda one: one.mesh,
        lambda one: str(one.cell["rules"]),
        lambda one: str(one.cell["slots"]),
        lambda one: f"context {one.context}",
        lambda one: str(one.cell["weights"]),
        lambda one: f"ring {one.cell['ring']}",
    ]
    said = [[part(one) for part in parts] for one in records]
    named = [
        at for at in range(len(parts)) if at in (2, 3) or len({words[at] for words in said}) > 1
    ]
    places, at = [], 0.0
    for number, words in enumerate(said):
        if number and words[:3] != said[number - 1][:3]:
            at += 0.5
        places.append(at)
        at += 1.0
    return _Bars(records, places, ["  ".join(words[at] for at in named) for words in said])


def _title(records: Sequence[Record]) -> str:
    """What all cells have alike."""
    parts = [
        {str(one.cell["model"]) for one in records},
        {str(one.cell["topology"] or one.where["device_kind"]) for one in records},
        {f"{one.cell['slots']} slots" for one in records},
        {f"{one.where['how']}" for one in records},
    ]
    words = [values.pop() for values in parts if len(values) == 1]
    if any(one.where["simulated"] for one in records):
        words.append("simulated devices on one machine")
    return ", ".join(words)


def _steps(ax: "Axes", bars: _Bars) -> None:
    """Bars of what was measured, or, hollow, of the bound alone; the bound as a line across."""
    names = list(dict.fromkeys(str(one.cell["rules"]) for one in bars.records))
    legend: dict[str, Any] = {}
    tops: list[float] = []
    limits = {one.decode["limit"] for one in bars.records if one.ok}
    for one, at in zip(bars.records, bars.places, strict=True):
        rules = str(one.cell["rules"])
        colour = _PALETTE[names.index(rules) % len(_PALETTE)]
        if not one.ok or one.step_ms is None:
            continue
        measured = one.decode["measured_ms"]
        hollow: dict[str, Any] = {} if measured else {"alpha": 0.55, "hatch": "//"}
        drawn = ax.bar(at, one.step_ms, _WIDTH, color=colour, edgecolor="white", **hollow)
        legend.setdefault(rules if measured else f"{rules} (bound)", drawn)
        if measured:
            ends = [[one.step_ms - measured["p10"]], [measured["p90"] - one.step_ms]]
            ax.errorbar(at, one.step_ms, yerr=_no_less(ends), color=_GREY, capsize=2, lw=1)
        if measured and one.decode["bound_ms"] is not None:
            half = 0.5 * _WIDTH
            line = ax.hlines(one.decode["bound_ms"], at - half, at + half, color="black", lw=2)
            legend.setdefault("bound", line)
        top = max(one.step_ms, measured["p90"] if measured else 0.0)
        if len(limits) > 1:
            ax.annotate(one.decode["limit"], (at, top), ha="center", va="bottom", fontsize=7)
        tops.append(top)
    _say_failures(ax, bars)
    ax.set_ylabel("decode step (ms)")
    if limits:
        said = f"by {limits.pop()}" if len(limits) == 1 else "by what stands over its bar"
        ax.set_title(f"every step is bound {said}", fontsize=9, loc="left")
    if "bound" in legend:
        legend["bound"] = legend.pop("bound")  # the last
    _finish(ax, legend, max(tops, default=0.0))


def _no_less(ends: list[list[float]]) -> list[list[float]]:
    return [[max(0.0, one) for one in side] for side in ends]


def _memory(ax: "Axes", bars: _Bars) -> None:
    """Weights, rings, state and temporaries of a device on each other, and its capacity."""
    held = [one.hbm for one in bars.records]
    used = [sum(hbm[kind] for kind in _MEMORY) if hbm else 0 for hbm in held]
    unit, scale = _unit(max(used))
    stacks = {kind: [hbm[kind] / scale if hbm else 0.0 for hbm in held] for kind in _MEMORY}
    legend = _stack(ax, bars, stacks, _MEMORY)
    top = max(used) / scale
    far = set()
    for hbm, at in zip(held, bars.places, strict=True):
        if hbm and hbm["capacity"] <= _FAR * max(used):
            ends = (at - 0.5 * _WIDTH - 0.1, at + 0.5 * _WIDTH + 0.1)
            line = ax.hlines(hbm["capacity"] / scale, *ends, color="black", ls="--", lw=1.5)
            legend.setdefault("capacity", line)
            top = max(top, hbm["capacity"] / scale)
        elif hbm:
            far.add(f"{hbm['capacity'] / 1e9:.1f} GB")
    if far:
        ax.set_title(
            f"capacity, beyond the scale: {', '.join(sorted(far))}", fontsize=9, loc="left"
        )
    ax.set_ylabel(f"memory of a device ({unit})")
    _finish(ax, legend, top)


def _collectives(ax: "Axes", bars: _Bars) -> None:
    """Bytes of a decode step's collectives by kind, and how many there are."""
    found = [one.decode.get("collectives") for one in bars.records]
    kinds = list(dict.fromkeys(kind for one in found if one for kind in one))
    sums = [sum(one["bytes"] for one in each.values()) if each else 0 for each in found]
    unit, scale = _unit(max(sums))
    stacks = {
        kind: [each[kind]["bytes"] / scale if each and kind in each else 0.0 for each in found]
        for kind in kinds
    }
    colours = {kind: _PALETTE[at % len(_PALETTE)] for at, kind in enumerate(kinds)}
    legend = _stack(ax, bars, stacks, colours)
    for each, size, at, one in zip(found, sums, bars.places, bars.records, strict=True):
        count = sum(one["count"] for one in each.values()) if each else 0
        if one.ok:
            text = "?" if each is None else str(count)
            ax.annotate(text, (at, size / scale), ha="center", va="bottom", fontsize=8)
    ax.set_ylabel(f"collectives of a step ({unit})")
    ax.set_title("of one device; the numbers say how many", fontsize=9, loc="left")
    _finish(ax, legend, max(sums) / scale)


def _stack(
    ax: "Axes", bars: _Bars, stacks: Mapping[str, Sequence[float]], colours: Mapping[str, str]
) -> dict[str, Any]:
    """Bars on each other; returns a legend."""
    bottom, legend = [0.0] * len(bars.places), {}
    for kind, heights in stacks.items():
        legend[kind] = ax.bar(
            bars.places,
            heights,
            _WIDTH,
            bottom=bottom,
            color=colours[kind],
            edgecolor="white",
            linewidth=0.3,
        )
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    return legend


def _say_failures(ax: "Axes", bars: _Bars) -> None:
    for one, at in zip(bars.records, bars.places, strict=True):
        if not one.ok:
            where = (at, 0.03)
            ax.annotate(
                one.status,
                where,
                xycoords=("data", "axes fraction"),
                rotation=90,
                ha="center",
                va="bottom",
                color=_RED,
                fontsize=9,
            )


def _finish(ax: "Axes", legend: Mapping[str, Any], top: float) -> None:
    """Frame, grid, legend; the axis goes from 0 to a little above the highest bar."""
    ax.set_ylim(0, 1.12 * top or 1)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.3)
    ax.set_axisbelow(True)
    if legend:
        ax.legend(
            list(legend.values()),
            list(legend),
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
            frameon=False,
            fontsize=9,
        )


def _unit(most: float) -> tuple[str, float]:
    """A unit that the largest of some bytes is written in."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if most >= scale:
            return unit, scale
    return "bytes", 1.0


def _save(figure: "Figure", path: Path) -> None:
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"plot is {str(path)!r}: cannot be written ({error.strerror})") from error
