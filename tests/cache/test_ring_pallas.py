"""Layers whose rings kernels read, interpreted: as XLA reads them, in every mode."""

import dataclasses
import functools
import logging
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpuinfer.cache import by_kernel
from tpuinfer.cache.held import Ring, Rows, horizons
from tpuinfer.cache.ring import Asked, RingAttention
from tpuinfer.cache.spec import RING_AXES
from tpuinfer.config import EngineConfig, SlotClass
from tpuinfer.engine.plan import plan_of
from tpuinfer.model_config import Experts, ModelConfig
from tpuinfer.models.blueprint import bind
from tpuinfer.platform import platform_settings
from tpuinfer.programs.compile import compile_programs
from tpuinfer.quant.rows import as_stored, round_rows
from tpuinfer.sharding.layout import resolve
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.rules import ShardingRules
from tpuinfer.testing.drive import run, works
from tpuinfer.testing.tiny import TINY, tiny

KV, HEADS, HEAD, BLOCK, SLOTS = 4, 8, 8, 128, 4
BY = ("reference", "interpret")
SOON = (("xla_backend_optimization_level", 0),)
"""Compiled sooner so: interpreted kernels are large programs."""


@functools.cache
def laid_out(mesh):
    sizes = {"batch": SLOTS * 2, "heads": HEADS, "kv_heads": KV}
    return resolve(ShardingRules(), build_mesh(parse_mesh(mesh)), sizes)


@functools.cache
def program(mesh, mode, by):
    attend = RingAttention(laid_out(mesh), BLOCK, mode, by)

    @functools.partial(jax.jit, compiler_options=dict(SOON))
    def run(asked, rings, rows):
        return attend(asked, rings, rows)

    return run


def filled(mesh, kind):
    """Two classes of slots, one with a window, both of rings that lie turned on a TPU.

    They lie on the devices as a call leaves them: or the second call would be compiled anew.
    """
    made, chance = [], np.random.default_rng(5)
    for length, window in ((128, None), (256, 150)):
        size = (SLOTS, KV, length, HEAD)
        rows = [round_rows(jnp.asarray(chance.standard_normal(size)), kind) for _ in range(2)]
        arrays, scales = [as_stored(one.values) for one in rows], [one.scale for one in rows]
        made.append(Ring(*arrays, window, 0, *scales, "float32"))
    return jax.tree.map(
        lambda part: jax.device_put(part, laid_out(mesh).sharding(RING_AXES[: part.ndim])),
        tuple(made),
    )


def step(mesh, mode, rings, where, seed, width=1):
    """One call by XLA's attention and one by the kernels: outputs and rings are alike."""
    chance = np.random.default_rng(seed)
    count = len(where[0])
    q, k, v = (
        chance.standard_normal((count, width, heads, HEAD)).astype(np.float32)
        for heads in (HEADS, KV, KV)
    )
    rows = Rows(*(np.array(one, np.int32) for one in where))
    found = [program(mesh, mode, by)(Asked(q, k, v), rings, rows) for by in BY]
    outs, made = zip(*found, strict=True)
    real = np.arange(width)[None, :] < rows.length[:, None]
    ours, theirs = (np.asarray(out)[real] for out in outs)
    assert (ours != 0).any()
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)
    jax.tree.map(np.testing.assert_array_equal, *made)
    return made[0]


def test_a_chunk_then_a_step_of_all_slots():
    """In full rings of both classes; a row wraps, one idles. Slots count within a data shard."""
    last = SLOTS - 1
    where = [one * 2 for one in ([1, last, 0], [120, 300, 0], [16, 9, 0])]
    rings = step("2x4", "prefill", filled("2x4", "int8"), where, 1, 16)
    start, live = np.zeros((2, SLOTS), int)
    start[[1, last]], live[[1, last]] = (136, 309), 1
    step("2x4", "decode", rings, [[*one] * 2 for one in (range(SLOTS), start, live)], 3)


def test_a_step_of_a_few_slots():
    """Of both classes, each with a row that has wrapped; the third idles."""
    step("1", "narrow", filled("1", "float32"), ([7, 1, 0], [309, 136, 0], [1, 1, 0]), 2)


GPT_OSS = ModelConfig(
    family="gpt_oss",
    vocab=97,
    embed=32,
    mlp=24,
    layers=2,
    heads=8,
    kv_heads=4,
    head_dim=8,
    context=1024,
    windows=(20, 0),
    eos_ids=(0,),
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    experts=Experts(count=4, active=2, mlp=24),
)
ROLLS = dataclasses.replace(TINY, layers=1)
GEMMA = dataclasses.replace(TINY, family="gemma3", windows=(20, 0))


def model_of(config, mesh="1", attention="auto", **others):
    return tiny(
        config,
        mesh,
        slots="2x64" if mesh == "1" else "4x64",
        buckets=(16,),
        block=16,
        attention=attention,
        **others,
    )


def logits_of(model, runs, tokens, steps, slot):
    """[R, T, V] by the layers alone, a chunk or a token at a time, in rings of NaN.

    runs: `layers` by mode. steps: of each call the mode, and how many tokens of each row it takes.
    """
    found, shards, start = [], len(tokens), 0
    rings = jax.tree.map(
        lambda x: jax.device_put(np.full(x.shape, np.nan, x.dtype), x.sharding), model.state.rings
    )
    for mode, size in steps:
        given = np.zeros((shards, 16 if mode == "prefill" else 1), np.int32)
        given[:, :size] = tokens[:, start : start + size]
        rows = Rows(*(np.full(shards, one, np.int32) for one in (slot, start, size)))
        out, rings = runs[mode](model.params, rings, given, rows)
        found.append(np.asarray(out)[:, :size])
        start += size
    assert start == tokens.shape[1]
    return np.concatenate(found, axis=1)


def layers(model, mode, by):
    """(params, rings, tokens [R, T], rows) -> logits [R, T, V], and the rings."""
    layout = model.layout
    attend = RingAttention(layout, 16, mode, by)

    @functools.partial(jax.jit, compiler_options=dict(SOON))
    def run(params, rings, tokens, rows):
        horizon = horizons(rings, rows.slot, layout.shards("batch"))
        rows = dataclasses.replace(rows, horizon=horizon)
        bound = bind(model.blueprint, params)
        x, rings = bound.hidden(tokens, rings, rows, attend, layout, jnp.dtype("float32"))
        logits = bound.logits(x.reshape(tokens.size, -1), layout)
        return logits.reshape(*tokens.shape, -1), rings

    return run


@pytest.mark.parametrize(
    ("config", "mesh", "steps"),
    [
        (GEMMA, "1", [("prefill", 16), ("prefill", 16), ("prefill", 8), ("narrow", 1)]),
        (GPT_OSS, "2x4", [("prefill", 16), ("prefill", 16), ("prefill", 8)]),
    ],
    ids=["gemma3", "gpt_oss"],
)
def test_a_model_gives_the_same_logits(config, mesh, steps):
    """Chunks, and a token more, in a slot of each data shard; one window turns."""
    model = model_of(config, mesh)
    shape = (model.layout.shards("batch"), sum(size for _, size in steps))
    tokens = np.random.default_rng(2).integers(1, 90, shape).astype(np.int32)
    ours, theirs = (
        logits_of(model, {mode: layers(model, mode, by) for mode in dict(steps)}, tokens, steps, 1)
        for by in BY
    )
    assert np.ptp(ours, axis=1).min() > 0
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    np.testing.assert_array_equal(theirs.argmax(axis=-1), ours.argmax(axis=-1))


def test_an_engines_programs_say_what_the_layers_do_by_xla():
    """By `--attention`, with sinks; one of the rows rolls past its ring."""
    model = model_of(ROLLS, attention="pallas", sinks=4)
    specs = [dataclasses.replace(spec, options=SOON) for spec in model.specs.values()]
    runner, chance = model.runner(programs=compile_programs(specs)), random.Random(1)
    prompts = [[chance.randrange(1, 90) for _ in range(length)] for length in (7, 90)]
    rows = [works(runner, prompt, slot=at, limit=6) for at, prompt in enumerate(prompts)]
    by_xla = {"prefill": layers(model, "prefill", "reference")}
    for prompt, answer in zip(prompts, run(runner, *rows, steps=4), strict=True):
        assert len(answer.tokens) > 1
        tokens = np.array([prompt + answer.tokens], np.int32)
        chunks = [("prefill", min(16, tokens.size - at)) for at in range(0, tokens.size, 16)]
        scores = logits_of(model, by_xla, tokens, chunks, 1)[0, len(prompt) - 1 : -1]
        assert scores.argmax(axis=-1).tolist() == answer.tokens
        logprobs = np.take_along_axis(
            np.asarray(jax.nn.log_softmax(scores)), np.array(answer.tokens)[:, None], axis=1
        )
        np.testing.assert_allclose(answer.logprobs, logprobs[:, 0], atol=1e-5)


def test_what_the_kernels_cannot_take_is_read_by_xla_and_said_once(caplog):
    odd = Ring(np.zeros((2, 1, 16, 5), np.float32), np.zeros((2, 1, 16, 5), np.float32))
    by_kernel._tell.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert by_kernel.kernel_for([odd], 8, "pallas") is None
        assert by_kernel.kernel_for([odd], 8, "reference") is None
    assert caplog.messages == [
        "attention: no Pallas kernel for heads of 5 numbers, which 8 does not divide; "
        "XLA's own is used"
    ]


@pytest.mark.parametrize("platform", ["gpu", "a new one"])
def test_a_platform_without_kernels_says_once_that_it_has_none(platform, caplog):
    engine = EngineConfig((SlotClass(2, 64),), attention="pallas")
    with caplog.at_level(logging.INFO):
        plan = plan_of(TINY, engine=engine, settings=platform_settings(platform))
    assert plan.settings.attention == "reference"
    assert [one for one in caplog.messages if "attention" in one] == [
        "attention is pallas: the kernels are for TPUs; XLA's own attention is used"
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        plan_of(TINY, engine=dataclasses.replace(engine, attention="auto"))
        plan_of(TINY, engine=engine)  # of a CPU: they are interpreted
    assert not [one for one in caplog.messages if "attention" in one]
