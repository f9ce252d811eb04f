"""Find what a compiled program makes anew in the size of a ring, by reading its optimised HLO."""

import math
import re

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.+?) ([\w\-]+)\((?!\))")
_ARRAY = re.compile(r"\b(?!s32\b)\w+\[([\d,]+)\]")
"""Of any type but int32, which no form of a ring has, and some array of which may be as large."""

IN_PLACE = {"parameter", "get-tuple-element", "bitcast", "scatter", "fusion"}
"""Opcodes that hand a ring on. What a fusion does stands on lines of its own, and is judged too."""


def ring_copies(hlo: str, elements: int) -> list[str]:
    """Names of the instructions that write a whole new array of `elements` elements."""
    found = []
    for line in hlo.splitlines():
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        name, result, opcode = match.groups()
        if result.startswith("(") and not opcode.endswith("-start"):
            continue
        sizes = [math.prod(map(int, dims.split(","))) for dims in _ARRAY.findall(result)]
        if elements in sizes and opcode not in IN_PLACE:
            found.append(f"{opcode} {name}")
    return found
