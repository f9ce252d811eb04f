"""Quantised parameters in a checkpoint directory: how they are stored, and how they come back.

A parameter X that is kept by a scheme is stored as X (its codes), X.scale and, if the scheme has
zeros, X.zero; 4-bit codes are packed, two to a byte. The manifest has the scheme of each. What is
stored one way and wanted another is worked on as it is read, a few parameters at a time.
"""

import dataclasses
import functools
import logging
import math
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from numpy.typing import NDArray

from tpuinfer.checkpoint import layout, orbax_store
from tpuinfer.checkpoint.by_rows import by_rows
from tpuinfer.checkpoint.repeat import published, repeat
from tpuinfer.quant import fit
from tpuinfer.quant.qarray import QArray, bytes_of, dequantise
from tpuinfer.quant.schemes import Scheme

_log = logging.getLogger(__name__)

BATCH_BYTES = 128 * 2**20
"""Stored bytes of parameters that are worked on in one go."""

_SCALE, _ZERO = ".scale", ".zero"


def stored_parts(name: str, value: QArray) -> dict[str, NDArray[Any]]:
    """A QArray of arrays in host memory, by the names that it is stored under."""
    parts = {name: np.asarray(value.packed().values), name + _SCALE: np.asarray(value.scale)}
    return parts if value.zero is None else {**parts, name + _ZERO: np.asarray(value.zero)}


def from_parts(scheme: Scheme, parts: Mapping[str, Any], name: str) -> QArray:
    """Undo `stored_parts`, of arrays anywhere; 4-bit codes stay in pairs."""
    grouped = scheme.group is not None
    return QArray(parts[name], parts[name + _SCALE], parts.get(name + _ZERO), scheme.kind, grouped)


def abstract_parts(
    name: str, scheme: Scheme, shape: tuple[int, ...], contracted: int
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """(shape, dtype) of what is stored of a parameter."""
    value = fit.abstract(scheme, shape, contracted, packed=True)
    kind = np.dtype(value.values.dtype)
    parts = {name: (value.values.shape, kind)}
    parts[name + _SCALE] = value.scale.shape, np.dtype(np.float32)
    if scheme.has_zero:
        parts[name + _ZERO] = parts[name + _SCALE]
    return parts


def on_host(values: NDArray[Any], scheme: Scheme, contracted: int) -> QArray:
    """A parameter in host memory as a scheme keeps it, in host memory too."""
    with jax.default_device(orbax_store.host_device()):
        made: QArray = jax.tree.map(np.asarray, _quantise(values, scheme, contracted))
        return made


def again_on_host(value: QArray, scheme: Scheme, shape: tuple[int, ...]) -> QArray:
    """What is quantised as another scheme keeps it; all of it in host memory.

    Args:
      shape: the parameter's.
    """
    with jax.default_device(orbax_store.host_device()):
        made: QArray = jax.tree.map(np.asarray, _requantise(value, scheme, shape))
        return made


def widened_on_host(value: QArray, shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
    """The values that codes stand for, rounded once to `kind`; all of it in host memory."""
    with jax.default_device(orbax_store.host_device()):
        return np.asarray(_widen(value, shape, kind))


def load(
    path: Path,
    manifest: layout.Manifest,
    wanted: Mapping[str, Any],
    repeats: Mapping[str, int] = types.MappingProxyType({}),
) -> dict[str, Any]:
    """Read parameters onto devices as they are wanted; see `checkpoint.load.load_params`.

    Args:
      path: the Orbax directory.
    """
    abstract = {**wanted, **{name: published(wanted[name], n) for name, n in repeats.items()}}
    _check(path, manifest, abstract)
    parts, made = _reads(manifest, abstract)
    for name in repeats:
        made.setdefault(name, functools.partial(_plain, name, manifest, abstract[name]))
    straight = {name for name in abstract if name not in made}
    whole = {part: one for name in straight for part, one in parts[name].items()}
    loaded = orbax_store.load(path, whole, partial=True) if whole else {}
    found = {name: _plain(name, manifest, abstract[name], loaded) for name in straight}
    if otherwise := sum(not _same(name, manifest, abstract[name]) for name in manifest.schemes):
        _log.info(
            "%s: %d weights are stored quantised and wanted otherwise: read through float32",
            path.parent.name,
            otherwise,
        )
    for names in _batches(made, parts):
        batch = {part: one for name in names for part, one in parts[name].items()}
        arrays = orbax_store.load(path, batch, partial=True)
        for name in names:
            found[name] = made[name]({part: arrays.pop(part) for part in parts[name]})
            if name in repeats:
                found[name] = repeat(found[name], wanted[name])
            jax.block_until_ready(found[name])
    return {name: found[name] for name in abstract}


def _reads(
    manifest: layout.Manifest, abstract: Mapping[str, Any]
) -> tuple[dict[str, dict[str, jax.ShapeDtypeStruct]], dict[str, Callable[..., Any]]]:
    """What is read for each parameter, and what is made of it where that is not all."""
    parts: dict[str, dict[str, jax.ShapeDtypeStruct]] = {}
    made: dict[str, Callable[..., Any]] = {}
    for name, want in abstract.items():
        if name in manifest.schemes:
            scheme, shape, contracted = manifest.schemes[name]
            stored = abstract_parts(name, scheme, shape, contracted)
            outs = len(shape) - contracted
            cut = _spec(want, outs)
            parts[name] = {
                part: _on(want, size, kind, cut, outs, scheme.group is not None)
                for part, (size, kind) in stored.items()
            }
            is_whole = isinstance(want, QArray) and not want.is_packed and scheme.kind == "int4"
            if is_whole or not _same(name, manifest, want):
                made[name] = _maker(name, manifest, want, parts[name])
        elif isinstance(want, QArray):
            size, kind = manifest.params[name]
            cut = _spec(want, want.outs)
            whole = PartitionSpec(*cut, *(None,) * (len(size) - len(cut)))
            place = NamedSharding(_mesh(want), whole)
            parts[name] = {name: jax.ShapeDtypeStruct(size, np.dtype(kind), sharding=place)}
            made[name] = _maker(name, manifest, want, parts[name])
        else:
            parts[name] = {name: want}
    return parts, made


def _maker(
    name: str, manifest: layout.Manifest, want: Any, parts: Mapping[str, jax.ShapeDtypeStruct]
) -> Callable[..., Any]:
    """A program from what is stored to what is wanted; parameters that are alike share it."""
    if name in manifest.schemes:
        stored, shape, contracted = manifest.schemes[name]
        outs = len(shape) - contracted
    else:
        stored, shape, outs = None, manifest.params[name][0], want.outs
    wanted = fit.scheme_of(want) if isinstance(want, QArray) else None
    leaves, tree = jax.tree.flatten(want)
    task = _Task(
        stored=stored,
        wanted=wanted,
        dtype=None if wanted is not None else np.dtype(want.dtype),
        packs=wanted is not None and want.is_packed,
        outs=outs,
        inner=shape[outs:],
        sources=tuple((part.removeprefix(name), one.sharding) for part, one in parts.items()),
        tree=tree,
        places=tuple(one.sharding for one in leaves),
    )
    run = _program(task)
    return lambda parts: run({part.removeprefix(name): one for part, one in parts.items()})


@dataclasses.dataclass(frozen=True)
class _Task:
    """What is to be made of a parameter, and where: all that its program depends on.

    Attributes:
      stored, wanted: None = it is an array of floating point; then it is wanted in `dtype`.
      packs: 4-bit codes are wanted in pairs.
      outs: dimensions that the parameter makes; inner: the sizes of the others.
      sources: ending of a stored part's name -> where it lies. tree, places: of what is made.
    """

    stored: Scheme | None
    wanted: Scheme | None
    dtype: np.dtype[Any] | None
    packs: bool
    outs: int
    inner: tuple[int, ...]
    sources: tuple[tuple[str, NamedSharding], ...]
    tree: Any
    places: tuple[NamedSharding, ...]

    def rows(self, parts: Mapping[str, jax.Array], inner: tuple[int, ...]) -> Any:
        """What is made of some rows, in one dimension."""
        if self.stored is None:
            assert self.wanted is not None
            return self._kept(fit.quantise(parts[""], self.wanted, len(inner)))
        value = from_parts(self.stored, parts, "")
        shape = (len(value.scale), *inner)
        if self.wanted is not None:
            return self._kept(fit.requantise(value, self.wanted, shape))
        return dequantise(value).reshape(shape).astype(self.dtype)

    def _kept(self, value: QArray) -> QArray:
        return value.packed() if self.packs else value.unpacked()

    def cut(self) -> tuple[int, bool]:
        """Into how many parts a row lies on devices, and whether each can do its part alone."""
        before, after = (
            (*place.spec, *(None,) * (self.outs + 1))[self.outs]
            for place in (self.sources[0][1], self.places[0])
        )
        if before is None and after is None:
            return 1, True
        alone = self.wanted is None or self.wanted.group is not None
        pieces = _pieces(self.places[0].mesh, after or before)
        return pieces, before == after and alone


@functools.lru_cache(maxsize=256)
def _program(task: _Task) -> Callable[..., Any]:
    """Each device works on its own rows, some at a time; where a row's scale is that of parts on
    several devices, on all of them at once.
    """
    out = jax.tree.unflatten(task.tree, task.places)
    pieces, alone = task.cut()
    if not alone:
        whole = functools.partial(_all_rows, task, task.inner)
        return jax.jit(whole, out_shardings=out)
    own = (task.inner[0] // pieces, *task.inner[1:])

    def local(parts: dict[str, jax.Array]) -> Any:
        return by_rows(lambda some: task.rows(some, own), parts, task.outs)

    placed = jax.shard_map(
        local,
        mesh=task.places[0].mesh,
        in_specs=({part: place.spec for part, place in task.sources},),
        out_specs=jax.tree.unflatten(task.tree, [place.spec for place in task.places]),
        check_vma=False,
    )
    return jax.jit(placed, out_shardings=out)


def _all_rows(task: _Task, inner: tuple[int, ...], parts: dict[str, jax.Array]) -> Any:
    lead = parts[""].shape[: task.outs]
    flat = {part: one.reshape(-1, *one.shape[task.outs :]) for part, one in parts.items()}
    return jax.tree.map(lambda one: one.reshape(*lead, *one.shape[1:]), task.rows(flat, inner))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _quantise(values: jax.Array, scheme: Scheme, contracted: int) -> QArray:
    def work(rows: jax.Array) -> QArray:
        return fit.quantise(rows, scheme, contracted)

    made: QArray = by_rows(work, values, values.ndim - contracted)
    return made


@functools.partial(jax.jit, static_argnums=(1, 2))
def _requantise(value: QArray, scheme: Scheme, shape: tuple[int, ...]) -> QArray:
    def work(rows: QArray) -> QArray:
        return fit.requantise(rows, scheme, (len(rows.scale), *shape[value.outs :]))

    made: QArray = by_rows(work, value, value.outs)
    return made


@functools.partial(jax.jit, static_argnums=(1, 2))
def _widen(value: QArray, shape: tuple[int, ...], kind: np.dtype[Any]) -> jax.Array:
    made: jax.Array = by_rows(lambda rows: dequantise(rows).astype(kind), value, value.outs)
    return made.reshape(shape)


def _plain(name: str, manifest: layout.Manifest, want: Any, loaded: Mapping[str, jax.Array]) -> Any:
    if name not in manifest.schemes:
        return loaded[name]
    stored, shape, _ = manifest.schemes[name]
    return fit.requantise(from_parts(stored, loaded, name), fit.scheme_of(want), shape)


def _same(name: str, manifest: layout.Manifest, want: Any) -> bool:
    """Whether the codes that are stored are those that are wanted."""
    stored = manifest.schemes[name][0]
    return isinstance(want, QArray) and fit.same_codes(stored, fit.scheme_of(want))


def _mesh(want: Any) -> Any:
    return jax.tree.leaves(want)[0].sharding.mesh


def _spec(want: Any, outs: int) -> tuple[Any, ...]:
    """Mesh axes of a parameter's outputs and of its first contracted dimension."""
    first: Any = want.values if isinstance(want, QArray) else want
    spec = tuple(first.sharding.spec)
    return (*spec, *(None,) * (outs + 1))[: outs + 1]


def _on(
    want: Any,
    size: tuple[int, ...],
    kind: np.dtype[Any],
    cut: tuple[Any, ...],
    outs: int,
    grouped: bool,
) -> jax.ShapeDtypeStruct:
    """A stored part where the parameter it belongs to will lie, as far as that divides it."""
    mesh = _mesh(want)
    axes = [*cut[: min(len(size), outs + 1)]]
    if len(size) > outs and size[outs] % _pieces(mesh, axes[outs]):
        axes[outs] = None
    place = NamedSharding(mesh, PartitionSpec(*axes, *(None,) * (len(size) - len(axes))))
    return jax.ShapeDtypeStruct(size, kind, sharding=place)


def _pieces(mesh: Any, place: str | tuple[str, ...] | None) -> int:
    """Into how many pieces a dimension is cut over one mesh axis, several, or none."""
    names = (place,) if isinstance(place, str) else place or ()
    return math.prod(mesh.shape[name] for name in names)


def _batches(
    made: Mapping[str, Any], parts: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]]
) -> Iterator[list[str]]:
    names: list[str] = []
    held = 0
    for name in made:
        size = sum(bytes_of(one.shape, one.dtype) for one in parts[name].values())
        if names and held + size > BATCH_BYTES:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    if names:
        yield names


def _check(path: Path, manifest: layout.Manifest, abstract: Mapping[str, Any]) -> None:
    """Refuse names and shapes that differ, all of them in one CheckpointError."""
    beside = {name + end for name in manifest.schemes for end in (_SCALE, _ZERO)}
    stored = {
        name: manifest.schemes[name][1] if name in manifest.schemes else shape
        for name, (shape, _) in manifest.params.items()
        if name not in beside
    }
    problems = [f"{name} is missing" for name in abstract if name not in stored]
    problems += [f"{name} is not part of the model" for name in stored if name not in abstract]
    for name, want in abstract.items():
        if name in stored and not _fits(stored[name], want):
            problems.append(
                f"{name} is {list(stored[name])} and the model needs {list(want.shape)}"
            )
    layout.raise_all(path.parent, problems)


def _fits(shape: tuple[int, ...], want: Any) -> bool:
    if not isinstance(want, QArray):
        return shape == tuple(want.shape)
    outs = want.outs
    return shape[:outs] == want.shape[:-1] and math.prod(shape[outs:]) == want.shape[-1]
