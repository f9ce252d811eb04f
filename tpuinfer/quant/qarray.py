"""A quantised weight as a value: it takes an array's place in `params`."""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

Kind = Literal["int8", "w8a8", "int4", "fp8"]

FP8_MAX = 448.0
"""The largest float8_e4m3fn (arXiv:2209.05433)."""

DTYPES: dict[Kind, Any] = {
    "int8": jnp.int8,
    "w8a8": jnp.int8,
    "int4": jnp.int4,
    "fp8": jnp.float8_e4m3fn,
}
"""What codes are kept as; 4-bit ones as two in a byte where a platform asks for it."""


@struct.dataclass
class QArray:
    """A weight [out..., in...] as codes and scales: weight = values * scale + zero.

    Attributes:
      values: [out..., in...], or [out..., G, S] where each S neighbouring inputs are a group, or
        [out..., G, S / 2] uint8 of 4-bit codes packed in pairs.
      scale: [out...] or [out..., G] float32.
      zero: shaped as scale, float32, what a code of 0 stands for; None = 0.
      kind: how it multiplies: "w8a8" rounds activations too, to 8 bits with one scale a row.
      grouped: which of the two forms it has.
    """

    values: jax.Array
    scale: jax.Array
    zero: jax.Array | None = None
    kind: Kind = struct.field(pytree_node=False, default="int8")
    grouped: bool = struct.field(pytree_node=False, default=False)

    @property
    def group(self) -> int | None:
        """Inputs that share a scale; None = all of a row."""
        return self.values.shape[-1] * self._in_one if self.grouped else None

    @property
    def is_packed(self) -> bool:
        """Whether two 4-bit codes share a byte."""
        return self.kind == "int4" and jnp.dtype(self.values.dtype) == jnp.dtype(jnp.uint8)

    @property
    def _in_one(self) -> int:
        """Codes in an element of values."""
        return 2 if self.is_packed else 1

    @property
    def outs(self) -> int:
        """How many dimensions it makes."""
        return self.scale.ndim - self.grouped

    @property
    def shape(self) -> tuple[int, ...]:
        """[out..., width]: as the weight, what it contracts in one dimension."""
        outs = self.values.shape[: self.outs]
        return (*outs, math.prod(self.values.shape[self.outs :]) * self._in_one)

    @property
    def nbytes(self) -> int:
        """Of codes, scales and zeros together, in bytes; two 4-bit codes are one."""
        parts = (self.values, self.scale, self.zero)
        return sum(bytes_of(part.shape, part.dtype) for part in parts if part is not None)

    def flat(self) -> "QArray":
        """The same with one dimension made: values [F, W] or [F, G, S], scale [F] or [F, G]."""
        rows = math.prod(self.shape[:-1])
        width = self.values.shape[self.outs :] if self.grouped else (-1,)
        scales = (rows, self.scale.shape[-1]) if self.grouped else (rows,)
        return dataclasses.replace(
            self,
            values=self.values.reshape(rows, *width),
            scale=self.scale.reshape(scales),
            zero=None if self.zero is None else self.zero.reshape(scales),
        )

    def packed(self) -> "QArray":
        """The same with 4-bit codes in pairs."""
        if self.kind != "int4" or self.is_packed:
            return self
        return dataclasses.replace(self, values=pack(self.values))

    def unpacked(self) -> "QArray":
        """Undo `packed`."""
        return dataclasses.replace(self, values=unpack(self.values)) if self.is_packed else self


def pack(values: Any) -> Any:
    """[..., S] int4 -> [..., S / 2] uint8, the first of two in the low half: as files keep them.

    Of arrays of jax or of numpy; what comes back is of the same.
    """
    pairs = values.astype(jnp.int8).reshape(*values.shape[:-1], -1, 2).astype(jnp.uint8)
    return (pairs[..., 0] & 15) | (pairs[..., 1] << 4)


def unpack(packed: jax.Array) -> jax.Array:
    """Undo `pack`."""
    low = (packed << 4).astype(jnp.int8) >> 4
    high = packed.astype(jnp.int8) >> 4
    both = jnp.stack((low, high), axis=-1)
    return both.reshape(*packed.shape[:-1], -1).astype(jnp.int4)


def bits_of(dtype: Any) -> int:
    """Bits of an element; numpy counts whole bytes."""
    kind = jnp.dtype(dtype)
    return 4 if kind in (jnp.dtype(jnp.int4), jnp.dtype(jnp.uint4)) else 8 * kind.itemsize


def bytes_of(shape: tuple[int, ...], dtype: Any) -> int:
    """Bytes of an array on a device, where two 4-bit elements share one."""
    return -(-math.prod(shape) * bits_of(dtype) // 8)


def dequantise(weight: QArray) -> jax.Array:
    """The weight that the codes stand for, [out..., width] float32."""
    weight = weight.unpacked()
    lead = weight.values.shape[: weight.outs]
    values = weight.values if weight.grouped else weight.values.reshape(*lead, -1)
    whole = values.astype(jnp.float32) * weight.scale[..., None]
    if weight.zero is not None:
        whole = whole + weight.zero[..., None]
    return whole.reshape(weight.shape)
