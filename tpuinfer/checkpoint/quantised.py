"""Quantised parameters in a checkpoint directory: how they are stored, and how they come back.

A parameter X that is kept by a scheme is stored as X (its codes), X.scale and, if the scheme has
zeros, X.zero; 4-bit codes are packed, two to a byte. The manifest has the scheme of each. What is
stored one way and wanted another is worked on as it is read, a few parameters at a time.
"""

import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from numpy.typing import NDArray

from tpuinfer.checkpoint import layout, orbax_store
from tpuinfer.quant import fit
from tpuinfer.quant.qarray import DTYPES, QArray, bytes_of, dequantise
from tpuinfer.quant.schemes import Scheme

_log = logging.getLogger(__name__)

BATCH_BYTES = 256 * 2**20
"""Stored bytes of parameters that are worked on in one go."""

_SCALE, _ZERO = ".scale", ".zero"


def stored_parts(name: str, value: QArray) -> dict[str, NDArray[Any]]:
    """A QArray of arrays in host memory, by the names that it is stored under."""
    codes = fit.pack(jnp.asarray(value.values)) if value.kind == "int4" else value.values
    parts = {name: np.asarray(codes), name + _SCALE: np.asarray(value.scale)}
    return parts if value.zero is None else {**parts, name + _ZERO: np.asarray(value.zero)}


def from_parts(scheme: Scheme, parts: Mapping[str, Any], name: str) -> QArray:
    """Undo `stored_parts`, of arrays anywhere."""
    codes = parts[name]
    if scheme.kind == "int4":
        codes = fit.unpack(codes)
    return QArray(
        codes, parts[name + _SCALE], parts.get(name + _ZERO), scheme.kind, scheme.group is not None
    )


def abstract_parts(
    name: str, scheme: Scheme, shape: tuple[int, ...], contracted: int
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """(shape, dtype) of what is stored of a parameter."""
    value = fit.abstract(scheme, shape, contracted)
    codes, kind = value.values.shape, np.dtype(DTYPES[scheme.kind])
    if scheme.kind == "int4":
        codes, kind = (*codes[:-1], codes[-1] // 2), np.dtype(np.uint8)
    parts = {name: (codes, kind), name + _SCALE: (value.scale.shape, np.dtype(np.float32))}
    if scheme.has_zero:
        parts[name + _ZERO] = parts[name + _SCALE]
    return parts


def on_host(values: NDArray[Any], scheme: Scheme, contracted: int) -> QArray:
    """A parameter in host memory as a scheme keeps it, in host memory too."""
    with jax.default_device(orbax_store.host_device()):
        made = _quantise(jnp.asarray(values), scheme, contracted)
        return jax.tree.map(np.asarray, made)


def load(path: Path, manifest: layout.Manifest, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Read parameters onto devices as they are wanted; see `checkpoint.load.load_params`.

    Args:
      path: the Orbax directory.
    """
    _check(path, manifest, abstract)
    parts, made = _reads(manifest, abstract)
    straight = {name for name in abstract if name not in made}
    wanted = {part: one for name in straight for part, one in parts[name].items()}
    loaded = orbax_store.load(path, wanted, partial=True) if wanted else {}
    found = {name: _plain(name, manifest, abstract[name], loaded) for name in straight}
    if differing := {
        name
        for name in made
        if name in manifest.schemes and not _same(name, manifest, abstract[name])
    }:
        _log.info(
            "%s: %d weights are stored quantised and wanted otherwise: read through float32",
            path.parent.name,
            len(differing),
        )
    for names in _batches(made, parts):
        batch = {part: one for name in names for part, one in parts[name].items()}
        arrays = orbax_store.load(path, batch, partial=True)
        for name in names:
            found[name] = made[name]({part: arrays.pop(part) for part in parts[name]})
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
            if not _same(name, manifest, want) or scheme.kind == "int4":
                made[name] = _maker(name, scheme, want)
        elif isinstance(want, QArray):
            size, kind = manifest.params[name]
            cut = _spec(want, want.outs)
            whole = PartitionSpec(*cut, *(None,) * (len(size) - len(cut)))
            place = NamedSharding(_mesh(want), whole)
            parts[name] = {name: jax.ShapeDtypeStruct(size, np.dtype(kind), sharding=place)}
            made[name] = _maker(name, None, want)
        else:
            parts[name] = {name: want}
    return parts, made


def _maker(name: str, scheme: Scheme | None, want: Any) -> Callable[..., Any]:
    """A program from what is stored to what is wanted; parameters that are alike share it."""
    wanted = fit.scheme_of(want) if isinstance(want, QArray) else None
    shape = (want.outs, None) if isinstance(want, QArray) else (0, want.shape)
    places = tuple(jax.tree.leaves(jax.tree.map(lambda one: one.sharding, want)))
    dtype = None if isinstance(want, QArray) else want.dtype
    run = _program(scheme, wanted, *shape, dtype, jax.tree.structure(want), places)
    return lambda parts: run({part.removeprefix(name): one for part, one in parts.items()})


@functools.lru_cache(maxsize=256)
def _program(
    stored: Scheme | None,
    wanted: Scheme | None,
    outs: int,
    shape: tuple[int, ...] | None,
    dtype: Any,
    tree: Any,
    places: tuple[Any, ...],
) -> Callable[..., Any]:
    def make(parts: dict[str, jax.Array]) -> Any:
        value: Any = parts[""]
        if stored is not None:
            value = from_parts(stored, parts, "")
            if stored == wanted:
                return value
            value = dequantise(value)
        if wanted is None:
            return value.reshape(shape).astype(dtype)
        return fit.quantise(value, wanted, value.ndim - outs)

    return jax.jit(make, out_shardings=jax.tree.unflatten(tree, places))


_quantise = jax.jit(fit.quantise, static_argnums=(1, 2))


def _plain(name: str, manifest: layout.Manifest, want: Any, loaded: Mapping[str, jax.Array]) -> Any:
    if name in manifest.schemes:
        return from_parts(manifest.schemes[name][0], loaded, name)
    return loaded[name]


def _same(name: str, manifest: layout.Manifest, want: Any) -> bool:
    return isinstance(want, QArray) and manifest.schemes[name][0] == fit.scheme_of(want)


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
    if len(size) > outs and axes[outs] is not None and size[outs] % mesh.shape[axes[outs]]:
        axes[outs] = None
    place = NamedSharding(mesh, PartitionSpec(*axes, *(None,) * (len(size) - len(axes))))
    return jax.ShapeDtypeStruct(size, kind, sharding=place)


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
