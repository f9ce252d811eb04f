"""The Llama blueprint, prompt in chunks and then token by token, against the numpy reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpuinfer.cache.ring import Ring, RingAttention, Rows
from tpuinfer.models.blueprint import bind
from tpuinfer.programs.buckets import cut
from tpuinfer.testing import reference
from tpuinfer.testing.tiny import BLOCK, BUCKETS, ODD, TINY, tiny

SLOTS, SLOT, LENGTH, DECODED = 2, 1, 64, 3
TOKENS = np.random.default_rng(4).integers(0, 97, LENGTH).tolist()


@functools.cache
def forward(config, decode):
    """(params, rings, tokens [R, T], rows) -> logits of every token [R * T, V], and the rings."""
    layout = tiny(config, slots=SLOTS).layout
    blueprint = tiny(config, slots=SLOTS).blueprint
    attend = RingAttention(layout, BLOCK, identity=decode)

    @jax.jit
    def run(params, rings, tokens, rows):
        model = bind(blueprint, params)
        x, rings = model.hidden(tokens, rings, rows, attend, layout, jnp.dtype("float32"))
        return model.logits(x.reshape(-1, config.embed), layout), rings

    return run


def in_chunks(config, prompt_length):
    """Logits of TOKENS: the prompt through prefill, `DECODED` more through decode, in slot 1."""
    params = tiny(config, slots=SLOTS).params
    stale = np.full((SLOTS, config.kv_heads, LENGTH, config.head_dim), np.nan, np.float32)
    rings = (Ring(stale, stale),) * config.layers
    found = []
    for chunk in cut(prompt_length, BUCKETS[-1], BUCKETS):
        tokens = np.zeros((1, chunk.bucket), np.int32)
        tokens[0, : chunk.size] = TOKENS[chunk.start : chunk.start + chunk.size]
        rows = Rows(*(np.array([n], np.int32) for n in (SLOT, chunk.start, chunk.size)))
        logits, rings = forward(config, False)(params, rings, tokens, rows)
        found.append(np.asarray(logits)[: chunk.size])
    for position in range(prompt_length, prompt_length + DECODED):
        tokens = np.array([[0], [TOKENS[position]]], np.int32)
        rows = Rows(*(np.array(n, np.int32) for n in ([0, 1], [0, position], [0, 1])))
        logits, rings = forward(config, True)(params, rings, tokens, rows)
        found.append(np.asarray(logits)[SLOT:])
    return np.concatenate(found)


@functools.cache
def expected(config):
    return reference.logits(config, tiny(config, slots=SLOTS).weights, TOKENS)


@pytest.mark.parametrize(
    ("config", "prompt_length"),
    [*((TINY, n) for n in (1, 3, 4, 5, 15, 16, 17, 48, 51)), (ODD, 36)],
)
def test_logits_are_those_of_the_reference(config, prompt_length):
    """At one token, around a bucket, around a chunk, and over several chunks."""
    result = in_chunks(config, prompt_length)
    assert len(result) == prompt_length + DECODED
    np.testing.assert_allclose(result, expected(config)[: len(result)], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [TINY, ODD], ids=["gqa", "tied"])
def test_the_reference_itself_depends_on_what_it_should(config):
    """Causal, aware of order, and not of what comes later: else it would prove little."""
    weights = tiny(config, slots=SLOTS).weights
    whole = expected(config)
    np.testing.assert_allclose(reference.logits(config, weights, TOKENS[:9]), whole[:9], atol=1e-12)
    swapped = [TOKENS[1], TOKENS[0], *TOKENS[2:9]]
    assert np.abs(reference.logits(config, weights, swapped)[8] - whole[8]).max() > 1e-2


def test_logits_of_a_mesh_are_whole_on_every_device():
    """The head is cut along vocab; what leaves it is not."""
    model = tiny(TINY, "2x4", slots=4)
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
