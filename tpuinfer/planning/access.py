"""Which bytes of HBM one instruction touches.

    slice, gather          read what they take; so does a fusion that uses an operand for no more
    update-slice, scatter  are in place: they write what is new, and read none of the rest
    a kernel of one's own  touches as much of what it keeps in HBM as it tells, and the rest whole
    everything else        reads its operands whole and writes its results whole

What lies in another memory costs nothing. Bytes are those in memory, whole tiles.
"""

import dataclasses
from typing import Literal

from tpuinfer.planning.hlo import Array, Computation, Instruction, Module, Shape

_REWRITES = frozenset(["bitcast", "copy", "convert", "reshape", "transpose"])
_TAKES = frozenset(["slice", "dynamic-slice", "gather"])
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}
"""What changes its first operand, and which operand holds what is new."""

_SEMAPHORES = 2
"""The memory of a TPU that they are in."""

_Form = Literal["same", "rewritten"]

_MAKES_SAME = _REWRITES | {"copy-start", "slice", "slice-start", "dynamic-slice"}
_DOTS = frozenset(["convolution", "dot", "ragged-dot", "custom-call"])
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)


def read(module: Module, body: Computation, one: Instruction, at: int) -> int:
    """Bytes of its operand number `at` that an instruction reads from HBM."""
    shape = body.by_name[one.operands[at]].shape
    if len(shape) != 1:
        return sum(array.stored for array in shape if not array.space)
    array = shape[0]
    if array.space:
        return 0
    if one.opcode == "slice-start":
        return one.made[0].stored
    if one.call is not None and at in one.call.pinned:
        return _told(body, one, array)
    part = _part(module, one, at)
    return array.stored if part is None else min(array.stored, -(-part * array.bits // 8))


def _told(body: Computation, one: Instruction, array: Array) -> int:
    """The share of an operand in what a kernel tells of all that it keeps in HBM."""
    assert one.call is not None
    kept = sum(body.by_name[one.operands[at]].array.stored for at in one.call.pinned)
    return round(one.call.told * array.stored / kept)


def written(module: Module, body: Computation, one: Instruction) -> int:
    """Bytes that an instruction puts into HBM."""
    if one.call is not None:
        new = [array for at, array in enumerate(one.made) if at not in one.call.aliases]
        return sum(array.stored for array in new if not array.space)
    places = one.made
    if one.aliased and exchange(module, body, one):
        # What a collective in parts carries along is where it was.
        carried = [dataclasses.replace(array, space=1) for array in places]
        places = tuple(carried[at] if at in one.aliased else a for at, a in enumerate(places))
    return _new(module, body, one, places)


def rewritten(module: Module, body: Computation, one: Instruction) -> tuple[int, ...]:
    """Which operands an instruction may give back, in another place, order or dtype, or in part.

    Of a fusion without a dot that makes as many elements: it scales each, say, or replaces a few.
    Where it takes several of that size, what it makes is one of them only if the others are new.
    """
    if one.opcode in _MAKES_SAME or one.opcode in _IN_PLACE:
        return (0,)
    if one.opcode != "fusion" or len(one.shape) != 1:
        return ()
    if _has(module, module.computations[one.called["calls"]], _DOTS):
        return ()
    size, shapes = one.array.elements, [body.by_name[name].shape for name in one.operands]
    return tuple(
        at
        for at, shape in enumerate(shapes)
        if len(shape) == 1 and len(shape[0].dims) > 1 and shape[0].elements == size
    )


def exchange(
    module: Module, body: Computation, one: Instruction
) -> tuple[Computation, Instruction] | None:
    """The collective that an instruction is, or has inside, and where it stands.

    The compiler spreads a collective over fusions, so that it goes on while they compute: the first
    begins it, the last waits for it, and each has it inside.
    """
    if one.opcode == "fusion":
        inner = module.computations[one.called["calls"]]
        parts = (exchange(module, inner, part) for part in inner.instructions)
        return next((part for part in parts if part), None)
    return (body, one) if one.opcode.removesuffix("-start") in _COLLECTIVES else None


def goes_on(body: Computation, one: Instruction) -> bool:
    """Whether the collective inside a fusion has begun before: then it takes its semaphores."""
    arrays = (array for name in one.operands for array in body.by_name[name].shape)
    return any(array.dtype == "u32" and array.space == _SEMAPHORES for array in arrays)


def _part(module: Module, one: Instruction, at: int) -> int | None:
    """Elements that an instruction takes of an operand; None = all."""
    if one.opcode == "fusion":
        inner = module.computations[one.called["calls"]]
        part, leaves = _inside(module, inner, inner.parameters[at].name, "same")
        return None if leaves == "rewritten" else part
    if at == 0 and one.opcode in _TAKES:
        return one.array.elements
    return 0 if at == 0 and one.opcode in _IN_PLACE else None


def _inside(
    module: Module, body: Computation, name: str, form: _Form
) -> tuple[int | None, _Form | None]:
    """Elements that a fusion's body takes of a value; and as what the value leaves it, if it does.

    What is rewritten inside a fusion is made piece by piece, as far as it is asked for; but to
    write a part of it, all of it must be made.
    """
    leaves = form if body.root.name == name else None
    total = 0
    for user, at in body.users.get(name, ()):
        part: int | None = 0
        onwards: _Form | None = None
        if user.opcode == "fusion":
            inner = module.computations[user.called["calls"]]
            part, onwards = _inside(module, inner, inner.parameters[at].name, form)
        elif user.opcode in _REWRITES:
            onwards = form if user.opcode == "bitcast" else "rewritten"
        elif user.opcode == "tuple" and user is body.root:
            leaves = form
        elif form == "rewritten" and user.opcode in _IN_PLACE:
            part = None
        else:
            part = _part(module, user, at)
        if onwards is not None:
            further, leaves_by = _inside(module, body, user.name, onwards)
            part = None if part is None or further is None else part + further
            leaves = leaves_by or leaves
        if part is None:
            return None, leaves
        total += part
    return total, leaves


def _new(module: Module, body: Computation, root: Instruction, places: Shape) -> int:
    """Bytes in HBM of a result, without those that were there before."""
    while root.opcode == "bitcast":
        root = body.by_name[root.operands[0]]
    if root.opcode == "fusion":
        inner = module.computations[root.called["calls"]]
        return _new(module, inner, inner.root, places)
    if root.opcode == "tuple":
        parts = [body.by_name[name] for name in root.operands]
        return sum(
            _new(module, body, part, (place,)) for part, place in zip(parts, places, strict=True)
        )
    if all(place.space for place in places) or root.opcode == "parameter":
        return 0
    if root.opcode in _IN_PLACE:
        return body.by_name[root.operands[_IN_PLACE[root.opcode]]].array.stored
    return sum(place.stored for place in places if not place.space)


def _has(module: Module, body: Computation, opcodes: frozenset[str]) -> bool:
    return any(
        one.opcode in opcodes
        or (
            one.opcode == "fusion"
            and _has(module, module.computations[one.called["calls"]], opcodes)
        )
        for one in body.instructions
    )
