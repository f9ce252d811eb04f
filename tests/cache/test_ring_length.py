"""Rings that are cut along their length, beside the same rings whole: on every layout of heads.

Requests grow in slots of three classes (all they had; a window; a window and sinks), in every mode.
What no later query may see is NaN, and so is what nobody wrote.
"""

import dataclasses
import functools
import logging

import jax
import numpy as np
import pytest

from tpuinfer.cache import by_kernel
from tpuinfer.cache.by_length import cut_of
from tpuinfer.cache.held import Ring, Rows
from tpuinfer.cache.ring import Asked, RingAttention, Scores
from tpuinfer.cache.spec import ring_length
from tpuinfer.config import EngineConfig
from tpuinfer.engine.plan import plan_of
from tpuinfer.ops import attention as attention_ops
from tpuinfer.platform import PlatformSettings
from tpuinfer.sharding.layout import resolve
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.presets import PRESETS
from tpuinfer.sharding.rules import ShardingRules
from tpuinfer.testing.tiny import TINY

BLOCK, HEAD, TOKENS, CHUNK = 4, 4, 64, 7
KINDS = ((16, None, 0), (32, None, 0), (8, 5, 0), (16, 11, 3))
"""Length, window and sinks of a class of one slot per data shard."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A mesh with rules that cut rings; `whole` is one of as many data shards that does not."""

    mesh: str
    rules: str | None
    heads: int
    kv_heads: int
    kind: str = "float32"
    whole: str = "1"
    modes: tuple[str, ...] = ("prefill", "decode", "narrow")

    @property
    def shards(self):
        return 2 if self.mesh.startswith("data=2") else 1


def placed(**axes):
    return ShardingRules(axes={"batch": "data", **axes})


RULES = {
    "uncut": ShardingRules(axes={"batch": "data"}),
    "context": PRESETS["context"],
    "apart": placed(heads="model", kv_heads="model", length="seq"),
    "both": placed(heads=("model", "seq"), kv_heads="model", length="seq"),
    "square": placed(heads=("model", "seq"), length=("model", "seq")),
}
CASES = {
    "heads over length": Case("model=4", "context", 8, 2),
    "heads over kv_heads": Case("seq=2,model=2", "apart", 8, 2),
    "heads over both": Case("data=2,seq=2,model=2", "both", 8, 2, "int8", "data=2,model=1"),
    "heads whole": Case("model=4", "context", 6, 3, modes=("prefill", "decode")),
    "length over two axes": Case("seq=2,model=2", "square", 8, 2, modes=("decode",)),
}


def layout_of(case, cut):
    sizes = {
        "batch": len(KINDS) * case.shards,
        "heads": case.heads,
        "kv_heads": case.kv_heads,
        "length": 0,
    }
    mesh = build_mesh(parse_mesh(case.mesh if cut else case.whole))
    return resolve(RULES[case.rules if cut else "uncut"], mesh, sizes)


@functools.cache
def program(case, mode, cut=True):
    if not cut:  # the mesh and the rules of the other do not matter
        case = dataclasses.replace(case, mesh=case.whole, rules=None, modes=())
        return _program(case, mode, False)
    return _program(case, mode, True)


@functools.cache
def _program(case, mode, cut):
    layout = layout_of(case, cut)
    assert (cut_of(layout) is not None) == cut
    attend = RingAttention(layout, BLOCK, mode)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(asked, rings, where):
        return attend(asked, rings, where, Scores(cap=30.0))

    return run


class Rig:
    """The same requests in whole rings and in cut ones, which must stay alike."""

    def __init__(self, case, seed=0):
        self.case, self.random = case, np.random.default_rng(seed)
        self.parts = layout_of(case, True).shards("length")
        self.rings = tuple(self.blank(*kind) for kind in KINDS)
        self.done = np.zeros((case.shards, len(KINDS)), int)
        self.logits = self.normal(case.heads)

    def normal(self, *shape):
        return self.random.standard_normal(shape).astype(np.float32)

    def blank(self, length, window, sinks):
        shape = (self.case.shards, self.case.kv_heads, length, HEAD)
        if self.case.kind == "float32":
            nothing = np.full(shape, np.nan, np.float32)
            return Ring(nothing, nothing.copy(), window, sinks)
        codes, scale = np.full(shape, 127, np.int8), np.full(shape[:-1], np.nan, np.float32)
        return Ring(codes, codes.copy(), window, sinks, scale, scale.copy(), "float32")

    def dealt(self, ring, back=False):
        """A whole ring as the devices of a cut one have it, one after the other; or `back`."""

        def turn(array):
            lead, (length, *rest) = array.shape[:2], array.shape[2:]
            pair = (self.parts, length // self.parts)
            split = array.reshape(*lead, *(pair if back else pair[::-1]), *rest)
            return split.swapaxes(2, 3).reshape(array.shape)

        return jax.tree.map(turn, ring)

    def call(self, mode, width, pieces):
        """Run rows [(shard, class, tokens), ...], in order of shards; 0 tokens is an idle row."""
        count, case = len(pieces), self.case
        where = np.zeros((3, count), np.int32)
        q, far, k, v = (
            self.normal(count, width, heads, HEAD)
            for heads in (case.heads, case.heads, case.kv_heads, case.kv_heads)
        )
        for row, (shard, index, size) in enumerate(pieces):
            where[:, row] = index, self.done[shard, index], size
            for array in (q, far, k, v):
                array[row, size:] = np.nan
            self.done[shard, index] += size
        asked = Asked(q, k, v, far, self.logits)
        out, rings = jax.tree.map(
            np.array, program(case, mode, False)(asked, self.rings, Rows(*where))
        )
        mine = tuple(map(self.dealt, self.rings))
        got, written = jax.tree.map(np.array, program(case, mode)(asked, mine, Rows(*where)))
        for row, (_, _, size) in enumerate(pieces):
            assert np.isfinite(out[row, :size]).all()
            np.testing.assert_allclose(got[row, :size], out[row, :size], atol=2e-6)
        for one, other in zip(rings, written, strict=True):
            jax.tree.map(np.testing.assert_array_equal, one, self.dealt(other, back=True))
        self.rings = rings
        self.poison()

    def poison(self):
        """Columns that no query will see any more."""
        for index, ring in enumerate(self.rings):
            if ring.window is None:
                continue
            columns = np.arange(ring.keys.shape[2], dtype=np.int32)
            newest = self.done[:, index].astype(np.int32) - 1
            held = np.asarray(
                attention_ops.ring_positions(newest, columns, len(columns), ring.sinks)
            )
            gone = (held <= (newest + 1 - ring.window)[:, None]) & (held >= ring.sinks)
            for array in jax.tree.leaves(ring):
                if array.dtype == np.float32:
                    np.moveaxis(array, 2, 1)[gone] = np.nan


def grow(rig, mode, width):
    """One call in which chance says who takes part, and with how many tokens."""
    pieces, chance = [], rig.random
    for shard, done in enumerate(rig.done):
        room = [
            min(length - at, width) if window is None else min(TOKENS - at, width)
            for (length, window, _), at in zip(KINDS, done, strict=True)
        ]
        if mode == "decode":
            pieces += [
                (shard, index, int(most > 0 and chance.random() < 0.75))
                for index, most in enumerate(room)
            ]
            continue
        able = chance.permutation(np.flatnonzero(np.array(room) > 0))[:2].tolist()
        for index in able:
            pieces.append((shard, index, int(chance.integers(1, room[index] + 1))))
        pieces += [(shard, 0, 0)] * (2 - len(able))
    rig.call(mode, width, pieces)


@pytest.mark.parametrize("name", CASES)
def test_cut_rings_are_the_whole_ones(name):
    """Written to the bit, read to rounding; windows and sinks go around more than once."""
    rig = Rig(CASES[name])
    for _ in range(24):
        for mode in CASES[name].modes:
            grow(rig, mode, CHUNK if mode == "prefill" else 1)
    for at, (length, _, _) in zip(rig.done.T, KINDS, strict=True):
        assert (at > 0.5 * length).all()
    assert (rig.done[:, 2:] > 16).all()


def answers(case, own, slot, row, junk):
    """A request [T, heads, H] in a slot and a row of the call, beside others; rings begin as junk.

    A chunk of all but three tokens, and a token by each mode of decode.
    """
    rig = Rig(case, seed=slot + row)
    rings = jax.tree.map(lambda array: np.full_like(array, junk), rig.rings)
    pair, first, outs = ([slot, 2] if row == 0 else [2, slot]), 0, []
    for mode, width, at, slots in (
        ("prefill", CHUNK, row, pair),
        ("decode", 1, slot, range(len(KINDS))),
        ("narrow", 1, row, pair),
    ):
        given = [rig.normal(len(slots), width, *one.shape[1:]) for one in own]
        for array, one in zip(given, own, strict=True):
            array[at] = one[first : first + width]
        where = (slots, [first] * len(slots), [width] * len(slots))
        q, k, v = given
        out, rings = program(case, mode)(
            Asked(q, k, v, q, np.arange(case.heads, dtype=np.float32)),
            rings,
            Rows(*(np.array(one, np.int32) for one in where)),
        )
        outs.append(np.asarray(out)[at])
        first += width
    return np.concatenate(outs)


def test_bits_are_a_rows_own():
    """Its slot, its class while that has room, its neighbours, and what lay there: none matters."""
    case, random = CASES["heads over length"], np.random.default_rng(5)
    own = [
        random.standard_normal((CHUNK + 2, heads, HEAD)).astype(np.float32)
        for heads in (case.heads, case.kv_heads, case.kv_heads)
    ]
    found = answers(case, own, slot=0, row=0, junk=0.0)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, answers(case, own, slot=1, row=1, junk=np.nan))
    np.testing.assert_array_equal(found, answers(case, own, slot=1, row=0, junk=1e4))


def test_a_device_has_every_other_column():
    """What lies where is fixed: columns are dealt out one by one, sinks among them."""
    case = CASES["heads over length"]
    rig = Rig(case)
    rig.call("prefill", CHUNK, [(0, 1, 6), (0, 0, 0)])
    keys = np.asarray(rig.dealt(rig.rings[1]).keys)[0, 0, :, 0]
    written = np.flatnonzero(np.isfinite(keys))
    assert written.tolist() == [0, 1, 8, 9, 16, 24]  # 8 columns a device; of columns 0 .. 5


def test_a_ring_is_so_long_that_each_device_has_whole_blocks():
    """Columns in all: of more than a block each, blocks; of fewer, tiles of 128."""
    lengths = [
        (100, 16, 4),
        (65, 16, 4),
        (64, 16, 4),
        (2048, 512, 8),
        (1000, 512, 8),
        (100, 512, 4),
    ]
    assert [ring_length(*one) for one in lengths] == [128, 128, 64, 2048, 1024, 512]


def test_a_plan_cuts_the_rings_of_every_layer():
    plan = plan_of(
        dataclasses.replace(TINY, windows=(0, 40)),
        mesh="2x4",
        rules=PRESETS["context"],
        engine=EngineConfig.parse("4x32,2x100"),
        settings=PlatformSettings(chunk=64, smallest_bucket=16, block=16, steps=2),
    )
    lengths = [[(ring.length, ring.window) for ring in classes] for classes in plan.rings]
    assert lengths == [[(64, None), (128, None)], [(64, None), (64, 40)]]
    rows = {row.name: row for row in plan.placements()}
    keys = rows["layers.*.ring_100.keys"]
    assert (keys.spec, keys.bytes_per_device) == ("(data, -, model, -)", 8 * 32 * 8 * 2)


def test_kernels_do_not_know_them(caplog):
    """What is asked of the kernels is done without, and said once."""
    by_kernel._tell.cache_clear()
    ring = Ring(*np.zeros((2, 1, 4, 128, 128), np.float32))
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert by_kernel.kernel_for([ring], 128, "interpret", cut=True) is None
    assert by_kernel.kernel_for([ring], 128, "interpret") is not None
    (said,) = caplog.messages
    assert "rings cut along their length" in said
