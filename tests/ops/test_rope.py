"""Rotary positions against complex numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from tpuinfer.model_config import Rope
from tpuinfer.ops.rope import apply_rope, rope_angles

THETA = 10_000.0
POSITIONS = np.array([[0, 1, 2], [7, 511, 8191]], np.int32)


def turned(x, positions, theta):
    """Pair (i, i + H/2) as one complex number, turned by position / theta ** (2 i / H)."""
    half = x.shape[-1] // 2
    angles = positions[..., None, None] / theta ** (2 * np.arange(half) / x.shape[-1])
    pairs = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def rotate(x, positions, theta=THETA):
    @jax.jit
    def run(x, positions):
        return apply_rope(x, rope_angles(positions, x.shape[-1], Rope(theta)))

    return run(x, np.asarray(positions))


def test_pairs_turn_like_complex_numbers():
    x = np.random.default_rng(0).standard_normal((2, 3, 2, 8)).astype(np.float32)
    for theta in (THETA, 500_000.0):
        # An angle of thousands of turns in float32 is exact to about 1e-3.
        np.testing.assert_allclose(
            rotate(x, POSITIONS, theta), turned(x, POSITIONS, theta), atol=2e-3
        )
    np.testing.assert_allclose(rotate(x, POSITIONS % 8), turned(x, POSITIONS % 8, THETA), atol=1e-6)


def test_far_positions_keep_their_angle():
    """A float32 product of a position in the millions would be off by a good part of a turn."""
    x = np.random.default_rng(4).standard_normal((1, 4, 1, 8)).astype(np.float32)
    far = np.array([[4095, 4096, 1_000_003, 50_000_000]], np.int32)
    result = np.abs(rotate(x, far, 500_000.0) - turned(x, far, 500_000.0)).max(axis=(0, 2, 3))
    np.testing.assert_array_less(result, [1e-3, 1e-3, 1e-3, 1e-2])


def test_position_zero_changes_nothing():
    x = np.random.default_rng(1).standard_normal((1, 1, 3, 8)).astype(np.float32)
    np.testing.assert_array_equal(rotate(x, [[0]]), x)


def test_scores_depend_on_the_distance_alone():
    random = np.random.default_rng(2)
    q, k = (random.standard_normal((1, 1, 1, 8)).astype(np.float32) for _ in range(2))
    near, far = (
        (np.asarray(rotate(q, [[p + 5]])) * np.asarray(rotate(k, [[p]]))).sum() for p in (3, 103)
    )
    np.testing.assert_allclose(near, far, rtol=1e-4)


def test_bfloat16_turns_in_float32_and_rounds_once():
    x = jnp.asarray(np.random.default_rng(3).standard_normal((1, 3, 2, 8)), jnp.bfloat16)
    result = rotate(x, POSITIONS[:1])
    assert result.dtype == jnp.bfloat16
    once = jnp.asarray(turned(np.asarray(x, np.float64), POSITIONS[:1], THETA), jnp.bfloat16)
    np.testing.assert_allclose(
        np.asarray(result, np.float32), np.asarray(once, np.float32), rtol=2**-7
    )


def test_only_the_first_dimensions_turn():
    x = np.random.default_rng(5).standard_normal((2, 3, 2, 10)).astype(np.float32)
    near = POSITIONS % 8
    result = np.asarray(apply_rope(x, rope_angles(jnp.asarray(near), 10, Rope(THETA, dim=6))))
    np.testing.assert_array_equal(result[..., 6:], x[..., 6:])
    np.testing.assert_allclose(result[..., :6], turned(x[..., :6], near, THETA), atol=1e-6)


def test_dynamic_angles_do_not_depend_on_how_a_text_is_cut():
    """Those of transformers would: there a chunk turns by the length at its end."""
    rope = Rope(THETA, kind="dynamic", factor=4.0, original=8)
    positions = jnp.arange(24, dtype=jnp.int32)[None]
    whole = rope_angles(positions, 8, rope)
    for start, stop in ((0, 7), (7, 13), (13, 24)):
        for one, part in zip(whole, rope_angles(positions[:, start:stop], 8, rope), strict=True):
            np.testing.assert_array_equal(one[:, start:stop], part)
    for one, plain in zip(whole, rope_angles(positions, 8, Rope(THETA)), strict=True):
        np.testing.assert_allclose(one[:, :8], plain[:, :8], rtol=1e-6)
        assert np.abs(one[:, 9:] - plain[:, 9:]).max(axis=(0, 2, 3)).min() > 1e-3


def test_cosines_and_sines_are_as_long_as_the_factor_says():
    for kind, factor in (
        (Rope(kind="yarn", factor=1.0, original=64, high=32.0), 1.0),
        (Rope(kind="yarn", factor=4.0, original=64, high=32.0), 0.1 * np.log(4) + 1),
        (Rope(kind="yarn", factor=4.0, original=64, high=32.0, attention_factor=1.5), 1.5),
        (
            Rope(kind="longrope", factor=4.0, original=64, short=(1.0,) * 4, long=(2.0,) * 4),
            np.sqrt(1 + np.log(4) / np.log(64)),
        ),
    ):
        cos, sin = rope_angles(jnp.asarray(POSITIONS), 8, kind)
        np.testing.assert_allclose(np.hypot(cos, sin), factor, rtol=1e-5)
