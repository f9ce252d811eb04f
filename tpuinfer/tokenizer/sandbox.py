"""jinja2's immutable sandbox, with a bound on what a template may write and an operator make.

A template comes with a checkpoint, and the sandbox alone keeps it from reading and changing things,
not from filling the memory: `'a' * 10 ** 9`, or a text doubled in a loop, would.
"""

from collections.abc import Iterable, Sequence, Sized
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.nodes
import jinja2.sandbox
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, markup_join, str_join

LIMIT = 1 << 24
"""Characters of a text, or entries of a list; a million tokens are about a quarter of it."""

_LIMIT_BITS = 1 << 12
"""Of a whole number; a third of what Python itself is ready to write in decimal."""


class _Compiler(jinja2.compiler.CodeGenerator):
    """Gives `~` to the sandbox too: jinja2 itself lets it intercept the other operators only."""

    def visit_Concat(  # noqa: N802  (jinja2 names it by the node)
        self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame
    ) -> None:
        self.write("environment.join_parts(context, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The immutable sandbox that lets a template make no text, list or number beyond the bounds.

    That holds for what it writes, its macros and `set` blocks included, and for the operators `+`,
    `~`, `*` and `**`, where it is worked out before they run. A template that goes too far fails
    with a SecurityError.
    """

    code_generator_class = _Compiler
    intercepted_binops = frozenset({"+", "*", "**"})

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """The text of a template, macro or block that writes `parts`."""
        kept, size = [], 0
        for part in parts:
            kept.append(part)
            size += len(part)
            if size > LIMIT:
                raise SecurityError(f"it writes more than {LIMIT} characters")
        return "".join(kept)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check(operator, _size(operator, left, right))
        if _bits(operator, left, right) > _LIMIT_BITS:
            raise SecurityError(
                f"it makes a number of more than {_LIMIT_BITS} bits with {operator}"
            )
        return super().call_binop(context, operator, left, right)

    def join_parts(self, context: Context, parts: Sequence[Any]) -> str:
        """What the operator `~` between `parts` makes."""
        if context.eval_ctx.autoescape:
            parts = [markup_join((part,)) for part in parts]
        else:
            parts = [str(part) for part in parts]
        _check("~", sum(map(len, parts)))
        return markup_join(parts) if context.eval_ctx.autoescape else str_join(parts)


def _check(operator: str, size: int) -> None:
    if size > LIMIT:
        raise SecurityError(f"it makes more than {LIMIT} characters or entries with {operator}")


def _size(operator: str, left: Any, right: Any) -> int:
    """Characters or entries of the result; 0 for numbers."""
    if operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
        return len(left) + len(right)
    if operator == "*" and isinstance(left, Sized) and isinstance(right, int):
        return len(left) * right
    if operator == "*" and isinstance(left, int) and isinstance(right, Sized):
        return left * len(right)
    return 0


def _bits(operator: str, left: Any, right: Any) -> int:
    """At least the bits of a product or power of whole numbers; 0 for anything else."""
    if not (isinstance(left, int) and isinstance(right, int)):
        return 0
    if operator == "**":
        return left.bit_length() * max(right, 0)
    return left.bit_length() + right.bit_length() if operator == "*" else 0
