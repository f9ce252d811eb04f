"""Llama written out a second time, in numpy and float64, over the whole sequence at once.

No ring, no chunks, no mesh, no cache: each token's logits follow from the tokens that it sees, by
the definition of what it sees. It shares no code with `models` or `ops`, and is as slow as it
looks.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tpuinfer.model_config import ModelConfig

Array = NDArray[np.float64]
Weights = Mapping[str, NDArray[Any]]


class Ring(NamedTuple):
    """What a request keeps when it goes on for ever: its first tokens and its newest.

    Attributes:
      capacity: tokens kept in all. sinks: how many of them are the first ones.
    """

    capacity: int
    sinks: int = 0


def logits(
    config: ModelConfig, weights: Weights, tokens: Sequence[int], ring: Ring | None = None
) -> Array:
    """What the model makes of `tokens`: [T, V], row t from tokens[0 .. t].

    A layer with a window sees that many tokens, unless the ring holds fewer.

    Args:
      weights: by the blueprint's names, in Hugging Face's order of dimensions.
      ring: what the other layers see once it is full; None = everything.
    """
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    x = w["embed_tokens.weight"][np.asarray(tokens)]
    for layer in range(config.layers):
        own = {
            name.removeprefix(f"layers.{layer}."): value
            for name, value in w.items()
            if name.startswith(f"layers.{layer}.")
        }
        normed = _normalise(x, own["input_layernorm.weight"], config.norm_eps)
        x = x + _attention(config, own, normed, _view(len(tokens), config.window(layer), ring))
        normed = _normalise(x, own["post_attention_layernorm.weight"], config.norm_eps)
        gate = normed @ own["mlp.gate_proj.weight"].T
        up = normed @ own["mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ own["mlp.down_proj.weight"].T
    head = w["embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"]
    return _normalise(x, w["norm.weight"], config.norm_eps) @ head.T


def log_softmax(x: Array) -> Array:
    """Logarithm of the softmax over the last dimension."""
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def greedy(
    config: ModelConfig,
    weights: Weights,
    prompt: Sequence[int],
    count: int,
    ring: Ring | None = None,
) -> tuple[list[int], list[float]]:
    """`count` most likely tokens after `prompt`, ties to the lowest id, and their log-probs."""
    tokens, scores = list(prompt), []
    for _ in range(count):
        last = log_softmax(logits(config, weights, tokens, ring)[-1])
        tokens.append(int(last.argmax()))
        scores.append(float(last.max()))
    return tokens[len(prompt) :], scores


def judge(
    config: ModelConfig,
    weights: Weights,
    prompt: Sequence[int],
    answer: Sequence[int],
    ring: Ring | None = None,
) -> tuple[list[int], list[float]]:
    """What `greedy` gives if it agrees with `answer` so far, in one pass: equal, or it differs."""
    scores = log_softmax(logits(config, weights, [*prompt, *answer[:-1]], ring))[len(prompt) - 1 :]
    return scores.argmax(axis=-1).tolist(), scores.max(axis=-1).tolist()


def _normalise(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


class _View(NamedTuple):
    """What each query sees, [T, T]: which keys, and which of them from where the ring ends.

    `turned` [T] is the position of each query as the sinks see it.
    """

    seen: NDArray[np.bool_]
    sinks: NDArray[np.bool_]
    turned: NDArray[np.int64]


def _view(count: int, window: int | None, ring: Ring | None) -> _View:
    seen, sinks = np.zeros((2, count, count), bool)
    turned = np.arange(count)
    if window is not None and ring is not None and window >= ring.capacity:
        window = None
    for query in range(count):
        if window is not None:
            seen[query, max(0, query + 1 - window) : query + 1] = True
        elif ring is None or query < ring.capacity:
            seen[query, : query + 1] = True
        else:
            seen[query, query + 1 - (ring.capacity - ring.sinks) : query + 1] = True
            seen[query, : ring.sinks] = sinks[query, : ring.sinks] = True
            turned[query] = ring.capacity - 1
    return _View(seen, sinks, turned)


def _attention(config: ModelConfig, own: Weights, x: Array, view: _View) -> Array:
    """Attention of [T, D], head by head: query head n reads KV head n // (N / K)."""
    theta, positions = config.rope.theta, np.arange(len(x))
    group = config.heads // config.kv_heads
    result = np.zeros_like(x)
    for n in range(config.heads):
        q = x @ own["self_attn.q_proj.weight"][n].T
        k = _turn(x @ own["self_attn.k_proj.weight"][n // group].T, positions, theta)
        v = x @ own["self_attn.v_proj.weight"][n // group].T
        near, far = (_turn(q, turned, theta) @ k.T for turned in (positions, view.turned))
        scores = np.where(view.sinks, far, near) / np.sqrt(config.head_dim)
        mixed = np.exp(log_softmax(np.where(view.seen, scores, -np.inf))) @ v
        result += mixed @ own["self_attn.o_proj.weight"][:, n].T
    return result


def _turn(x: Array, positions: NDArray[np.int64], theta: float) -> Array:
    """Rotary positions: x[i] + j x[i + H/2] at p, a complex number, turns by p / theta^(2i/H)."""
    half = x.shape[1] // 2
    angles = positions[:, None] * theta ** (-np.arange(half) / half)
    turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=1)
