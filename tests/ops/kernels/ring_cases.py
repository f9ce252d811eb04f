"""Rings with rows that read them, random, full of what nobody may see; by both attentions."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tpuinfer.cache.held import Ring
from tpuinfer.ops import attention
from tpuinfer.ops.kernels import ring as kernels
from tpuinfer.quant.rows import as_stored, round_rows

SLOTS = 4
FAST = {"xla_backend_optimization_level": 0}
"""Interpreted kernels are large programs: they compile sooner so."""


@dataclass(frozen=True)
class Case:
    """What is compiled. kind: of what the ring keeps. width: T of a prefill; None = decode."""

    kind: str = "float32"
    kv_heads: int = 2
    group: int = 2
    head: int = 16
    length: int = 64
    block: int = 16
    width: int | None = None
    rows: int = SLOTS
    window: int | None = None
    sinks: int = 0
    cap: float | None = None
    logits: bool = False

    @property
    def tokens(self) -> int:
        return self.width or 1


class Drawn(NamedTuple):
    """Arguments of a call. newest: [R], before a chunk; length: [R], of the chunk; 0 = idle."""

    q: Any
    sink_q: Any
    ring: Ring
    chunk: attention.Columns | None
    sink_logits: Any
    slots: Any
    newest: Any
    length: Any

    @property
    def start(self) -> Any:
        """Of each row's queries."""
        return jnp.maximum(self.newest + (self.chunk is not None), 0)


_rounded = jax.jit(round_rows, static_argnums=1)
_positions = jax.jit(attention.ring_positions, static_argnums=(2, 3))


def draw(case: Case, seed: int, junk: bool = True) -> Drawn:
    """Rows at random places, of which one is idle and one fresh or short.

    junk: what no row sees is NaN.
    """
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    size = (SLOTS, case.kv_heads, case.length, case.head)
    (k, v), rows = (_rounded(normal(*size), case.kind) for _ in range(2)), case.rows
    slots = np.arange(SLOTS)[:rows] if case.width is None else random.permutation(SLOTS)[:rows]
    newest = random.integers(0, 4 * case.length, rows)
    newest[0] = random.integers(-1 if case.width else 0, case.length // 2)
    length = random.integers(1, case.tokens + 1, rows)
    if case.sinks:  # a chunk in which sinks lie is no longer than the ring
        length = np.minimum(length, case.length - case.sinks)
    newest[-1], length[-1] = -1, 0
    chunk = None
    if case.width is not None:
        own_size = (rows, case.kv_heads, case.width, case.head)
        own = [_rounded(normal(*own_size), case.kind) for _ in range(2)]
        chunk = attention.Columns(
            *(_padding_is_junk(one.values, length) if junk else one.values for one in own),
            *(one.scale for one in own),
        )
    kept = jnp.bfloat16 if case.kind == "bfloat16" else jnp.float32
    queries = (rows, case.kv_heads, case.group, case.tokens, case.head)
    drawn = Drawn(
        normal(*queries).astype(kept) / 4,
        normal(*queries).astype(kept) / 4 if case.sinks else None,
        Ring(as_stored(k.values), as_stored(v.values), case.window, case.sinks, k.scale, v.scale),
        chunk,
        normal(case.kv_heads * case.group) if case.logits else None,
        slots.astype(np.int32),
        newest.astype(np.int32),
        length.astype(np.int32),
    )
    return drawn._replace(ring=poisoned(case, drawn)) if junk else drawn


def seen(case: Case, drawn: Drawn) -> np.ndarray:
    """[R, L] which columns some query of a row sees."""
    columns = np.arange(case.length, dtype=np.int32)
    held = _positions(drawn.newest, columns, case.length, case.sinks)
    held, first = np.asarray(held), np.asarray(drawn.start)[:, None]
    last = first + np.maximum(drawn.length, 1)[:, None] - 1
    near = True if case.window is None else held > first - case.window
    live = (drawn.length > 0)[:, None]
    return live & (held >= 0) & (held <= last) & (near | (held < case.sinks))


def poisoned(case: Case, drawn: Drawn) -> Ring:
    """The ring with NaN wherever no row looks, in other slots too."""
    used = np.zeros((SLOTS, case.length), bool)
    used[drawn.slots] = seen(case, drawn)

    def poison(array: jax.Array | None) -> jax.Array | None:
        if array is None:
            return None
        raw, unseen = np.array(array), np.broadcast_to(~used[:, None], array.shape[:3])
        if raw.dtype == np.uint8:
            raw[unseen] = 0x7F
        elif raw.dtype != np.int8:
            raw[unseen] = np.nan
        return jnp.asarray(raw)

    ring = drawn.ring
    parts = (ring.keys, ring.values, ring.key_scale, ring.value_scale)
    keys, values, *scales = map(poison, parts)
    assert keys is not None
    assert values is not None
    return Ring(keys, values, ring.window, ring.sinks, *scales)


def _padding_is_junk(array: jax.Array, length: np.ndarray) -> jax.Array:
    if array.dtype == jnp.int8:
        return array
    padding = np.arange(array.shape[2])[None, :] >= length[:, None]
    return jnp.where(padding[:, None, :, None], jnp.asarray(jnp.nan, array.dtype), array)


def queries_of(case: Case, drawn: Drawn) -> attention.Queries:
    index = jnp.arange(case.tokens, dtype=jnp.int32)[None, :]
    return attention.Queries(drawn.q, drawn.sink_q, drawn.start[:, None] + index, case.cap)


def by_kernel(case: Case, drawn: Drawn) -> jax.Array:
    queries = queries_of(case, drawn)
    if drawn.chunk is None:
        newest = jnp.where(drawn.length > 0, drawn.newest, -1)
        return kernels.decode_attention(
            queries, drawn.ring, newest, drawn.sink_logits, block=case.block, interpret=True
        )
    return kernels.prefill_attention(
        queries,
        drawn.ring,
        drawn.chunk,
        drawn.slots,
        drawn.length,
        drawn.sink_logits,
        block=case.block,
        interpret=True,
    )


def by_reference(case: Case, drawn: Drawn) -> jax.Array:
    queries = queries_of(case, drawn)
    state = attention.attend_ring(
        attention.begin(queries.main, drawn.sink_logits),
        queries,
        drawn.ring,
        slots=None if drawn.chunk is None else drawn.slots,
        newest=jnp.where(drawn.length > 0, drawn.newest, -1),
        block=case.block,
    )
    if drawn.chunk is not None:
        pinned = jnp.maximum(case.sinks - drawn.start, 0)
        state = attention.attend_chunk(
            state,
            queries.main,
            drawn.chunk,
            drawn.length,
            window=case.window,
            sinks=pinned if case.window else None,
            cap=case.cap,
        )
    return attention.finish(state)


@functools.cache
def compiled(case: Case, which: Any) -> Any:
    run = jax.jit(functools.partial(which, case), compiler_options=FAST)
    return lambda drawn: np.asarray(run(drawn))


def moved(drawn: Drawn, order: np.ndarray) -> Drawn:
    """A decode whose rows lie in other slots: row i is now what row order[i] was."""
    parts = drawn._replace(sink_logits=None, slots=None)
    taken = jax.tree.map(lambda one: one[order], parts)
    return taken._replace(sink_logits=drawn.sink_logits, slots=drawn.slots)
