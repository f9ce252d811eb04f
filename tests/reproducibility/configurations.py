"""The tiny models that the suite serves: each is compiled once for all of its tests.

Blocks of 16 columns: a CPU sums fewer in an order that depends on how many rows there are.
"""

import dataclasses
from collections.abc import Callable

from tpuinfer.testing.tiny import ODD, TINY, Tiny, tiny

_TWO_CLASSES = "6x32,2x96"
_THIN = dataclasses.replace(TINY, layers=1)
_WINDOW = dataclasses.replace(_THIN, windows=(20,))
_MIXED_LAYERS = dataclasses.replace(TINY, windows=(0, 20))


def window() -> Tiny:
    """One sliding-window layer; prefills of 1 and 4 rows, decodes of 4 and 8."""
    return tiny(_WINDOW, slots=_TWO_CLASSES, buckets=(16,), rows=(1, 4), narrow=(4,), block=16)


def bfloat16() -> Tiny:
    """A global and a sliding-window layer; decodes of 4 and 8."""
    return tiny(
        _MIXED_LAYERS,
        slots=_TWO_CLASSES,
        dtype="bfloat16",
        buckets=(16,),
        narrow=(4,),
        block=16,
    )


def rolling() -> Tiny:
    """Rows go on past their rings, with two sinks; two widths of prefill."""
    return tiny(_MIXED_LAYERS, slots="6x32,2x48", buckets=(16, 32), sinks=2, block=16)


def data_and_model() -> Tiny:
    return tiny(_THIN, "2x4", slots=_TWO_CLASSES, buckets=(16,), block=16)


def model_alone() -> Tiny:
    """Nothing divides by 8: 3 heads, 97 tokens, an embed of 36."""
    odd = dataclasses.replace(ODD, layers=1)
    return tiny(odd, "8", slots=_TWO_CLASSES, buckets=(16,), block=16)


def four_devices() -> Tiny:
    """Everything is cut over a model axis of 4, as for two processes of two devices each."""
    return tiny(_THIN, "4", slots="12x32,4x96", buckets=(16,), block=16)


def quantised() -> Tiny:
    """Weights and a ring in int8, the MLP with activations of 8 bits; otherwise as `window`."""
    return tiny(
        _WINDOW,
        slots=_TWO_CLASSES,
        buckets=(16,),
        rows=(1, 4),
        narrow=(4,),
        block=16,
        quant="int8,mlp=w8a8",
        ring="int8",
    )


def groups() -> Tiny:
    """Weights in 4 bits with a scale a group, activations in bfloat16, a ring in fp8."""
    return tiny(
        _MIXED_LAYERS,
        slots=_TWO_CLASSES,
        dtype="bfloat16",
        buckets=(16,),
        narrow=(4,),
        block=16,
        quant="int4:16,embedding=fp8",
        ring="fp8",
    )


def quantised_on_a_mesh() -> Tiny:
    """Codes of every 8-bit kind, cut over four devices; a ring in int8."""
    return tiny(
        _THIN,
        "2x4",
        slots=_TWO_CLASSES,
        buckets=(16,),
        block=16,
        quant="int8,layers.*.mlp.up_proj=fp8,layers.*.self_attn=w8a8",
        ring="int8",
    )


def rows_together() -> Tiny:
    """Weights cut along embed too: the rows of both data shards come together for each product."""
    return tiny(_THIN, "2x4", slots=_TWO_CLASSES, buckets=(16,), block=16, rules="2d")


def rings_cut_along_their_length() -> Tiny:
    """Each of four devices attends over a quarter of every ring; a global and a windowed layer."""
    return tiny(_MIXED_LAYERS, "2x4", slots="6x64,2x128", buckets=(16,), block=16, rules="context")


MODELS: dict[str, Callable[[], Tiny]] = {
    "1, window": window,
    "1, bfloat16": bfloat16,
    "1, rolling": rolling,
    "2x4": data_and_model,
    "8": model_alone,
    "1, int8": quantised,
    "1, int4": groups,
    "2x4, int8": quantised_on_a_mesh,
    "2d on 2x4": rows_together,
    "context on 2x4": rings_cut_along_their_length,
}
