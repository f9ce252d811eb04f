"""The one module that calls Orbax: a flat dict of arrays <-> a directory.

Orbax keeps dotted names of a flat dict apart, so names are stored as they are.
"""

import contextlib
import gc
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from numpy.typing import NDArray

from tpuinfer.checkpoint import layout
from tpuinfer.checkpoint.paths import locate
from tpuinfer.errors import CheckpointError

_T = TypeVar("_T")

_NO_ROOM = "is there room, and is it writable?"
_NOT_WHOLE = "are its files whole? verify tells"
_SETTLE_SECONDS = 0.3
_SETTLE_TRIES = 10

WRITE_BYTES = 128 * 2**20
"""Bytes in flight while saving."""

READ_BYTES = 128 * 2**20
"""Bytes in flight while loading: what the host holds beyond the arrays themselves."""

BATCH_BYTES = 256 * 2**20
"""Arrays written in one go. Orbax compares all names at each go: smaller ones would cost time."""

CHUNK_BYTES = 2 * 2**20
"""Small chunks let any mesh read just its own shards; compression would cost more than it saves."""


def save(path: Path, params: Iterable[tuple[str, NDArray[Any]]]) -> None:
    """Write named arrays, taken one at a time, to a directory that does not exist yet.

    The host holds some BATCH_BYTES of them and one more beside what Orbax has in flight. For one
    process: call it before `jax.distributed.initialize`.

    Raises:
      CheckpointError: it cannot be written.
    """
    from orbax.checkpoint import v1 as ocp

    def finish() -> None:
        with ocp.Context():
            ocp.partial.finalize(locate(path))

    batch: dict[str, NDArray[Any] | jax.Array] = {}
    held = 0
    for name, values in params:
        if batch and held + values.nbytes > BATCH_BYTES:
            _save_batch(path, batch)
            batch, held = {}, 0
        held += values.nbytes
        batch[name] = _on_host(values)
        del values  # while the next one is made, only the batch may hold it
    _save_batch(path, batch)
    _guarded(path, "written", _NO_ROOM, finish)


def _save_batch(path: Path, batch: Mapping[str, NDArray[Any] | jax.Array]) -> None:
    """Add arrays to a tree that is not finished."""
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.array.saving.use_compression = False
    context.array.saving.storage_options.chunk_byte_size = CHUNK_BYTES
    context.memory.deepcopy_host_arrays = False
    largest = max(array.nbytes for array in batch.values())
    context.memory.write_concurrent_bytes = max(WRITE_BYTES, largest + 1)

    def work() -> None:
        with context:
            ocp.partial.save(locate(path), dict(batch))

    _guarded(path, "written", _NO_ROOM, work)


def _on_host(values: NDArray[Any]) -> NDArray[Any] | jax.Array:
    """As a jax array where there is a CPU backend: of those alone Orbax bounds what it buffers."""
    try:
        return jax.device_put(values, jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return values


def host_device() -> jax.Device:
    """Whose memory is the host's, where there is such a backend."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def metadata(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Name -> (shape, stored dtype); no array is read.

    Raises:
      CheckpointError: `path` holds no Orbax tree, or a damaged one, or one that is not flat.
    """
    leaves = _stored(path)
    return {name: (tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in leaves.items()}


def load(
    path: Path, abstract: Mapping[str, jax.ShapeDtypeStruct], *, partial: bool = False
) -> dict[str, jax.Array]:
    """Read arrays onto devices, each device only its own shards, cast to the dtype asked for.

    Args:
      path: the Orbax directory.
      abstract: name -> shape, dtype and sharding of every array; the names and shapes must be
        those stored.
      partial: read these of what is stored, and nothing else.

    Raises:
      CheckpointError: the tree is missing, damaged or another.
    """
    from orbax.checkpoint import v1 as ocp

    stored = _stored(path)
    shapes = {name: tuple(leaf.shape) for name, leaf in stored.items()}
    if partial:
        shapes = {name: shape for name, shape in shapes.items() if name in abstract}
    check_same(path, abstract, shapes)
    context = ocp.Context()
    context.pytree.loading.partial_load = partial
    context.memory.read_concurrent_bytes = max(
        READ_BYTES, *(_footprint(stored[name], abstract[name]) + 1 for name in abstract)
    )

    def work() -> dict[str, jax.Array]:
        with context:
            loaded: dict[str, jax.Array] = ocp.load(locate(path), dict(abstract))
        for array in loaded.values():
            array.block_until_ready()
        return loaded

    return _guarded(path, "loaded", _NOT_WHOLE, work)


class HostReader:
    """Reads the arrays of a tree into host memory, one after the other as they are asked for.

    Neighbours are read along, READ_BYTES at most, and kept until others are.

    Raises:
      CheckpointError: the tree is missing or damaged, or holds no such array.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stored = metadata(path)
        self._held: dict[str, NDArray[Any]] = {}

    def __call__(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        """One array, cast to `dtype`; it is not to be written to."""
        if name not in self._stored:
            raise CheckpointError(f"{self._path}: {name} is missing")
        if name not in self._held:
            self._held = {}
            self._held = self._read(self._group(name))
        return self._held[name].astype(dtype, copy=False)

    def _group(self, first: str) -> list[str]:
        """`first` and what follows it, as far as that is not too much."""
        rest = list(self._stored)
        group: list[str] = []
        held = 0
        for name in rest[rest.index(first) :]:
            shape, dtype = self._stored[name]
            held += math.prod(shape) * dtype.itemsize
            if group and held > READ_BYTES:
                break
            group.append(name)
        return group

    def _read(self, names: list[str]) -> dict[str, NDArray[Any]]:
        from orbax.checkpoint import v1 as ocp

        wanted = {name: self._stored[name] for name in names}
        largest = max(math.prod(shape) * dtype.itemsize for shape, dtype in wanted.values())
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        context.memory.read_concurrent_bytes = max(READ_BYTES, largest + 1)
        sharding = SingleDeviceSharding(host_device())
        abstract = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
            for name, (shape, dtype) in wanted.items()
        }

        def work() -> dict[str, NDArray[Any]]:
            with context:
                loaded = ocp.load(locate(self._path), abstract)
            return {name: np.asarray(array) for name, array in loaded.items()}

        return _guarded(self._path, "read", _NOT_WHOLE, work)


def check_same(
    path: Path,
    abstract: Mapping[str, jax.ShapeDtypeStruct],
    stored: Mapping[str, tuple[int, ...]],
) -> None:
    """Refuse names and shapes that differ, all of them in one CheckpointError."""
    problems = [f"{name} is missing" for name in abstract if name not in stored]
    problems += [f"{name} is not part of the model" for name in stored if name not in abstract]
    problems += [
        f"{name} is {list(stored[name])} and the model needs {list(leaf.shape)}"
        for name, leaf in abstract.items()
        if name in stored and tuple(leaf.shape) != stored[name]
    ]
    layout.raise_all(path, problems)


def _stored(path: Path) -> dict[str, Any]:
    """Orbax's own metadata leaves, by name."""
    from orbax.checkpoint import v1 as ocp

    def work() -> dict[str, Any]:
        leaves = dict(ocp.metadata(locate(path)).metadata or {})
        if not leaves or not all(hasattr(leaf, "shape") for leaf in leaves.values()):
            raise ValueError("it is not a flat dict of arrays")
        return leaves

    return _guarded(path, "opened", "it is missing, incomplete or no checkpoint", work)


def _footprint(stored: Any, wanted: jax.ShapeDtypeStruct) -> int:
    """The most bytes that one read can take: Orbax refuses a limit that is not above each of them.

    A read is a shard of the array, rounded out to whole chunks, in the dtype asked for.
    """
    shape = wanted.shape
    chunks = stored.storage_metadata.chunk_shape if stored.storage_metadata else shape
    shard = wanted.sharding.shard_shape(shape) if wanted.sharding else shape
    sizes = (
        min((part // chunk + 2) * chunk, -(-size // chunk) * chunk)
        for size, part, chunk in zip(shape, shard, chunks, strict=True)
    )
    itemsize: int = max(np.dtype(stored.dtype).itemsize, wanted.dtype.itemsize)
    elements: int = math.prod(sizes)
    return elements * itemsize


def _guarded(path: Path, verb: str, hint: str, work: Callable[[], _T]) -> _T:
    """Do `work`; whatever it raises becomes one CheckpointError, and nothing is printed."""
    with _quiet() as complaints:
        try:
            return work()
        except Exception as error:
            reason = _reason(error)
        _settle(complaints)
    if "RESOURCE_EXHAUSTED" in reason:
        hint = "the parameters do not fit on the devices; use a larger mesh or bfloat16"
    raise CheckpointError(f"{path}: cannot be {verb} ({reason}): {hint}")


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause, for Orbax wraps what TensorStore said."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{lines[0][:160]}" if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[list[object]]:
    """Keep off the terminal what Orbax logs, warns and drops beside what it raises.

    Yields a list that grows by one for each exception that nobody was there to catch.
    """
    complaints: list[object] = []
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    hook = sys.unraisablehook
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda what: complaints.append(what.exc_type)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"coroutine .* was never awaited")
            yield complaints
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _settle(complaints: list[object]) -> None:
    """Let reads that are still under way end, and collect what the failed load left behind.

    Orbax closes its event loop at the first failure; reads that end later complain about that.
    """
    for _ in range(_SETTLE_TRIES):
        before = len(complaints)
        time.sleep(_SETTLE_SECONDS)
        gc.collect()
        if len(complaints) == before:
            break
