"""What the TPU compiler makes of a plan's programs, on a slice that is not there."""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax

from tpuinfer.engine.plan import Plan, specs_of
from tpuinfer.errors import MeshError
from tpuinfer.planning import hlo, traffic
from tpuinfer.planning.traffic import Assumed, Collective
from tpuinfer.programs.closed_set import decode_name, prefill_name, prefill_shapes
from tpuinfer.programs.compile import ProgramSpec, lower

_TOO_MUCH = (
    re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm"),
    re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM"),
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_RINGS, _WEIGHTS = "state.rings", "params["

Note = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """A compiled program, in bytes on one device.

    Attributes:
      argument_bytes: weights, state and what the host sends. alias_bytes: of them in place.
      temp_bytes: scratch. code_bytes: the program itself.
      traffic_bytes: moved through HBM; of decode in one step.
      weight_bytes, ring_bytes: of these, on weights and on rings.
      ring_copies: instructions that make a ring anew.
      collectives: by kind; of decode in one step.
      needs: what it takes in all where that is too much for the chip; 0 = it compiled.
    """

    argument_bytes: int = 0
    alias_bytes: int = 0
    temp_bytes: int = 0
    code_bytes: int = 0
    traffic_bytes: int = 0
    weight_bytes: int = 0
    ring_bytes: int = 0
    ring_copies: int = 0
    collectives: Mapping[str, Collective] = field(default_factory=dict)
    compile_seconds: float = 0.0
    needs: int = 0


def shown(plan: Plan) -> list[str]:
    """The programs that a plan is judged by: decode, a full chunk, and the most prompts at once."""
    chunk = plan.settings.chunk
    shapes = prefill_shapes(plan.settings, plan.buckets, plan.slots.per_shard)
    most = max(
        ((r, w) for w, rows in shapes.items() for r in rows), key=lambda one: one[0] * one[1]
    )
    names = [decode_name(), prefill_name(1, chunk), prefill_name(*most)]
    return list(dict.fromkeys(names))


def compile_all(
    plan: Plan, names: Sequence[str] | None = None, *, workers: int = 2, note: Note | None = None
) -> dict[str, Measured]:
    """Compile programs of a plan that lies on a described mesh.

    Args:
      names: which; None = those of `shown`. workers: how many at a time.
      note: told each name when it is done.

    Raises:
      MeshError: the compiler fails for another reason than memory.
    """
    wanted = [spec for spec in specs_of(plan) if spec.name in (names or shown(plan))]
    with ThreadPoolExecutor(workers) as pool:
        running = {spec.name: pool.submit(_compile, spec, lower(spec), plan) for spec in wanted}
        found = {}
        for name in sorted(running, key=lambda name: name != decode_name()):
            found[name] = running[name].result()
            if note is not None:
                note(name)
    return found


def _compile(spec: ProgramSpec, lowered: object, plan: Plan) -> Measured:
    start = time.perf_counter()
    try:
        made = lowered.compile()  # type: ignore[attr-defined]
    except jax.errors.JaxRuntimeError as error:
        return Measured(needs=_needs(spec.name, error), compile_seconds=time.perf_counter() - start)
    return measured(plan, spec.name, made, time.perf_counter() - start)


def measured(plan: Plan, name: str, made: Any, seconds: float) -> Measured:
    """What a compiled program of a plan takes and moves, read in its own text.

    Args:
      made: as jax's `Lowered.compile` gives it. seconds: that it took to compile.
    """
    memory, module = made.memory_analysis(), hlo.parse(made.as_text())
    steps = plan.settings.steps if name == decode_name() else 1
    moved = traffic.measure(module, assumed(plan))
    sizes = traffic.sizes(module)
    rings = [name for name in sizes if name.startswith(_RINGS)]
    least = min(sizes[name] for name in rings if not name.endswith("scale"))
    return Measured(
        argument_bytes=memory.argument_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        traffic_bytes=moved.nbytes // steps,
        weight_bytes=moved.of(name for name in sizes if name.startswith(_WEIGHTS)) // steps,
        ring_bytes=moved.of(rings) // steps,
        ring_copies=len(moved.copies(rings, least)),
        collectives={
            kind: Collective(round(one.count / steps), one.nbytes // steps)
            for kind, one in moved.collectives().items()
        },
        compile_seconds=seconds,
    )


def assumed(plan: Plan) -> Assumed:
    """Rings are read block by block, up to the longest slot: here all of them, at the worst.

    Of a ring that is cut along its length, a device reads its own columns.
    """
    own = max(classes[-1].length for classes in plan.rings) // plan.layout.shards("length")
    blocks = own // math.gcd(own, plan.settings.block)
    return Assumed({"shard_map/while": blocks, "jit(decode)/while": plan.settings.steps})


def _needs(name: str, error: Exception) -> int:
    text = " ".join(str(error).split())
    found = next((match for form in _TOO_MUCH if (match := form.search(text))), None)
    if found is None or "RESOURCE_EXHAUSTED" not in text:
        raise MeshError(f"the TPU compiler fails on {name}: {text[:300]}") from error
    return int(float(found[1]) * _UNITS[found[2]])
