"""Which collectives a program cannot do without, and over which mesh axes: reckoned from places.

What a program computes lies somewhere: rows over some mesh axes, columns over others. Where one
step leaves it and the next wants it elsewhere, it travels:

    rows    columns        rows    columns
    data    model      ->  data    -             all-gather over model
    data    -          ->  -       data          all-to-all over data
    -       -          ->  data    model         nothing: each device drops what is not its own

Maps, sums and norms are those of `models.placed`: rows come together over mesh axes that cut the
weight too; sums are reduce-scatters along columns, and travel on from there. A sum that goes in two
stages (`sharding.reduce.neighbours`) is counted as one: the bytes on the links are the same.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tpuinfer.models.blueprint import Axes, Weight
from tpuinfer.planning.traffic import Collective
from tpuinfer.sharding.layout import Layout
from tpuinfer.sharding.reduce import divides, padded
from tpuinfer.sharding.rules import as_names

Names = tuple[str, ...]
Per = Literal["token", "row", "call"]
"""What the bytes of an exchange are for: each token, each row of the head, or a whole call."""


Piece = tuple[tuple[int, ...], Axes, int]
"""(shape, axes, bits of an element) of an array that a weight is kept in."""


@dataclass(frozen=True)
class Exchange:
    """All collectives of one kind over the same mesh axes.

    Attributes:
      axes: mesh axes; devices: along each of them.
      count: how many run. nbytes: of the larger side of each on one device, all together.
    """

    kind: str
    axes: Names
    devices: tuple[int, ...]
    count: int
    nbytes: int

    @property
    def group(self) -> int:
        """Devices that take part in one."""
        return math.prod(self.devices)


def by_kind(exchanges: Iterable[Exchange]) -> dict[str, Collective]:
    """The same without their axes, as a compiled program's are counted."""
    found: dict[str, Collective] = {}
    for one in exchanges:
        seen = found.get(one.kind, Collective(0, 0))
        found[one.kind] = Collective(seen.count + one.count, seen.nbytes + one.nbytes)
    return found


class Lies(NamedTuple):
    """Over which mesh axes rows are cut, and over which the columns of each."""

    rows: Names
    columns: Names


@dataclass
class Tally:
    """Exchanges as they come up, by kind and axes.

    Attributes:
      width: bytes of an activation.
      times: how many layers have what comes up next.
      moved: bytes of HBM that weights take which are brought together: read, and written.
    """

    layout: Layout
    width: int
    times: int = 1
    counts: dict[tuple[str, Names], int] = field(default_factory=dict)
    sizes: dict[tuple[str, Names, Per], float] = field(default_factory=dict)
    moved: int = 0

    def add(self, kind: str, axes: Names, nbytes: float, per: Per, count: int = 1) -> None:
        """One exchange, or several alike, in each of `times` layers.

        Args:
          nbytes: of the larger side on one device, all together; for one token of its data shard,
            one row, or a call.
        """
        self.counts[kind, axes] = self.counts.get((kind, axes), 0) + count * self.times
        key = kind, axes, per
        self.sizes[key] = self.sizes.get(key, 0) + nbytes * self.times

    def exchanges(self, tokens: int, rows: int) -> tuple[Exchange, ...]:
        """Of a call with so many tokens and rows of the head, on one data shard."""
        times: dict[Per, int] = {"token": tokens, "row": rows, "call": 1}
        return tuple(
            Exchange(
                kind,
                axes,
                tuple(self.layout.mesh.shape[name] for name in axes),
                count,
                round(sum(self.sizes.get((kind, axes, per), 0) * n for per, n in times.items())),
            )
            for (kind, axes), count in self.counts.items()
        )

    def devices(self, axes: Iterable[str]) -> int:
        return math.prod(self.layout.mesh.shape[name] for name in axes)

    def bytes_at(self, columns: int, at: Lies, width: int) -> float:
        """Bytes on one device of so many columns, for one token of a data shard."""
        rows = self.layout.shards("batch") / self.devices(at.rows)
        return rows * columns / self.devices(at.columns) * width

    def move(
        self, columns: int, before: Lies, after: Lies, per: Per = "token", width: int | None = None
    ) -> None:
        """Rows that lie so, and are wanted so."""
        width, had = width or self.width, {*before.rows, *before.columns}
        rows = (*before.rows, *(name for name in after.rows if name not in had))
        new = tuple(name for name in after.columns if name not in had)
        there = Lies(rows, (*before.columns, *new))
        turned = tuple(
            name
            for name in (*before.rows, *before.columns)
            if (name in before.rows and name in after.columns)
            or (name in before.columns and name in after.rows)
        )
        for name in turned:  # one after the other
            self.add("all-to-all", (name,), self.bytes_at(columns, there, width), per)
        if gone := tuple(
            name for name in there.rows + there.columns if name not in after.rows + after.columns
        ):
            self.add("all-gather", gone, self.bytes_at(columns, after, width), per)

    def summed(
        self, columns: int, at: Lies, axes: Names, per: Per = "token", width: int | None = None
    ) -> None:
        """Partial sums that lie so, added up over these mesh axes, wherever they are wanted."""
        width, own = width or self.width, columns // self.devices(at.columns)
        payload = self.bytes_at(padded(own, self.devices(axes)), Lies(at.rows, ()), width)
        if self.layout.rules.reduce == "exact":
            self.add("all-gather", axes, payload * self.devices(axes), per)
            return
        self.add("reduce-scatter", axes, payload, per)
        self.add("all-gather", axes, payload, per)

    def summed_apart(
        self, columns: int, at: Lies, axes: Names, per: Per = "token", width: int | None = None
    ) -> Lies:
        """As `summed`, but each device keeps its piece, where that is possible: where it then lies.

        Where it is not, every device gets all, as `models.placed` has it.
        """
        even = divides(columns, self.devices((*at.columns, *axes)), "tpu")
        if not even or self.layout.rules.reduce == "exact":
            self.summed(columns, at, axes, per, width)
            return at
        self.add("reduce-scatter", axes, self.bytes_at(columns, at, width or self.width), per)
        return Lies(at.rows, (*at.columns, *axes))


def place(layout: Layout, axes: Axes) -> Lies:
    """Where rows lie whose columns bear these logical axes: `Layout.spec`, in short."""
    columns = _all(layout, axes)
    return Lies(_left(layout, columns), columns)


def through(tally: Tally, w: Weight, given: Lies | None, into: Axes, per: Per, width: int) -> None:
    """A map of rows by a weight: they come to where it lies, and what they become goes home.

    Args:
      given: where the rows lie; None = another map has brought them there already.
      into: logical axes of what is made. width: bytes of one of its elements.
    """
    layout = tally.layout
    ins, outs = w.axes[-w.contracted :], w.axes[: -w.contracted]
    meets = meeting(layout, w)
    if given is not None:
        tally.move(math.prod(w.shape[-w.contracted :]), given, meets, per)
    columns, at = math.prod(w.shape[: -w.contracted]), Lies(meets.rows, _all(layout, outs))
    _totalled(tally, columns, at, _all(layout, ins), into, per, width)


def _totalled(
    tally: Tally, columns: int, at: Lies, summed: Names, into: Axes, per: Per, width: int
) -> None:
    """What was made there, summed over these mesh axes, goes where rows are wanted."""
    layout, home = tally.layout, place(tally.layout, into)
    residual = layout.axes_of("residual")
    kept = residual if into[-1] == "residual" and {*residual} <= {*summed} else ()
    if summed and (kept or {*home.rows} - {*at.rows}):
        at = tally.summed_apart(columns, at, summed, per, width)
    elif summed:
        tally.summed(columns, at, summed, per, width)
    tally.move(columns, at, home, per, width)


def meeting(layout: Layout, w: Weight) -> Lies:
    """Where the rows of a map lie while it is computed."""
    return Lies(_left(layout, _all(layout, w.axes)), _all(layout, w.axes[-w.contracted :]))


def looked_up(tally: Tally, columns: int) -> None:
    """Rows of an embedding [V, D]: each device looks up what it keeps."""
    layout = tally.layout
    vocab, embed = (layout.stored_axes_of(axis) for axis in ("vocab", "embed"))
    at = Lies(_left(layout, vocab + embed), embed)
    _totalled(tally, columns, at, vocab, ("residual",), "token", tally.width)


def mixed(tally: Tally, embed: int) -> None:
    """A mixture of experts: each device adds up what it has of them."""
    axes = _all(tally.layout, ("expert_mlp", "expert"))
    at = Lies(_left(tally.layout, axes), ())
    tally.move(embed, place(tally.layout, ("residual",)), at)
    _totalled(tally, embed, at, axes, ("residual",), "token", tally.width)


def normed(tally: Tally, per: Per) -> None:
    """A norm of rows that are cut along embed: each device tells the others its sum of squares."""
    if axes := tally.layout.axes_of("residual"):
        tally.add("all-gather", axes, 4 * tally.devices(axes), per)


def attended(tally: Tally, layers: int, heads: int, head_dim: int) -> None:
    """Rings that are cut along their length: queries come to all parts, sums of softmax go back.

    As `cache.by_length` has it: two all-to-alls of float32. Where heads are whole on every device,
    it is not queries that are gathered, but what comes of them.
    """
    layout = tally.layout
    if not (axes := layout.axes_of("length")):
        return
    own, parts = heads // layout.shards("kv_heads"), layout.shards("length")
    filled = -(-own // parts) * parts
    tally.add("all-to-all", axes, layers * filled * (head_dim + 2) * 4, "token", 2 * layers)
    tally.add("all-gather", axes, layers * filled * head_dim * tally.width, "token", layers)


def brought(tally: Tally, arrays: Sequence[Piece]) -> int:
    """A weight that is used elsewhere than it is kept: it is gathered, or changes its place.

    Args:
      arrays: each that it is kept in.

    Returns:
      Bytes of HBM that its products read. What is brought is read and written before: of models of
      a few layers the compiler gathers half into VMEM instead, of whole ones next to nothing.
    """
    layout, read = tally.layout, 0
    for shape, axes, bits in arrays:
        size = math.prod(shape) * bits
        kept, used = (list(map(as_names, spec(axes))) for spec in (layout.stored, layout.spec))
        before, after = _dimension_of(kept), _dimension_of(used)
        here, there = (size // (8 * tally.devices(names)) for names in (before, after))
        turned = tuple(name for name in before if after.get(name, before[name]) != before[name])
        gone = tuple(name for name in before if name not in after)
        if turned:
            tally.add("all-to-all", turned, max(here, there), "call")
        if gone:
            tally.add("all-gather", gone, there, "call")
        read += there
        if turned or gone:
            tally.moved += (here + there) * tally.times
    return read


def _dimension_of(spec: Sequence[Names]) -> Mapping[str, int]:
    return {name: at for at, names in enumerate(spec) for name in names}


def _left(layout: Layout, taken: Names) -> Names:
    """Mesh axes that cut rows still, where the others are taken."""
    return tuple(name for name in layout.axes_of("batch") if name not in taken)


def _all(layout: Layout, axes: Axes) -> Names:
    return tuple(name for axis in axes for name in layout.axes_of(axis))
