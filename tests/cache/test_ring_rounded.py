"""Rings that keep codes: written and attended to as a list of rows, each rounded on its own.

A head of five numbers, windows, sinks, chunks that go over the end of the ring and around it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tpuinfer.cache.held import Ring, Rows
from tpuinfer.cache.ring import Asked, RingAttention, Scores
from tpuinfer.quant.rows import stored
from tpuinfer.sharding.layout import resolve
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.rules import ShardingRules

SLOTS, KV, HEADS, HEAD, BLOCK = 4, 4, 8, 5, 4
TOP = {"int8": 127.0, "float8_e4m3fn": 448.0}
KINDS = pytest.mark.parametrize("kind", TOP)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of a ring: columns, and what a query sees."""

    length: int
    window: int | None = None
    sinks: int = 0

    def sees(self, position, other):
        near = self.window is None or other > position - self.window
        return other <= position and (near or other < self.sinks)


SHAPES = {"all": Shape(20), "window": Shape(8, 6), "sinks": Shape(8, 6, 2)}


def blank(shape, kind, junk=np.nan):
    """A ring that nobody wrote: what a former tenant may have left, at its worst."""
    size = (SLOTS, KV, shape.length, HEAD)
    codes = np.full(size, 127 if kind == "int8" and np.isnan(junk) else junk).astype(kind)
    codes = codes.view(stored(kind))
    scale = np.full(size[:-1], junk, np.float32)
    return Ring(codes, codes, shape.window, shape.sinks, scale, scale, "float32")


@functools.cache
def program(mesh, mode, cap=None):
    sizes = {"batch": SLOTS, "heads": HEADS, "kv_heads": KV}
    layout = resolve(ShardingRules(), build_mesh(parse_mesh(mesh)), sizes)
    attend = RingAttention(layout, BLOCK, mode)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(asked, ring, where):
        out, (ring,) = attend(asked, (ring,), where, Scores(cap=cap))
        return out, ring

    return run


def rounded(row, kind):
    """A row [H] of a head as codes and a scale, by the definition."""
    row = np.asarray(row, np.float32)
    most = np.abs(row).max()
    scale = np.float32(most / np.float32(TOP[kind])) if most else np.float32(1)
    codes = row / scale
    if kind == "int8":
        return np.rint(codes).astype(np.int8), scale
    return codes.astype(ml_dtypes.float8_e4m3fn), scale


class Held:
    """What the slots hold: of every position, keys and values [K, H] as their codes stand for."""

    def __init__(self, shape, kind, cap=None):
        self.shape, self.kind, self.cap = shape, kind, cap
        self.rows = {}

    def put(self, slot, position, k, v):
        pair = [[rounded(head, self.kind) for head in array] for array in (k, v)]
        self.rows[slot, position] = pair

    def attend(self, slot, position, q):
        """[N, H] -> [N, H], in float64."""
        seen = [
            [[codes.astype(np.float64) * scale for codes, scale in array] for array in pair]
            for (of, at), pair in self.rows.items()
            if of == slot and self.shape.sees(position, at)
        ]
        keys, values = (np.array([pair[side] for pair in seen]) for side in (0, 1))
        out = np.zeros(q.shape)
        for n in range(HEADS):
            kv = n // (HEADS // KV)
            scores = keys[:, kv] @ q[n] / np.sqrt(HEAD)
            if self.cap:
                scores = self.cap * np.tanh(scores / self.cap)
            weights = np.exp(scores - scores.max())
            out[n] = weights @ values[:, kv] / weights.sum()
        return out

    def assert_in(self, ring, slot, upto):
        """Codes, to the bit, and scales of the newest positions and of the sinks."""
        shape = self.shape
        first = max(0, upto - (shape.window or shape.length))
        for position in {*range(min(shape.sinks, upto)), *range(first, upto)}:
            turning = shape.sinks + (position - shape.sinks) % (shape.length - shape.sinks)
            column = position if position < shape.sinks else turning
            for (codes, scales), pair in zip(
                ((ring.keys, ring.key_scale), (ring.values, ring.value_scale)),
                self.rows[slot, position],
                strict=True,
            ):
                for head, (own, scale) in enumerate(pair):
                    np.testing.assert_array_equal(codes[slot, head, column].view(own.dtype), own)
                    np.testing.assert_allclose(scales[slot, head, column], scale, rtol=3e-7)


def drawn(random, rows, width):
    """q, k, v; rows of very different sizes, and one head that is all zeros."""

    def normal(heads):
        size = random.choice([0.01, 1, 30], (rows, width, heads, 1))
        return (random.standard_normal((rows, width, heads, HEAD)) * size).astype(np.float32)

    k = normal(KV)
    k[:, 0, 1] = 0
    return normal(HEADS) / 10, k, normal(KV)


def call(mesh, mode, held, ring, random, places, width):
    """One call: `places` has (slot, row of the call, start, length) of each row that is real."""
    count = SLOTS if mode == "decode" else 2
    slot, start, length = np.zeros((3, count), np.int32)
    if mode == "decode":
        slot[:] = np.arange(SLOTS) % (SLOTS // 2 if mesh == "2x4" else SLOTS)
    for own, row, first, size in places:
        slot[row] = own % 2 if mesh == "2x4" else own
        start[row], length[row] = first, size
    q, k, v = drawn(random, count, width)
    for own, row, first, size in places:
        for t in range(size):
            held.put(own, first + t, k[row, t], v[row, t])
        k[row, size:] = v[row, size:] = np.nan  # padding
    run = program(mesh, mode, held.cap)
    out, ring = jax.tree.map(np.asarray, run(Asked(q, k, v), ring, Rows(slot, start, length)))
    for own, row, first, size in places:
        for t in range(size):
            wanted = held.attend(own, first + t, q[row, t])
            np.testing.assert_allclose(out[row, t], wanted, rtol=1e-4, atol=1e-4)
        held.assert_in(ring, own, first + size)
    return ring


CASES = [
    ("1", "all", None, "int8"),
    ("1", "window", None, "float8_e4m3fn"),
    ("1", "window", 1.5, "int8"),
    ("1", "sinks", None, "float8_e4m3fn"),
    ("2x4", "sinks", None, "int8"),
]


@pytest.mark.parametrize(("mesh", "name", "cap", "kind"), CASES)
def test_by_a_list_of_rounded_rows(mesh, name, cap, kind):
    """Chunks of two slots at once, then steps of both, over a ring full of NaN."""
    shape, random = SHAPES[name], np.random.default_rng(5)
    held, ring = Held(shape, kind, cap), blank(shape, kind)
    at = {1: 0, 3: 0}
    for sizes in ((3, 2), (3, 3), (1, 3), (3, 0), (2, 3)):
        places = [
            (slot, row, at[slot], size)
            for row, (slot, size) in enumerate(zip(at, sizes, strict=True))
            if size
        ]
        ring = call(mesh, "prefill", held, ring, random, places, 3)
        for slot, size in zip(at, sizes, strict=True):
            at[slot] += size
    for mode in ("decode", "narrow", "decode"):
        places = [
            (slot, slot if mode == "decode" else row, at[slot], 1) for row, slot in enumerate(at)
        ]
        ring = call(mesh, mode, held, ring, random, places, 1)
        for slot in at:
            at[slot] += 1


@KINDS
@pytest.mark.parametrize("mode", ["prefill", "decode", "narrow"])
def test_columns_out_of_view_change_no_bit(mode, kind):
    """Whatever lies there: NaN scales, and codes that are NaN where there are any."""
    shape = Shape(8, 4)
    random = np.random.default_rng(2)
    width = 2 if mode == "prefill" else 1
    count = SLOTS if mode == "decode" else 2
    q, k, v = drawn(random, count, width)
    where = Rows(
        *(
            np.array(one, np.int32)
            for one in ([0, 1, 2, 3][:count], [13, 5, 6, 0][:count], [width] * count)
        )
    )
    old = random.integers(-100, 100, (SLOTS, KV, shape.length, HEAD)).astype(kind)
    scales = random.random((SLOTS, KV, shape.length)).astype(np.float32)
    found = []
    for junk in (0.0, np.nan):
        codes, scale = old.copy(), scales.copy()
        for slot, start in zip(where.slot, where.start, strict=True):
            seen = {p % shape.length for p in range(max(0, start - shape.window + 1), start)}
            for column in {*range(shape.length)} - seen:
                codes[slot, :, column] = 127 if kind == "int8" and junk != 0 else junk
                scale[slot, :, column] = junk
        codes = codes.view(stored(kind))
        ring = Ring(codes, codes, shape.window, 0, scale, scale, "float32")
        found.append(np.asarray(program("1", mode)(Asked(q, k, v), ring, where)[0]))
    np.testing.assert_array_equal(*found)
    assert np.isfinite(found[0]).all()
    assert (found[0] != 0).any()


@KINDS
def test_rows_of_any_neighbours_are_rounded_alike(kind):
    """A row's codes and scale are its own: not those of a larger row of the same call."""
    random = np.random.default_rng(1)
    q, k, v = drawn(random, SLOTS, 1)
    where = Rows(np.arange(4, dtype=np.int32), np.full(4, 2, np.int32), np.ones(4, np.int32))
    rings = []
    for size in (1, 1000):
        louder = k.copy()
        louder[1:] *= size
        _, ring = program("1", "decode")(
            Asked(q, louder, v), blank(SHAPES["all"], kind, 0.0), where
        )
        rings.append(ring)
    for part in ("keys", "key_scale", "values", "value_scale"):
        one, other = (np.asarray(getattr(ring, part))[0] for ring in rings)
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(*(np.asarray(ring.key_scale)[1] for ring in rings))


def test_bfloat16_rows_are_rounded_from_what_they_are():
    """Scales are float32, of the row in float32; what comes back has the dtype of q."""
    random = np.random.default_rng(3)
    q, k, v = (jnp.asarray(one, jnp.bfloat16) for one in drawn(random, SLOTS, 1))
    where = Rows(np.arange(4, dtype=np.int32), np.full(4, 2, np.int32), np.ones(4, np.int32))
    out, ring = program("1", "decode")(Asked(q, k, v), blank(SHAPES["all"], "int8", 0.0), where)
    codes, scale = rounded(np.asarray(k, np.float32)[1, 0, 2], "int8")
    np.testing.assert_array_equal(np.asarray(ring.keys)[1, 2, 2], codes)
    np.testing.assert_allclose(ring.key_scale[1, 2, 2], scale, rtol=3e-7)
    assert out.dtype == jnp.bfloat16
    assert ring.key_scale.dtype == jnp.float32
