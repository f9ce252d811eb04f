"""A program's arguments in words: what they are, and how a call's differ from the compiled ones."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding


class Difference(NamedTuple):
    """One array of a call that is not what the program was compiled for, in words.

    Attributes:
      path: where it is, such as "state.position".
    """

    path: str
    expected: str
    given: str

    def __str__(self) -> str:
        return f"{self.path} is {self.given}, compiled for {self.expected}"


def short(array: Any) -> str:
    """Type and shape of anything that has both: "i32[4,64]"."""
    name = array.dtype.name.replace("float", "f").replace("uint", "u").replace("int", "i")
    return f"{name}[{','.join(map(str, array.shape))}]"


def shapes(function: Callable[..., Any], arguments: Sequence[Any], start: int = 0) -> str:
    """The arrays of `arguments[start:]`, those of one shape together.

        tokens i32[4,64], slot start length i32[4], last bool[4]

    An array inside an argument goes by its path in it, an argument that is an array by its name.
    """
    groups: dict[str, list[str]] = {}
    for path, leaf in _leaves(function, arguments, start).items():
        groups.setdefault(short(leaf), []).append(path.split(".", 1)[-1])
    return ", ".join(f"{' '.join(names)} {shape}" for shape, names in groups.items())


def differences(
    function: Callable[..., Any], expected: Sequence[Any], given: Sequence[Any]
) -> tuple[Difference, ...]:
    """Why a program compiled for `expected` refuses `given`; empty if it would take them.

    Args:
      expected: trees of ShapeDtypeStruct, with shardings where they matter.
      given: trees of arrays; numpy arrays and arrays not committed to a device lie anywhere.
    """
    wanted, got = _leaves(function, expected), _leaves(function, given)
    found = []
    for path in dict.fromkeys((*wanted, *got)):
        if path not in got:
            found.append(Difference(path, short(wanted[path]), "missing"))
        elif path not in wanted:
            found.append(Difference(path, "nothing", type(got[path]).__name__))
        elif difference := _compare(path, wanted[path], got[path]):
            found.append(difference)
    trees = [str(jax.tree.structure(tuple(each))) for each in (expected, given)]
    if not found and trees[0] != trees[1]:
        found.append(Difference("the tree of arguments", *trees))
    return tuple(found)


def _leaves(
    function: Callable[..., Any], arguments: Sequence[Any], start: int = 0
) -> dict[str, Any]:
    """Arrays by path; the first part of a path is the function's name for the argument."""
    names = list(inspect.signature(function).parameters)
    found = {}
    for index, argument in enumerate(arguments):
        if index < start:
            continue
        name = names[index] if index < len(names) else f"argument {index}"
        for keys, leaf in jax.tree.leaves_with_path(argument):
            inner = jax.tree_util.keystr(keys, simple=True, separator=".")
            found[f"{name}.{inner}" if inner else name] = leaf
    return found


def _compare(path: str, wanted: Any, got: Any) -> Difference | None:
    try:
        kind = jax.typeof(got)
    except TypeError:
        return Difference(path, short(wanted), f"a {type(got).__name__}")
    if (kind.shape, kind.dtype) != (wanted.shape, wanted.dtype):
        return Difference(path, short(wanted), short(kind))
    place = getattr(wanted, "sharding", None)
    if place is None or not isinstance(got, jax.Array) or not got.committed:
        return None
    if got.sharding.is_equivalent_to(place, got.ndim):
        return None
    shape = short(wanted)
    return Difference(path, f"{shape} on {_where(place)}", f"{shape} on {_where(got.sharding)}")


def _where(sharding: jax.sharding.Sharding) -> str:
    if isinstance(sharding, NamedSharding):
        return f"mesh {dict(sharding.mesh.shape)} cut as {tuple(sharding.spec)}"
    return str(sharding)
