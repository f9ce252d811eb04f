"""Build the closed set of programs before the first request.

Programs are compiled ahead of time and called as compiled objects: a call with other shapes is an
error, not a silent recompile.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from tpuinfer.models.blueprint import abstract_params
from tpuinfer.models.llama import Llama
from tpuinfer.platform import PlatformSettings
from tpuinfer.programs.decode import make_decode
from tpuinfer.programs.prefill import abstract_input, make_prefill
from tpuinfer.programs.state import DecodeState, shaped
from tpuinfer.sharding.rules import Layout

Progress = Callable[[str, int, int], None]

_WORKERS = 2


@dataclass(frozen=True)
class Program:
    """One compiled program and what it cost to get.

    Attributes:
      call: the compiled executable.
      seconds: lowering and compiling, wall time.
      temp_bytes: scratch memory per device while it runs.
    """

    name: str
    call: Any
    seconds: float
    temp_bytes: int


@dataclass(frozen=True)
class ProgramSpec:
    """A program before compilation: the function and the abstract arguments it is fixed to."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    out_shardings: Any


def program_specs(
    blueprint: Llama,
    layout: Layout,
    state: DecodeState,
    *,
    settings: PlatformSettings,
    dtype: str,
    buckets: tuple[int, ...],
) -> list[ProgramSpec]:
    """Every program this engine will ever run: prefill from the widest on, then decode.

    Works on abstract values alone: `state` holds ShapeDtypeStructs, and no device is needed.
    """
    params = abstract_params(blueprint, layout, dtype)
    whole = NamedSharding(layout.mesh, PartitionSpec())
    placed = jax.tree.map(lambda x: x.sharding, state)
    rows, stops = layout.shards("batch"), state.stops.shape[1]
    common: dict[str, Any] = {
        "block": settings.block,
        "min_rows": settings.min_rows,
        "dtype": jnp.dtype(dtype),
    }

    def host(tree: Any) -> Any:
        return jax.tree.map(lambda x: shaped(x.shape, x.dtype, whole), tree)

    prefill = make_prefill(blueprint, layout, **common)
    decode = make_decode(blueprint, layout, steps=settings.steps, **common)
    n = host(shaped((), jnp.int32))
    active = host(shaped(state.token.shape, bool))
    specs = []
    for width in sorted(buckets, reverse=True):
        given = host(abstract_input(rows, width, stops))
        arguments = (params, state, given)
        specs.append(ProgramSpec(f"prefill_{width}", prefill, arguments, (placed, whole, whole)))
    return [*specs, ProgramSpec("decode", decode, (params, state, n, active), (placed, whole))]


def compile_programs(
    specs: list[ProgramSpec],
    progress: Progress | None = None,
    ready: Callable[[Program], None] | None = None,
) -> dict[str, Program]:
    """Lower one after the other and compile in the background.

    Args:
      progress: told ("compiling", how many are done, of how many).
      ready: called with each program, in order, as soon as it is there; the next ones go on
        compiling meanwhile.
    """
    done: dict[str, Program] = {}
    if progress:
        progress("compiling", 0, len(specs))
    with ThreadPoolExecutor(_WORKERS, "compile") as pool:
        futures = []
        for spec in specs:
            start = time.perf_counter()
            futures.append(pool.submit(_compile, spec.name, lower(spec), start))
        for future in futures:
            program = future.result()
            if ready:
                ready(program)
            done[program.name] = program
            if progress:
                progress("compiling", len(done), len(specs))
    return done


def use_compilation_cache(folder: Path) -> None:
    """Keep compiled programs in `folder`, unless the process has a compilation cache already."""
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def lower(spec: ProgramSpec) -> Any:
    """Trace a program; its second argument, the state, is donated."""
    jitted = jax.jit(spec.function, donate_argnums=1, out_shardings=spec.out_shardings)
    return jitted.lower(*spec.arguments)


def _compile(name: str, lowered: Any, start: float) -> Program:
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    temp = int(memory.temp_size_in_bytes) if memory else 0
    return Program(name, compiled, time.perf_counter() - start, temp)
