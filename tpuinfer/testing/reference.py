"""Llama written out a second time, in numpy and float64, over the whole sequence at once.

No ring, no chunks, no mesh, no cache: each token's logits follow from all tokens before it. It
shares no code with `models` or `ops`, and is as slow as it looks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpuinfer.config import ModelConfig

Array = NDArray[np.float64]
Weights = Mapping[str, NDArray[Any]]


def logits(
    config: ModelConfig, weights: Weights, tokens: Sequence[int], window: int | None = None
) -> Array:
    """What the model makes of `tokens`: [T, V], row t from tokens[0 .. t].

    Args:
      weights: by the blueprint's names, in Hugging Face's order of dimensions.
      window: how many tokens each layer looks back at, itself included; None = all.
    """
    steps = np.arange(len(tokens))
    age = steps[:, None] - steps[None, :]
    hidden = np.where((age < 0) | (age >= (window or len(tokens))), -np.inf, 0.0)
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    x = w["embed_tokens.weight"][np.asarray(tokens)]
    for layer in range(config.layers):
        own = {
            name.removeprefix(f"layers.{layer}."): value
            for name, value in w.items()
            if name.startswith(f"layers.{layer}.")
        }
        normed = _normalise(x, own["input_layernorm.weight"], config.norm_eps)
        x = x + _attention(config, own, normed, hidden)
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
    window: int | None = None,
) -> tuple[list[int], list[float]]:
    """`count` most likely tokens after `prompt`, ties to the lowest id, and their log-probs."""
    tokens, scores = list(prompt), []
    for _ in range(count):
        last = log_softmax(logits(config, weights, tokens, window)[-1])
        tokens.append(int(last.argmax()))
        scores.append(float(last.max()))
    return tokens[len(prompt) :], scores


def _normalise(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def _attention(config: ModelConfig, own: Weights, x: Array, hidden: Array) -> Array:
    """Attention of [T, D], head by head: query head n reads KV head n // (N / K).

    hidden: [T, T], -inf where a query may not see a key, else 0.
    """
    H = config.head_dim
    group = config.heads // config.kv_heads
    result = np.zeros_like(x)
    for n in range(config.heads):
        q = _turn(x @ own["self_attn.q_proj.weight"][n].T, config.rope_theta)
        k = _turn(x @ own["self_attn.k_proj.weight"][n // group].T, config.rope_theta)
        v = x @ own["self_attn.v_proj.weight"][n // group].T
        mixed = np.exp(log_softmax(q @ k.T / np.sqrt(H) + hidden)) @ v
        result += mixed @ own["self_attn.o_proj.weight"][:, n].T
    return result


def _turn(x: Array, theta: float) -> Array:
    """Rotary positions: at t, the complex number x[i] + j x[i + H/2] turns by t / theta^(2i/H)."""
    half = x.shape[1] // 2
    angles = np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half)
    turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=1)
