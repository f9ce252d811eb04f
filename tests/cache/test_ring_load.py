"""Rings of every kind at once, in every mode, against the definition of what a query sees.

Requests of their own grow in slots of seven classes, each class with its own window, sinks and
length. What no later query may see is NaN: columns that nobody wrote, and tokens out of view.
"""

import functools
from dataclasses import dataclass, field

import jax
import numpy as np
import pytest

from tpuinfer.cache.held import Ring, Rows
from tpuinfer.cache.ring import Asked, RingAttention
from tpuinfer.sharding.layout import resolve
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.rules import ShardingRules

KV, HEADS, HEAD, BLOCK, TOKENS = 4, 8, 2, 4, 40


@dataclass(frozen=True)
class Kind:
    """A ring; without a window it is that of a request which ends at its capacity."""

    length: int
    window: int | None = None
    sinks: int = 0

    @property
    def capacity(self):
        return (self.window or self.length) + self.sinks

    def sees(self, position):
        """Which positions a query at `position` sees, itself included."""
        newest = range(max(0, position + 1 - (self.window or self.length)), position + 1)
        return sorted({*range(min(self.sinks, position + 1)), *newest})

    def column(self, position):
        if position < self.sinks:
            return position
        return self.sinks + (position - self.sinks) % (self.length - self.sinks)

    def most(self, done):
        """Tokens that the next chunk may have."""
        if self.window is None or done < self.sinks:
            return self.capacity - done
        return TOKENS


CHUNK = 7
KINDS = (
    Kind(8),
    Kind(4, 3),
    Kind(4, 4),
    Kind(8, 5),
    Kind(8, 6),
    Kind(8, 7, 1),
    Kind(8, 4, 4),
)
"""Windows around a block and around a chunk, chunks longer than the ring, 0, 1 and 4 sinks."""


@dataclass
class Growing:
    """One request: its random queries, keys and values by position, and how far it has come."""

    kind: Kind
    seed: int
    done: int = 0
    arrays: dict = field(init=False, repr=False)

    def __post_init__(self):
        random = np.random.default_rng(self.seed)
        heads = {"q": HEADS, "far": HEADS, "k": KV, "v": KV}
        self.arrays = {
            name: random.standard_normal((TOKENS, count, HEAD)).astype(np.float32)
            for name, count in heads.items()
        }
        own = self.kind.capacity  # before it the sinks are seen from the query's own position
        self.arrays["far"][:own] = self.arrays["q"][:own]

    def answer(self, position):
        """What attention gives this token: [N, H]."""
        q, far, k, v = (self.arrays[name] for name in ("q", "far", "k", "v"))
        seen = self.kind.sees(position)
        out = np.zeros((HEADS, HEAD))
        for n in range(HEADS):
            kv = n // (HEADS // KV)
            asked = [far if p < self.kind.sinks else q for p in seen]
            scores = [one[position, n] @ k[p, kv] for one, p in zip(asked, seen, strict=True)]
            weights = np.exp(np.array(scores, np.float64) / np.sqrt(HEAD))
            out[n] = weights @ v[seen, kv] / weights.sum()
        return out


class Rig:
    """One layer's rings on a mesh, a slot of each kind per data shard, and calls that fill them."""

    def __init__(self, mesh):
        self.mesh = mesh
        self.shards = 2 if mesh == "2x4" else 1
        self.requests = [
            [Growing(kind, 100 * shard + index) for index, kind in enumerate(KINDS)]
            for shard in range(self.shards)
        ]
        self.rings = tuple(
            Ring(*np.full((2, self.shards, KV, kind.length, HEAD), np.nan, np.float32))
            .replace(window=kind.window, sinks=kind.sinks)
            for kind in KINDS
        )  # fmt: skip

    def call(self, mode, width, pieces):
        """Run rows [(shard, kind, tokens), ...], in order of shards; 0 tokens is an idle row."""
        count = len(pieces)
        given = {
            name: np.full((count, width, heads, HEAD), np.nan, np.float32)
            for name, heads in (("q", HEADS), ("k", KV), ("v", KV), ("far", HEADS))
        }
        where = np.zeros((3, count), np.int32)
        for row, (shard, index, size) in enumerate(pieces):
            request = self.requests[shard][index]
            start, stop = request.done, request.done + size
            where[:, row] = index, start, size
            for name, array in given.items():
                array[row, :size] = request.arrays[name][start:stop]
        run = attention(self.mesh, mode)
        arrays = (given[name] for name in ("q", "k", "v", "far"))
        out, rings = jax.tree.map(np.array, run(*arrays, self.rings, Rows(*where)))
        self.check_rings(rings, pieces)
        for row, (shard, index, size) in enumerate(pieces):
            request = self.requests[shard][index]
            for t in range(size):
                expected = request.answer(request.done + t)
                np.testing.assert_allclose(out[row, t], expected, atol=1e-5, err_msg=str(request))
            request.done += size
        self.rings = rings
        self.poison()

    def check_rings(self, rings, pieces):
        """The new tokens lie in their columns, each column has the newest, and no other changed."""
        for shard, index, size in pieces:
            request, old = self.requests[shard][index], self.rings[index]
            for p in range(request.done, request.done + size):
                column = request.kind.column(p)
                old.keys[shard, :, column] = request.arrays["k"][p]
                old.values[shard, :, column] = request.arrays["v"][p]
        for new, old in zip(rings, self.rings, strict=True):
            np.testing.assert_array_equal(new.keys, old.keys)
            np.testing.assert_array_equal(new.values, old.values)

    def poison(self):
        """Tokens that no query will see any more."""
        for shard, requests in enumerate(self.requests):
            for request, ring in zip(requests, self.rings, strict=True):
                if request.kind.window is not None:
                    gone = set(range(request.done)) - set(request.kind.sees(request.done))
                    held = range(max(0, request.done - request.kind.length), request.done)
                    for p in gone & set(held):
                        column = request.kind.column(p)
                        if max(h for h in held if request.kind.column(h) == column) == p:
                            ring.keys[shard, :, column] = ring.values[shard, :, column] = np.nan


@functools.cache
def attention(mesh, mode):
    sizes = {"batch": 2, "heads": HEADS, "kv_heads": KV}
    layout = resolve(ShardingRules(), build_mesh(parse_mesh(mesh)), sizes)
    attend = RingAttention(layout, BLOCK, mode)

    @jax.jit
    def run(q, k, v, far, rings, where):
        return attend(Asked(q, k, v, far), rings, where)

    return run


ROWS = 3
"""Rows per data shard of a call that names its slots."""


def grow(rig, mode, width, chance):
    """One call in which chance says who takes part, and with how many tokens."""
    pieces = []
    for shard, requests in enumerate(rig.requests):
        able = [
            index
            for index, one in enumerate(requests)
            if min(width, one.kind.most(one.done)) > 0 and one.done + width <= TOKENS
        ]
        if mode == "decode":
            able = [index for index, one in enumerate(requests) if one.done < TOKENS]
            live = set(chance.choice(able, len(able) * 3 // 4, replace=False)) if able else set()
            pieces += [(shard, index, int(index in live)) for index in range(len(KINDS))]
            continue
        chosen = chance.permutation(able)[: ROWS - chance.integers(2)].tolist()
        for index in chosen:
            one = requests[index]
            most = min(width, one.kind.most(one.done))
            size = most if chance.random() < 0.5 else int(chance.integers(1, most + 1))
            pieces.append((shard, index, size))
        pieces += [(shard, 0, 0)] * (ROWS - len(chosen))
    rig.call(mode, width, pieces)


@pytest.mark.parametrize("mesh", ["1", "2x4"])
def test_every_query_sees_what_it_should(mesh):
    rig, chance = Rig(mesh), np.random.default_rng(7)
    for _ in range(16):
        for mode, width in [("prefill", CHUNK), ("decode", 1), ("narrow", 1)]:
            grow(rig, mode, width, chance)
    for request in (one for requests in rig.requests for one in requests):
        assert request.done > 3 * request.kind.length or request.kind.window is None, request
        assert request.done > request.kind.length
