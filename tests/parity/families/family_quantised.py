"""A case with quantised weights, and what the same weights give where nothing is quantised.

The reference is our own path for plain arrays, which other tests hold against transformers: it is
given what the codes stand for, computed here in numpy. For w8a8 that path rounds its activations
too, by the definition alone: one scale a row, max|x| / 127, and codes to the nearest whole number.
"""

import contextlib
import math
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import family_golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_cases import CASES
from family_ours import LENGTH, Logits, Model
from numpy.typing import NDArray

from tpuinfer.checkpoint.convert import convert
from tpuinfer.model_config import ModelConfig
from tpuinfer.models import registry
from tpuinfer.models.blueprint import weights
from tpuinfer.ops import experts, linear
from tpuinfer.quant.qarray import QArray
from tpuinfer.quant.schemes import Scheme

_LEAST_GROUP = 8


@contextlib.contextmanager
def checkpoint_of(name: str) -> Iterator[Path]:
    """The case's checkpoint directory, float32."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        golden = family_golden.load(name)
        published = family_golden.write_checkpoint(CASES[name], golden, work / "hf")
        yield convert(published, work / "converted", "float32")


def config_of(name: str) -> ModelConfig:
    config = registry.read_config(family_golden.load(name).config)
    assert isinstance(config, ModelConfig)
    return config


def group_of(width: int, shards: int = 1) -> int | None:
    """The largest even group of at least 8 inputs that cuts a row into several, or None.

    >>> group_of(36), group_of(52), group_of(52, shards=4)
    (18, 26, None)
    """
    for size in range(width // 2, _LEAST_GROUP - 1, -1):
        if size % 2 == 0 and width % size == 0 and width // size % shards == 0:
            return size
    return None


def by_kind(config: ModelConfig, words: Mapping[str, str], shards: int) -> dict[str, Scheme]:
    """Weights by the last word of their names, the others in int8.

    Args:
      shards: that inputs may be cut into; where no group fits them, 4 bits are 8.
    """
    return {
        name: _fitted(words.get(name.split(".")[-2], "int8"), width, shards)
        for name, width in _widths(config)
    }


def in_turn(config: ModelConfig, words: tuple[str, ...], edges: str = "int8") -> dict[str, Scheme]:
    """Each layer by the next scheme, embedding and head by `edges`."""
    found = {}
    for name, width in _widths(config):
        layer = name.split(".")[1] if name.startswith("layers.") else None
        word = edges if layer is None else words[int(layer) % len(words)]
        found[name] = _fitted(word, width, 1)
    return found


def _widths(config: ModelConfig) -> Iterator[tuple[str, int]]:
    """Of every weight that may be quantised, how many inputs a row has."""
    for name, weight in weights(registry.build(config)).items():
        if weight.contracted:
            yield name, math.prod(weight.shape[-weight.contracted :])


def _fitted(word: str, width: int, shards: int) -> Scheme:
    if word not in ("int4", "int4z"):
        return Scheme(word)
    group = group_of(width, shards)
    return Scheme("int8") if group is None else Scheme(word, group)


def dequantised(model: Model, plain: Model) -> dict[str, Any]:
    """The model's parameters as plain float32 arrays, where `plain` has its own."""

    def one(name: str, value: Any) -> jax.Array:
        own = plain.params[name]
        host = by_numpy(value) if isinstance(value, QArray) else np.asarray(value)
        return jax.device_put(host.reshape(own.shape), own.sharding)

    return {name: one(name, value) for name, value in model.params.items()}


def by_numpy(weight: QArray) -> NDArray[np.float32]:
    """What codes, scales and zeros stand for: [out..., in...], or [out..., G, S]."""
    codes = np.asarray(weight.values)
    if weight.is_packed:  # the first of two in the low half, 8 to 15 below zero
        halves = np.stack((codes & 15, codes >> 4), axis=-1).reshape(*codes.shape[:-1], -1)
        codes = (halves ^ 8).astype(np.int8) - 8
    codes = codes.astype(np.float32)

    def beside(part: Any) -> NDArray[np.float32]:
        host = np.asarray(part)
        return host.reshape(*host.shape, *(1,) * (codes.ndim - host.ndim))

    whole = codes * beside(weight.scale)
    return whole if weight.zero is None else whole + beside(weight.zero)


def both(
    checkpoint: Path, mesh: str, schemes: Mapping[str, Scheme], prompt: int, width: int
) -> tuple[Logits, Logits, Logits]:
    """[LENGTH, V] logits: quantised, of the same weights dequantised, and of the exact ones.

    Args:
      prompt, width: as `Model.run` takes them.
    """
    plain, model = Model(checkpoint, mesh), Model(checkpoint, mesh, schemes)
    given = dequantised(model, plain)
    with ThreadPoolExecutor() as pool:  # compiling takes one core each
        ours = pool.submit(model.run, prompt, width)
        wanted = pool.submit(plain.run, prompt, width, given)
        return ours.result(), wanted.result(), plain.run(prompt, width)


def rounded_both(
    checkpoint: Path, schemes: Mapping[str, Scheme], width: int
) -> tuple[Logits, Logits]:
    """[LENGTH, V] logits of w8a8 weights on one device: ours, and by products of floats."""
    model = Model(checkpoint, "1", schemes)
    ours = model.run(LENGTH, width)
    with pytest.MonkeyPatch.context() as patch:
        for module in (linear, experts):
            patch.setattr(module, "contract", _by_definition)
        patch.setattr(experts, "contract_each", _each_by_definition)
        return ours, Model(checkpoint, "1", schemes).run(LENGTH, width)


def _by_definition(x: jax.Array, weight: QArray, tokens: int = 1) -> jax.Array:
    """[R, W] times [F..., W] -> [R, F].

    The codes are multiplied as whole numbers in float32, which is exact below 2^24: a tie that
    falls to the other side than ours would be a difference of its own.
    """
    rows, flat = x.reshape(x.shape[0], -1), weight.values.reshape(weight.scale.size, -1)
    scale = weight.scale.reshape(1, -1)
    assert weight.zero is None
    if weight.kind != "w8a8":
        return (rows @ (flat.astype(jnp.float32) * scale.T).T).astype(jnp.float32)
    most = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    step = jnp.where(most > 0, most / 127, 1.0)
    return (jnp.round(rows / step) @ flat.astype(jnp.float32).T) * step * scale


def _each_by_definition(x: jax.Array, weight: QArray) -> jax.Array:
    """[X, E, F] times [E, D, F] -> [E, X, D]."""
    one = [
        _by_definition(x[:, at], jax.tree.map(lambda part, at=at: part[at], weight))
        for at in range(x.shape[1])
    ]
    return jnp.stack(one)
