"""The guard of the serving path: after warm-up, a compile is an incident.

Programs are called through it, and what else jax compiles beside them is heard.
"""

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Iterator
from typing import Any

import jax

from tpuinfer.errors import RecompileError
from tpuinfer.programs.compile import Program, lower
from tpuinfer.programs.events import Hearing
from tpuinfer.programs.signature import Difference, differences

_log = logging.getLogger(__name__)


class CompileGuard:
    """Counts and logs every compile on the serving path; in strict mode raises.

    Attributes:
      strict: a compile is an error, and a call that needs one is not made.
      recompiles: incidents so far; 0, or something is wrong.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.recompiles = 0
        self._lock = threading.Lock()
        self._others: dict[tuple[str, tuple[Difference, ...]], Any] = {}

    def call(self, program: Program, *arguments: Any) -> Any:
        """Run a program; arguments it was not compiled for are an incident, and compile it anew.

        The program refuses before it runs, so a donated state is whole whatever is raised here.

        Raises:
          RecompileError: strict, or the arguments fit no program at all.
        """
        try:
            return program.call(*arguments)
        except (TypeError, ValueError):
            found = differences(program.spec.function, program.spec.arguments, arguments)
            if not found:
                raise
        return self._other(program, arguments, found)(*arguments)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Around a dispatch or a read: what this thread compiles inside is an incident.

        Reading a program from the compilation cache counts as well. Of nested blocks the innermost
        hears; compiles of other threads are never heard.

        Raises:
          RecompileError: strict, at the end of the block, which has done its work by then.
        """
        with Hearing() as heard:
            try:
                yield
            finally:
                if heard.compiled:
                    self._report(_unforeseen(heard.compiled), len(heard.compiled))
        if self.strict and heard.compiled:
            raise RecompileError(_unforeseen(heard.compiled))

    def _other(
        self, program: Program, arguments: tuple[Any, ...], found: tuple[Difference, ...]
    ) -> Any:
        """The program compiled for these arguments; kept, so that a misfit compiles once."""
        key = (program.name, found)
        if key in self._others:
            return self._others[key]
        text = f"program {program.name} was called with what it was not compiled for: " + "; ".join(
            map(str, found)
        )
        self._report(text, 1)
        if self.strict:
            raise RecompileError(text)
        spec = dataclasses.replace(program.spec, arguments=arguments)
        try:
            with Hearing():
                self._others[key] = lower(spec).compile()
        except (TypeError, ValueError, jax.errors.JaxRuntimeError) as error:
            why = " ".join(str(error).split())[:300]
            raise RecompileError(f"{text}; nor can it be compiled for that: {why}") from error
        return self._others[key]

    def _report(self, text: str, count: int) -> None:
        with self._lock:
            self.recompiles += count
        _log.warning("%s", text)


def _unforeseen(names: list[str]) -> str:
    return (
        f"{len(names)} compiled on the serving path: {', '.join(names)}; after warm-up only the "
        "programs of the manifest may run there"
    )
