"""Rings of codes in compiled programs: donated, written in place, and never copied or widened."""

import dataclasses
import math
import re

import jax
import pytest
from ring_copies import ring_copies

from tpuinfer.testing.tiny import TINY, tiny

MODEL = dataclasses.replace(TINY, windows=(40, 0))

MODELS = {
    "1 int8": lambda: tiny(
        MODEL, slots="6x32,8x80", buckets=(64,), narrow=(4,), sinks=4, block=16, ring="int8"
    ),
    "1 fp8": lambda: tiny(
        MODEL, slots="6x32,8x80", buckets=(64,), block=16, ring="fp8", dtype="bfloat16"
    ),
    "2x4 int8": lambda: tiny(MODEL, "2x4", slots="6x32,8x80", buckets=(64,), block=16, ring="int8"),
}

PROGRAMS = pytest.mark.parametrize(
    ("model", "name"),
    [(model, name) for model in MODELS for name in ("prefill_1x64", "decode")]
    + [("1 int8", "decode_4")],
)


def local_size(array):
    return math.prod(array.sharding.shard_shape(array.shape))


def parts(model):
    """Elements of one device's part of each array of codes."""
    return {local_size(array) for array in jax.tree.leaves(model.state.rings) if array.ndim == 4}


def scales_made(hlo, model):
    """Instructions that make scales anew: by their shape, or all in a row.

    Scores of a block may be as many as scales, but are of other dimensions.
    """
    shapes = {
        array.sharding.shard_shape(array.shape)
        for array in jax.tree.leaves(model.state.rings)
        if array.ndim == 3
    }
    dims = {",".join(map(str, shape)) for shape in shapes} | {str(math.prod(s)) for s in shapes}
    of_scales = re.compile(rf"= f32\[({'|'.join(sorted(dims))})\]")
    lines = "\n".join(line for line in hlo.splitlines() if of_scales.search(line))
    return [name for shape in shapes for name in ring_copies(lines, math.prod(shape))]


@pytest.mark.parametrize("model", MODELS)
def test_codes_and_scales_are_what_is_looked_for(model):
    """Both kinds, and no weight is as large as one of them."""
    model = MODELS[model]()
    ranks = [array.ndim for array in jax.tree.leaves(model.state.rings)]
    assert ranks.count(4) == ranks.count(3) > 0
    weights = {local_size(weight) for weight in model.params.values()}
    assert not weights & parts(model)


@PROGRAMS
def test_neither_codes_nor_scales_are_copied(model, name):
    model = MODELS[model]()
    hlo = model.programs[name].call.as_text()
    assert [copy for size in parts(model) for copy in ring_copies(hlo, size)] == []
    assert scales_made(hlo, model) == []


def test_scales_that_are_copied_are_seen():
    model = MODELS["1 int8"]()
    line = "  %copy.1 = f32[6,8,32]{2,1,0} copy(%p)"
    assert scales_made(line, model) == ["copy copy.1"]
    assert scales_made(line.replace("6,8,32", "1536"), model) == ["copy copy.1"]
    assert scales_made(line.replace("6,8,32", "6,8,2,16"), model) == []


@PROGRAMS
def test_the_state_is_updated_in_place(model, name):
    """Scales too: all that is donated comes back where it lay."""
    model = MODELS[model]()
    leaves = jax.tree.leaves(model.state)
    size = sum(local_size(leaf) * leaf.dtype.itemsize for leaf in leaves)
    rings = sum(
        local_size(leaf) * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.state.rings)
    )
    assert model.programs[name].entry.alias_bytes >= size > rings
