"""The Llama blueprint, prompt in chunks and then token by token, against the numpy reference."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpuinfer.cache.held import Rows
from tpuinfer.cache.ring import RingAttention
from tpuinfer.models.blueprint import bind
from tpuinfer.programs.buckets import cut
from tpuinfer.testing import reference
from tpuinfer.testing.tiny import BLOCK, BUCKETS, ODD, TINY, tiny

SLOTS, SLOT, LENGTH, DECODED = 2, 1, 64, 3
MODEL = functools.partial(tiny, slots=f"{SLOTS}x{LENGTH}")
WINDOWS = dataclasses.replace(TINY, windows=(6, 20))
TOKENS = np.random.default_rng(4).integers(0, 97, LENGTH).tolist()


@functools.cache
def forward(config, mode):
    """(params, rings, tokens [R, T], rows) -> logits of every token [R * T, V], and the rings."""
    layout, blueprint = MODEL(config).layout, MODEL(config).blueprint
    attend = RingAttention(layout, BLOCK, mode)

    @jax.jit
    def run(params, rings, tokens, rows):
        model = bind(blueprint, params)
        x, rings = model.hidden(tokens, rings, rows, attend, layout, jnp.dtype("float32"))
        return model.logits(x.reshape(-1, config.embed), layout), rings

    return run


def in_chunks(config, prompt_length):
    """Logits of TOKENS: the prompt through prefill, `DECODED` more through decode, in slot 1."""
    params = MODEL(config).params
    rings = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), MODEL(config).state.rings)
    found = []
    for chunk in cut(prompt_length, BUCKETS[-1], BUCKETS):
        tokens = np.zeros((1, chunk.bucket), np.int32)
        tokens[0, : chunk.size] = TOKENS[chunk.start : chunk.start + chunk.size]
        rows = Rows(*(np.array([n], np.int32) for n in (SLOT, chunk.start, chunk.size)))
        logits, rings = forward(config, "prefill")(params, rings, tokens, rows)
        found.append(np.asarray(logits)[: chunk.size])
    for position in range(prompt_length, prompt_length + DECODED):
        tokens = np.array([[0], [TOKENS[position]]], np.int32)
        rows = Rows(*(np.array(n, np.int32) for n in ([0, 1], [0, position], [0, 1])))
        logits, rings = forward(config, "decode")(params, rings, tokens, rows)
        found.append(np.asarray(logits)[SLOT:])
    return np.concatenate(found)


@functools.cache
def expected(config):
    return reference.logits(config, MODEL(config).weights, TOKENS)


@pytest.mark.parametrize(
    ("config", "prompt_length"),
    [
        *((TINY, n) for n in (1, 7, 8, 9, 15, 16, 17, 48, 51)),
        (ODD, 36),
        (WINDOWS, 9),
        (WINDOWS, 51),
    ],
)
def test_logits_are_those_of_the_reference(config, prompt_length):
    """At one token, around a bucket, around a chunk, over several chunks, and beyond windows."""
    result = in_chunks(config, prompt_length)
    assert len(result) == prompt_length + DECODED
    np.testing.assert_allclose(result, expected(config)[: len(result)], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [TINY, ODD], ids=["gqa", "tied"])
def test_the_reference_itself_depends_on_what_it_should(config):
    """Causal, aware of order, and not of what comes later: else it would prove little."""
    weights = MODEL(config).weights
    whole = expected(config)
    np.testing.assert_allclose(reference.logits(config, weights, TOKENS[:9]), whole[:9], atol=1e-12)
    windows = dataclasses.replace(config, windows=(0, 5))
    within = reference.logits(windows, weights, TOKENS[:9])
    np.testing.assert_allclose(within[:5], whole[:5], atol=1e-12)
    assert np.abs(within[5:] - whole[5:9]).max(axis=-1).min() > 1e-3
    swapped = [TOKENS[1], TOKENS[0], *TOKENS[2:9]]
    assert np.abs(reference.logits(config, weights, swapped)[8] - whole[8]).max() > 1e-2


def test_the_reference_forgets_all_but_its_newest_tokens_and_the_sinks():
    """What lies between changes nothing; the sinks do, from where the ring ends."""
    one_layer = dataclasses.replace(TINY, layers=1)
    weights, ring = tiny(TINY).weights, reference.Ring(8, 2)

    def last(tokens, ring=ring):
        return reference.logits(one_layer, weights, tokens, ring)[-1]

    tokens = TOKENS[:20]
    np.testing.assert_array_equal(last(tokens[:8]), last(tokens[:8], None))
    assert np.abs(last(tokens[:9]) - last(tokens[:9], None)).max() > 1e-3
    between, sink, newest = ([*tokens] for _ in range(3))
    between[2:14] = TOKENS[30:42]
    sink[1] += 1
    newest[14] += 1
    np.testing.assert_array_equal(last(between), last(tokens))
    for changed in (sink, newest):
        assert np.abs(last(changed) - last(tokens)).max() > 1e-3
    later = TOKENS[:2] + TOKENS[40:43] + tokens[2:]
    np.testing.assert_allclose(last(later), last(tokens), atol=1e-9)


def test_logits_of_a_mesh_are_whole_on_every_device():
    """The head is cut along vocab; what leaves it is not."""
    model = tiny(TINY, "2x4")
    head = model.params["lm_head.weight"]
    assert head.sharding.shard_shape(head.shape) == (TINY.vocab // 4, TINY.embed)

    @jax.jit
    def run(params, x):
        return bind(model.blueprint, params).logits(x, model.layout)

    x = np.random.default_rng(1).standard_normal((4, TINY.embed)).astype(np.float32)
    result = run(model.params, x)
    assert {shard.data.shape for shard in result.addressable_shards} == {(2, TINY.vocab)}
    w = model.weights
    normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + TINY.norm_eps) * w["norm.weight"]
    np.testing.assert_allclose(result, normed @ w["lm_head.weight"].T, atol=1e-5)
