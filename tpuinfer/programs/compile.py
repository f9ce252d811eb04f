"""Build the closed set of programs before the first request.

Programs are compiled ahead of time and called as compiled objects: a call with other shapes is an
error, not a silent recompile; `tpuinfer.programs.guard` says what happens then.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from tpuinfer.programs.events import Hearing
from tpuinfer.programs.manifest import CacheUse, Entry
from tpuinfer.programs.signature import shapes

Progress = Callable[[str, int, int], None]

_MOST_WORKERS = 4


@dataclass(frozen=True)
class ProgramSpec:
    """A program before compilation: the function and the abstract arguments it is fixed to.

    Attributes:
      arguments: params, the state, which is donated, the tables, then what the host sends along.
      options: XLA's own, where the platform wants some.
      donated: which arguments are the state; none in a program that keeps none.
      kept: how many arguments, the first ones, stay on the devices and are not sent along.
      precision: of products of float32 numbers; None = the platform's own.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    out_shardings: Any
    options: tuple[tuple[str, str], ...] = ()
    donated: tuple[int, ...] = (1,)
    kept: int = 2
    precision: str | None = None


@dataclass(frozen=True)
class Program:
    """One compiled program.

    Attributes:
      spec: what it was made from.
      call: the compiled executable; on the serving path it is called through a `CompileGuard`.
      entry: its line in the manifest.
    """

    spec: ProgramSpec
    call: Any
    entry: Entry

    @property
    def name(self) -> str:
        return self.spec.name


def compile_programs(
    specs: list[ProgramSpec],
    progress: Progress | None = None,
    ready: Callable[[Program], None] | None = None,
) -> dict[str, Program]:
    """Lower one after the other and compile in the background, a few at a time.

    Args:
      progress: told ("compiling", how many are done, of how many).
      ready: called with each program, in order, as soon as it is there; the next ones go on
        compiling meanwhile.
    """
    done: dict[str, Program] = {}
    if progress:
        progress("compiling", 0, len(specs))
    with ThreadPoolExecutor(min(_MOST_WORKERS, os.cpu_count() or 1), "compile") as pool:
        futures = []
        for spec in specs:
            start = time.perf_counter()
            lowered = lower(spec)
            futures.append(pool.submit(_compile, spec, lowered, time.perf_counter() - start))
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
    """Trace a program; the state, if it has one, is donated."""
    jitted = jax.jit(
        spec.function,
        donate_argnums=spec.donated,
        out_shardings=spec.out_shardings,
        compiler_options=dict(spec.options) or None,
    )
    with jax.default_matmul_precision(spec.precision):
        return jitted.lower(*spec.arguments)


def _compile(spec: ProgramSpec, lowered: Any, lower_seconds: float) -> Program:
    start = time.perf_counter()
    with Hearing() as heard:
        compiled = lowered.compile()
    seconds = time.perf_counter() - start
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    flops = cost.get("flops") if isinstance(cost, dict) else None
    entry = Entry(
        name=spec.name,
        shapes=shapes(spec.function, spec.arguments, start=spec.kept),
        lower_seconds=lower_seconds,
        compile_seconds=seconds,
        argument_bytes=int(memory.argument_size_in_bytes) if memory else 0,
        alias_bytes=int(memory.alias_size_in_bytes) if memory else 0,
        temp_bytes=int(memory.temp_size_in_bytes) if memory else 0,
        output_bytes=int(memory.output_size_in_bytes) if memory else 0,
        flops=float(flops) if flops is not None and flops >= 0 else None,
        cache=_cache_use(heard),
    )
    return Program(spec, compiled, entry)


def _cache_use(heard: Hearing) -> CacheUse:
    """Jax asks its compilation cache even where it has no folder."""
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if not heard.asked or not folder:
        return "off"
    return "hit" if heard.hits else "miss"
