"""Optimised HLO text (`compiled.as_text()`) as data: computations, instructions, arrays.

Only what counting bytes needs is read. The text looks like this:

    ENTRY %main.3 (p: bf16[64,128]) -> bf16[64,128] {
      %p = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="x"}
      ROOT %copy.1 = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} copy(%p), backend_config={...}
    }

A layout says which dimension is the fastest, `T(8,128)` that the two fastest are kept in tiles of
so many, `E(4)` that an element has so many bits (without it, 4-bit ones have a byte each), and
`S(1)` that the array is not in HBM but in another memory (1 is VMEM on a TPU).
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_START = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<= ]*)\](?:\{([^}]*)\})?")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_COMMENT = re.compile(r"/\*.*?\*/")
_NAME = re.compile(r"%([\w.\-]+)")
_ROLES = "calls|body|condition|to_apply|true_computation|false_computation"
_CALLED = re.compile(rf"\b({_ROLES})=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_INDEX = re.compile(r"\bindex=(\d+)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_TOLD = re.compile(r'"cost_estimate":\{[^}]*"bytes_accessed":"(\d+)"')
_PINNED = re.compile(r'"operand_index":"(\d+)","color":"0"')
_ALIASING = re.compile(
    r"output_to_operand_aliasing=\{((?:\{[^}]*\}: \(\d+, \{[^}]*\}\)(?:, )?)*)\}"
)
_ALIAS = re.compile(r"\{(\d*)\}: \((\d+),")
_TILE = re.compile(r"T\(([\d,]+)\)")
_SPACE = re.compile(r"S\((\d+)\)")
_BITS = re.compile(r"E\((\d+)\)")
_WIDTH = re.compile(r"[a-z]+(\d+)")

_WIDTHS = {"pred": 8, "token": 0, "opaque": 0}


@dataclass(frozen=True)
class Array:
    """One array as it lies in memory.

    Attributes:
      dtype: HLO's name, such as bf16 or s4. dims: as written.
      order: of its dimensions, the fastest first. tile: of the fastest ones; empty = none.
      bits: of an element. space: the memory it is in; 0 = HBM.
    """

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    bits: int = 32
    space: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        """Of its elements, without what fills up tiles."""
        return -(-self.elements * self.bits // 8)

    @property
    def stored(self) -> int:
        """Bytes that it takes in memory: whole tiles.

        >>> parse_arrays("f32[16,32]{1,0:T(8,128)}")[0].stored  # rows of 128
        8192
        """
        fast = [self.dims[axis] for axis in self.order] or list(reversed(self.dims))
        fast += [1] * (len(self.tile) - len(fast))
        for at, size in enumerate(reversed(self.tile)):
            fast[at] = -(-fast[at] // size) * size
        return -(-math.prod(fast) * self.bits // 8)


Shape = tuple[Array, ...]
"""The arrays of an instruction's result: one, or those of a tuple, flat."""


@dataclass(frozen=True)
class Call:
    """What the text says of a call of a kernel of one's own.

    Attributes:
      told: bytes of HBM that the kernel says it touches, of `pinned` operands and what they alias.
      pinned: numbers of operands that stay in HBM. aliases: number of a result -> of its operand.
    """

    told: int
    pinned: tuple[int, ...] = ()
    aliases: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      shape: what it makes. operands: by name.
      called: the computations it names, by role (calls, body, condition, to_apply, branch0, ...).
      index: of a parameter or a get-tuple-element. target: of a custom call.
      op_name: where it comes from in the traced program; of an entry parameter its own name.
      call: of a kernel that tells what it touches.
      aliased: of a fusion, number of a result -> of its operand.
      cycles: the compiler's estimate. trips: how often a loop runs, where the compiler knows it.
    """

    name: str
    opcode: str
    shape: Shape
    operands: tuple[str, ...]
    called: Mapping[str, str] = field(default_factory=dict)
    index: int = 0
    target: str = ""
    op_name: str = ""
    cycles: int = 0
    trips: int | None = None
    call: Call | None = None
    aliased: Mapping[int, int] = field(default_factory=dict)

    @property
    def array(self) -> Array:
        """Its result, which is no tuple."""
        assert len(self.shape) == 1, f"{self.name} makes {len(self.shape)} arrays"
        return self.shape[0]

    @property
    def made(self) -> Shape:
        """Its result; of the first half of an async pair, without what that carries along."""
        if self.opcode == "copy-start":
            return self.shape[:1]
        if self.opcode.endswith("-start") and self.opcode != "all-reduce-start":
            return tuple(array for array in self.shape[len(self.operands) :] if array.dims)
        return self.shape


@dataclass(frozen=True)
class Computation:
    """Instructions in the order in which they run; operands come before their users."""

    name: str
    instructions: tuple[Instruction, ...]
    root: Instruction

    @functools.cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        return {one.name: one for one in self.instructions}

    @functools.cached_property
    def parameters(self) -> tuple[Instruction, ...]:
        found = [one for one in self.instructions if one.opcode == "parameter"]
        return tuple(sorted(found, key=lambda one: one.index))

    @functools.cached_property
    def users(self) -> Mapping[str, tuple[tuple[Instruction, int], ...]]:
        """Name -> who takes it, and as which operand."""
        found: dict[str, list[tuple[Instruction, int]]] = {}
        for one in self.instructions:
            for at, operand in enumerate(one.operands):
                found.setdefault(operand, []).append((one, at))
        return {name: tuple(all_) for name, all_ in found.items()}


@dataclass(frozen=True)
class Module:
    """A compiled program."""

    computations: Mapping[str, Computation]
    entry: Computation


def parse(text: str) -> Module:
    """Read the text of a compiled program.

    Raises:
      ValueError: it has no entry computation, or a line that cannot be read; names it.
    """
    computations: dict[str, Computation] = {}
    entry = None
    for name, is_entry, lines in _bodies(text):
        made, root = [], None
        for line in lines:
            instruction, is_root = _instruction(line)
            made.append(instruction)
            root = instruction if is_root else root
        if not made:
            raise ValueError(f"HLO text: computation {name} is empty")
        computations[name] = Computation(name, tuple(made), root or made[-1])
        entry = computations[name] if is_entry else entry
    if entry is None:
        raise ValueError("HLO text: no ENTRY computation; nearest: compiled.as_text()")
    return Module(computations, entry)


def _bodies(text: str) -> Iterator[tuple[str, bool, list[str]]]:
    lines: list[str] = []
    name, is_entry = "", False
    for line in text.splitlines():
        if not name:
            if header := _HEADER.match(line):
                name, is_entry, lines = header[2], header[1] is not None, []
        elif line.startswith("}"):  # perhaps with the thread that runs it: another core's
            yield name, is_entry, lines
            name = ""
        elif line.strip():
            lines.append(line)


def parse_arrays(text: str) -> Shape:
    """The arrays of a type as HLO writes it: one, or a tuple's, flat."""
    return tuple(_array(*match) for match in _ARRAY.findall(_COMMENT.sub("", text)))


@functools.lru_cache(maxsize=4096)
def _array(dtype: str, dims: str, layout: str) -> Array:
    sizes = tuple(int(size.strip(" <=")) for size in dims.split(",") if size.strip())
    order, _, memory = layout.partition(":")
    width = _WIDTH.match(dtype)
    bits = max(8, int(width[1])) if width else _WIDTHS.get(dtype, 32)
    tile, space, own = _TILE.search(memory), _SPACE.search(memory), _BITS.search(memory)
    return Array(
        dtype,
        sizes,
        tuple(int(axis) for axis in order.split(",") if axis),
        tuple(int(size) for size in tile[1].split(",")) if tile else (),
        int(own[1]) if own else bits,
        int(space[1]) if space else 0,
    )


def _instruction(line: str) -> tuple[Instruction, bool]:
    start = _START.match(line)
    if start is None:
        raise ValueError(f"HLO text: cannot read {line.strip()[:120]!r}")
    line = _COMMENT.sub("", line[start.end() :])
    end = _closing(line, 0) if line[0] == "(" else line.find(" ")
    opcode = _OPCODE.match(line, end)
    if opcode is None:
        raise ValueError(f"HLO text: no operation in {start[2]} = {line[:120]!r}")
    close = _closing(line, opcode.end() - 1)
    inside, rest = line[opcode.end() : close - 1], line[close:]
    number = inside if opcode[1] == "parameter" else ""
    index = _INDEX.search(rest)
    target, op_name = _TARGET.search(rest), _OP_NAME.search(rest)
    cycles, trips = _CYCLES.search(rest), _TRIPS.search(rest)
    made = Instruction(
        start[2],
        opcode[1],
        parse_arrays(line[:end]),
        () if opcode[1] in ("parameter", "constant") else tuple(_NAME.findall(inside)),
        _called(rest),
        int(number) if number else int(index[1]) if index else 0,
        target[1] if target else "",
        op_name[1].replace("\\'", "'") if op_name else "",
        int(cycles[1]) if cycles else 0,
        int(trips[1]) if trips else None,
        _call(rest) if opcode[1] == "custom-call" else None,
        _aliases(rest) if opcode[1] == "fusion" else {},
    )
    return made, start[1] is not None


def _call(attributes: str) -> Call | None:
    told = _TOLD.search(attributes)
    if told is None:
        return None
    pinned = tuple(sorted({int(at) for at in _PINNED.findall(attributes)}))
    return Call(int(told[1]), pinned, _aliases(attributes))


def _aliases(attributes: str) -> dict[int, int]:
    aliasing = _ALIASING.search(attributes)
    pairs = _ALIAS.findall(aliasing[1]) if aliasing else []
    return {int(result or 0): int(operand) for result, operand in pairs}


def _called(attributes: str) -> dict[str, str]:
    found = dict(_CALLED.findall(attributes))
    if branches := _BRANCHES.search(attributes):
        names = [name.strip(" %") for name in branches[1].split(",")]
        found |= {f"branch{at}": name for at, name in enumerate(names)}
    if "true_computation" in found:
        found = {"branch0": found["false_computation"], "branch1": found["true_computation"]}
    return found


def _closing(text: str, at: int) -> int:
    """The place after the parenthesis that closes the one at `at`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, at):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"HLO text: a parenthesis is not closed in {text[:120]!r}")
