"""The layer step, by kernels and by XLA's own attention, on the same random rings."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tpuinfer.cache.held import Ring, Rows
from tpuinfer.cache.ring import Asked, RingAttention, Scores
from tpuinfer.diagnosis.findings import Finding, fail, ok
from tpuinfer.platform import Attention
from tpuinfer.quant.rows import RINGS, as_stored, round_rows
from tpuinfer.sharding.layout import Layout, resolve
from tpuinfer.sharding.rules import ShardingRules

_SLOTS = 8
_LIMIT = 0.03
"""The largest difference that passes, of outputs of size 1: bfloat16 has 8 bits."""


@dataclass(frozen=True)
class Case:
    """One form of the layer step.

    Attributes:
      ring: what it keeps. heads, kv_heads, head_dim: N, K, H. length: L. width: T of a prefill; 1
        = decode.
      window, sinks, cap: as in `cache.ring`. logits: heads have learned scores of a sink.
    """

    name: str
    ring: str = "bfloat16"
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 128
    length: int = 1024
    width: int = 1
    window: int | None = None
    sinks: int = 0
    cap: float | None = None
    logits: bool = False


CASES = tuple(
    dataclasses.replace(case, name=f"{word} {case.name}", width=width)
    for word, width in (("decode", 1), ("prefill", 256))
    for case in (
        Case("bf16"),
        Case("int8 ring", ring="int8"),
        Case("fp8 ring", ring="fp8"),
        Case("window", window=600),
        Case("soft cap", cap=30.0),
        Case("heads of 64", head_dim=64, heads=16),
        Case("heads of 64, window, sink scores", head_dim=64, window=512, logits=True),
        Case("heads of 256, one KV head", head_dim=256, heads=4, kv_heads=1),
    )
)
"""Every form that the models have."""


def check(mesh: Mesh, by: Attention, cases: tuple[Case, ...] = CASES) -> Iterator[Finding]:
    """A finding for each case, on the first device of a mesh.

    Args:
      by: "pallas" on TPUs; "interpret" runs the kernels by XLA.
    """
    one = Mesh(mesh.devices[:1, :1], mesh.axis_names, axis_types=mesh.axis_types)
    for case in cases:
        what = f"kernel {case.name}"
        try:
            worst = difference(one, by, case)
        except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
            text = " ".join(str(error).split())[:200]
            yield fail(what, f"does not run: {text}", "send this report")
            continue
        found = f"differs from XLA's by {worst:.4f} at most"
        if worst <= _LIMIT:
            yield ok(what, found)
        else:
            yield fail(what, found, f"more than {_LIMIT}: --attention reference until it is mended")


def difference(mesh: Mesh, by: Attention, case: Case) -> float:
    """The largest absolute difference of outputs; infinite if the rings written differ at all."""
    sizes = {"batch": _SLOTS, "heads": case.heads, "kv_heads": case.kv_heads}
    layout = resolve(ShardingRules(), mesh, sizes)
    with jax.default_device(mesh.devices.flat[0]):
        ring, asked, rows = _drawn(case)
    (out, wrote), (expected, right) = (
        _attended(layout, way, case, ring, asked, rows) for way in (by, "reference")
    )
    for one, other in zip(jax.tree.leaves(wrote), jax.tree.leaves(right), strict=True):
        floats = jnp.issubdtype(one.dtype, jnp.floating)
        if not bool(jnp.array_equal(one, other, equal_nan=bool(floats))):
            return float("inf")
    return float(jnp.abs(out - expected).max())


def _attended(
    layout: Layout, by: Attention, case: Case, ring: Ring, asked: Asked, rows: Rows
) -> tuple[jax.Array, Ring]:
    mode = "decode" if case.width == 1 else "prefill"
    attend = RingAttention(layout, 256, mode, by)  # type: ignore[arg-type]

    def step(asked: Asked, ring: Ring, rows: Rows) -> tuple[jax.Array, Ring]:
        out, (written,) = attend(asked, (ring,), rows, Scores(cap=case.cap))
        real = jnp.arange(case.width)[None, :] < rows.length[:, None]
        return jnp.where(real[:, :, None, None], out.astype(jnp.float32), 0), written

    return jax.jit(step)(asked, ring, rows)


def _drawn(case: Case) -> tuple[Ring, Asked, Rows]:
    """Rings that wrapped, that are short, and that belong to nobody, whose columns hold NaN."""
    keys = iter(jax.random.split(jax.random.key(0), 8))
    size = (_SLOTS, case.kv_heads, case.length, case.head_dim)
    kept = RINGS.get(case.ring, case.ring)
    start = jnp.array([0, 5, 300, 1023, 1024, 1500, 3000, 40], jnp.int32)
    never = jnp.arange(case.length)[None, :] >= start[:, None]

    def columns() -> tuple[jax.Array, jax.Array | None]:
        rounded = round_rows(jax.random.normal(next(keys), size, jnp.bfloat16), kept)
        values = as_stored(rounded.values)
        if values.dtype == jnp.bfloat16:
            values = jnp.where(never[:, None, :, None], jnp.nan, values)
        return values, rounded.scale

    (k, k_scale), (v, v_scale) = columns(), columns()
    compute = "bfloat16" if k_scale is not None else None
    ring = Ring(k, v, case.window, case.sinks, k_scale, v_scale, compute)

    def tokens(heads: int) -> jax.Array:
        shape = (_SLOTS, case.width, heads, case.head_dim)
        return jax.random.normal(next(keys), shape, jnp.bfloat16)

    logits = jax.random.normal(next(keys), (case.heads,)) if case.logits else None
    asked = Asked(tokens(case.heads), tokens(case.kv_heads), tokens(case.kv_heads), None, logits)
    length = jnp.full(_SLOTS, case.width, jnp.int32).at[7].set(0)
    return ring, asked, Rows(jnp.arange(_SLOTS, dtype=jnp.int32), start, length)
