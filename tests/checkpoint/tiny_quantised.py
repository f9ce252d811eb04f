"""Matrices as each published method stores them, packed word by word as its layout is described.

Every packer takes integer codes, scales and zeros that it is given or draws, so that what a reader
must find is plain arithmetic: (code - zero) * scale.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

BF16 = np.dtype(ml_dtypes.bfloat16)
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
G = 8
"""The group of every grouped method here: tiny rows have 32 or 40 inputs."""

AWQ_NEIGHBOURS = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbours lies in each four bits of a word, from the lowest."""

Tensors = dict[str, np.ndarray]


class Packed(NamedTuple):
    """A matrix [N, K] as it is stored, and what it means.

    Attributes:
      tensors: end of the name, after the module's and a dot -> array.
      values: [N, K] float32, not rounded.
    """

    tensors: Tensors
    values: np.ndarray


class Method(NamedTuple):
    """A way of quantising a tiny model.

    Attributes:
      config: quantization_config.
      pack: a generator and (N, K) -> a matrix.
      scheme: what `--weights published` keeps rows of 32 and of 40 inputs by.
      dtype: of the model, as config.json states it.
      exact: that scheme holds the very values.
    """

    config: Mapping[str, Any]
    pack: Callable[[np.random.Generator, int, int], Packed]
    scheme: str
    dtype: str = "bfloat16"
    exact: bool = True


def words(codes: np.ndarray, bits: int, neighbours: tuple[int, ...] | None = None) -> np.ndarray:
    """[R, C] codes from 0 -> [R, ceil(C * bits / 32)] int32, neighbours along C."""
    each = 32 // bits
    order = neighbours or tuple(range(each))
    rows, columns = codes.shape
    out = np.zeros((rows, -(-columns // each)), np.uint32)
    for row, column in np.ndindex(rows, columns):
        place = bits * order.index(column % each)
        out[row, column // each] |= np.uint32(int(codes[row, column]) << place)
    return out.view(np.int32)


def meant(
    codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | int, group: np.ndarray | None = None
) -> np.ndarray:
    """(code - zero) * scale of [N, K] codes, [N, G] scales and zeros; group of each column."""
    if group is None:
        group = np.arange(codes.shape[1]) // (codes.shape[1] // scale.shape[1])
    zeros = np.broadcast_to(zero, scale.shape).astype(np.float32)
    found = codes.astype(np.float32) - zeros[:, group]
    return found * scale.astype(np.float32)[:, group]


def draw(
    rng: np.random.Generator, rows: int, columns: int, groups: int, bits: int, kind: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes from 0 [N, K], scales and zeros [N, groups]."""
    codes = rng.integers(0, 1 << bits, (rows, columns))
    scale = rng.uniform(0.005, 0.1, (rows, groups)).astype(kind)
    return codes, scale, rng.integers(1, 1 << bits, (rows, groups))


def gptq(
    bits: int, *, less: int = 1, sym: bool = False, shuffled: bool = False, group: int = G
) -> Callable[[np.random.Generator, int, int], Packed]:
    """GPTQ; less: what stored zeros lack; shuffled: as desc_act leaves them."""

    def pack(rng: np.random.Generator, rows: int, columns: int) -> Packed:
        wide = columns if group == -1 else group
        codes, scale, zero = draw(rng, rows, columns, columns // wide, bits, np.float16)
        if sym:
            zero = np.full_like(zero, 1 << (bits - 1))
        order = np.arange(columns) // wide
        if shuffled:
            order = rng.permutation(order)
        tensors = {
            "qweight": np.ascontiguousarray(words(codes, bits).T),
            "qzeros": words(zero.T - less, bits),
            "scales": np.ascontiguousarray(scale.T),
            "g_idx": order.astype(np.int32),
        }
        return Packed(tensors, meant(codes, scale, zero, order))

    return pack


def awq(rng: np.random.Generator, rows: int, columns: int) -> Packed:
    codes, scale, zero = draw(rng, rows, columns, columns // G, 4, np.float16)
    tensors = {
        "qweight": words(np.ascontiguousarray(codes.T), 4, AWQ_NEIGHBOURS),
        "qzeros": words(np.ascontiguousarray(zero.T), 4, AWQ_NEIGHBOURS),
        "scales": np.ascontiguousarray(scale.T),
    }
    return Packed(tensors, meant(codes, scale, zero))


def packed(
    bits: int, *, group: int = G, symmetric: bool = True
) -> Callable[[np.random.Generator, int, int], Packed]:
    """compressed-tensors' pack-quantized; zeros are packed along the rows."""

    def pack(rng: np.random.Generator, rows: int, columns: int) -> Packed:
        groups = 1 if group == -1 else columns // group
        codes, scale, zero = draw(rng, rows, columns, groups, bits, BF16)
        tensors = {
            "weight_packed": words(codes, bits),
            "weight_scale": scale,
            "weight_shape": np.array([rows, columns], np.int64),
        }
        if symmetric:
            zero = np.full_like(zero, 1 << (bits - 1))
        else:
            along_rows = words(np.ascontiguousarray(zero.T), bits)
            tensors["weight_zero_point"] = np.ascontiguousarray(along_rows.T)
        return Packed(tensors, meant(codes, scale, zero))

    return pack


def int8(
    groups: Callable[[int], int], *, symmetric: bool = True
) -> Callable[[np.random.Generator, int, int], Packed]:
    """Plain int8; groups: of so many columns."""

    def pack(rng: np.random.Generator, rows: int, columns: int) -> Packed:
        codes, scale, zero = draw(rng, rows, columns, groups(columns), 8, BF16)
        tensors = {"weight": (codes - 128).astype(np.int8), "weight_scale": scale}
        if symmetric:
            zero = np.full_like(zero, 128)
        else:
            tensors["weight_zero_point"] = (zero - 128).astype(np.int8)
        return Packed(tensors, meant(codes, scale, zero))

    return pack


def fp8(
    name: str, shape: Callable[[int, int], tuple[int, ...]], kind: Any = FP8
) -> Callable[[np.random.Generator, int, int], Packed]:
    """Float8; name: of the scales; shape: of theirs, which all divide the matrix."""

    def pack(rng: np.random.Generator, rows: int, columns: int) -> Packed:
        weight = rng.standard_normal((rows, columns)).astype(kind)
        scale = rng.uniform(0.1, 3, shape(rows, columns)).astype(BF16)
        down, across = (*scale.shape, 1, 1)[:2]
        spread = np.ones((rows // down, columns // across), np.float32)
        spread = np.kron(scale.astype(np.float32).reshape(down, across), spread)
        return Packed({"weight": weight, name: scale}, weight.astype(np.float32) * spread)

    return pack


def compressed(form: str, *, weights: Mapping[str, Any], inputs: Any = None) -> dict[str, Any]:
    """The quantization_config that llm-compressor writes, with one group."""
    group = {"targets": ["Linear"], "weights": dict(weights), "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
    }


INT = {"type": "int", "symmetric": True, "dynamic": False}
GROUPED = {"strategy": "group", "group_size": G}
CHANNEL = {"strategy": "channel", "group_size": None}
FLOAT = {"type": "float", "num_bits": 8, "symmetric": True, "dynamic": False}
BY_TOKEN = {"type": "int", "num_bits": 8, "strategy": "token", "dynamic": True, "symmetric": True}
GPTQ = {"quant_method": "gptq", "group_size": G, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": G, "version": "gemm", "zero_point": True}

METHODS: dict[str, Method] = {
    "awq": Method(AWQ, awq, "int4z:8", "float16"),
    "gptq": Method(GPTQ | {"bits": 4}, gptq(4), "int4z:8", "float16"),
    "gptq-sym": Method(GPTQ | {"bits": 4, "sym": True}, gptq(4, sym=True), "int4:8", "float16"),
    "gptq-v2": Method(
        GPTQ | {"bits": 4, "checkpoint_format": "gptq_v2"}, gptq(4, less=0), "int4z:8", "float16"
    ),
    "gptq-desc-act": Method(
        GPTQ | {"bits": 4, "desc_act": True}, gptq(4, shuffled=True), "int8:8", exact=False
    ),
    "gptq-8": Method(GPTQ | {"bits": 8, "sym": True}, gptq(8, sym=True), "int8:8", "float16"),
    "gptq-8-rows": Method(
        GPTQ | {"bits": 8, "sym": True, "group_size": -1}, gptq(8, sym=True, group=-1), "int8"
    ),
    "gptq-8-zeros": Method(GPTQ | {"bits": 8}, gptq(8), "int8:8", exact=False),
    "w4a16": Method(
        compressed("pack-quantized", weights=INT | GROUPED | {"num_bits": 4}), packed(4), "int4:8"
    ),
    "w4a16-zeros": Method(
        compressed("pack-quantized", weights=INT | GROUPED | {"num_bits": 4, "symmetric": False}),
        packed(4, symmetric=False),
        "int4z:8",
    ),
    "w4a16-rows": Method(
        compressed("pack-quantized", weights=INT | CHANNEL | {"num_bits": 4}),
        packed(4, group=-1),
        "int4:32,int4:8",
    ),
    "w8a16-packed": Method(
        compressed("pack-quantized", weights=INT | CHANNEL | {"num_bits": 8}),
        packed(8, group=-1),
        "int8",
    ),
    "w8a16": Method(
        compressed("naive-quantized", weights=INT | GROUPED | {"num_bits": 8}),
        int8(lambda columns: columns // G),
        "int8:8",
    ),
    "w8a8": Method(
        compressed("int-quantized", weights=INT | CHANNEL | {"num_bits": 8}, inputs=BY_TOKEN),
        int8(lambda _: 1),
        "w8a8",
    ),
    "w8a8-zeros": Method(
        compressed("int-quantized", weights=INT | CHANNEL | {"num_bits": 8, "symmetric": False}),
        int8(lambda _: 1, symmetric=False),
        "int8",
        exact=False,
    ),
    "fp8-rows": Method(
        compressed("float-quantized", weights=FLOAT | CHANNEL),
        fp8("weight_scale", lambda rows, _: (rows, 1)),
        "fp8",
    ),
    "fp8-blocks": Method(
        compressed(
            "float-quantized", weights=FLOAT | {"strategy": "block", "block_structure": [8, 8]}
        ),
        fp8("weight_scale", lambda rows, columns: (rows // 8, columns // 8)),
        "fp8:8",
    ),
    "fp8-e5m2": Method(
        compressed("float-quantized", weights=FLOAT | {"strategy": "tensor"}),
        fp8("weight_scale", lambda *_: (1,), ml_dtypes.float8_e5m2),
        "fp8",
        exact=False,
    ),
    "deepseek": Method(
        {"quant_method": "fp8", "weight_block_size": [8, 8]},
        fp8("weight_scale_inv", lambda rows, columns: (rows // 8, columns // 8)),
        "fp8:8",
    ),
    "mistral": Method(
        {"quant_method": "fp8", "weight_block_size": None, "activation_scheme": "dynamic"},
        fp8("weight_scale_inv", lambda *_: ()),
        "fp8",
    ),
    "autofp8": Method(
        {"quant_method": "fp8", "activation_scheme": "static"},
        fp8("weight_scale", lambda *_: (1,)),
        "fp8",
    ),
}


def quantised(
    values: Mapping[str, np.ndarray], method: Method, seed: int = 0
) -> tuple[Tensors, Tensors]:
    """A model's tensors with other matrices in place of X_proj.weight: (stored, what they mean)."""
    rng = np.random.default_rng(seed)
    stored, means = dict(values), {}
    for name, array in values.items():
        if name.endswith("_proj.weight"):
            module = name.removesuffix("weight")
            made = method.pack(rng, *array.shape)
            del stored[name]
            stored |= {module + end: part for end, part in made.tensors.items()}
            means[name] = made.values
    return stored, means
