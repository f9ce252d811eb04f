"""Mixtures of experts: routing by hand, both forms against numpy, and bits that are a row's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpuinfer.ops.experts import Routing, Weights, clamped_swiglu, dense, ragged, route
from tpuinfer.platform import platform_settings

FORMS = {form.__name__: jax.jit(form, static_argnames="gate") for form in (dense, ragged)}
D, F, E, K = 48, 40, 5, 2


def swiglu(gate, up):
    return jax.nn.silu(gate) * up


GATES = {"swiglu": swiglu, "clamped": clamped_swiglu}


def some_weights(dtype="float32", biases=False, seed=0):
    random = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(random.standard_normal(shape) / np.sqrt(shape[-1]), dtype)

    weights = Weights(draw(E, F, D), draw(E, F, D), draw(E, D, F))
    return weights._replace(
        **(
            {"gate_bias": draw(E, F), "up_bias": draw(E, F), "down_bias": draw(E, D)}
            if biases
            else {}
        )
    )


def some_rows(rows, dtype="float32", seed=1):
    random = np.random.default_rng(seed)
    x = jnp.asarray(random.standard_normal((rows, D)), dtype)
    return x, route(jnp.asarray(random.standard_normal((rows, E)), jnp.float32), K, True)


@functools.cache
def compiled(form, rows, dtype):
    """A form as the programs run it on this platform, with biases."""
    arguments = (*some_rows(rows, dtype), some_weights(dtype, biases=True))
    options = dict(platform_settings(jax.default_backend()).compiler_options)
    return FORMS[form].lower(*arguments, swiglu).compile(compiler_options=options)


def run(form, x, routing, dtype="float32"):
    made = compiled(form, x.shape[0], dtype)(x, routing, some_weights(dtype, biases=True))
    return np.asarray(made)


def by_numpy(x, routing, weights, gate):
    x, *arrays = (np.asarray(array, np.float64) for array in (x, *weights[:3]))
    biases = [
        np.zeros(array.shape[:2]) if b is None else b
        for array, b in zip(arrays, weights[3:], strict=True)
    ]
    out = np.zeros(x.shape)
    for row, (ids, shares) in enumerate(zip(*map(np.asarray, routing[::-1]), strict=True)):
        for expert, share in zip(ids, shares, strict=True):
            g, u = (arrays[i][expert] @ x[row] + biases[i][expert] for i in (0, 1))
            hidden = np.asarray(gate(jnp.asarray(g, jnp.float32), jnp.asarray(u, jnp.float32)))
            out[row] += share * (arrays[2][expert] @ hidden + biases[2][expert])
    return out


def test_routing_by_hand():
    logits = jnp.log(jnp.array([[1.0, 5.0, 2.0, 2.0]]))
    weights, ids = route(logits, 2, normalise=False)
    assert ids.tolist() == [[1, 2]]
    np.testing.assert_allclose(weights, [[0.5, 0.2]], rtol=1e-6)
    weights, ids = route(logits, 2, normalise=True)
    assert ids.tolist() == [[1, 2]]
    np.testing.assert_allclose(weights, [[5 / 7, 2 / 7]], rtol=1e-6)


@pytest.mark.parametrize("normalise", [True, False])
def test_ties_go_to_the_lowest_id(normalise):
    _, ids = route(jnp.zeros((2, 6), jnp.float32), 3, normalise)
    assert ids.dtype == jnp.int32
    assert ids.tolist() == [[0, 1, 2]] * 2


def test_normalised_weights_survive_logits_that_a_softmax_over_all_would_lose():
    weights, _ = route(jnp.array([[200.0, 0.0, 1.0]]), 3, normalise=True)
    assert weights.sum() == 1
    weights, ids = route(jnp.array([[-300.0, -300.0, -301.0]]), 2, normalise=True)
    np.testing.assert_allclose(weights, [[0.5, 0.5]])
    assert ids.tolist() == [[0, 1]]


def test_the_clamped_gate_by_hand():
    sigmoid = 1 / (1 + np.exp(-1.702 * 7))
    made = clamped_swiglu(jnp.array([9.0, -9.0, 1.0]), jnp.array([-20.0, 20.0, 0.5]))
    low, one = -9 / (1 + np.exp(1.702 * 9)), 1 / (1 + np.exp(-1.702))
    np.testing.assert_allclose(made, [7 * sigmoid * -6, low * 8, one * 1.5], rtol=1e-5)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_by_numpy(form, biases, gate):
    (x, routing), weights = some_rows(7), some_weights(biases=biases)
    made = FORMS[form](x, routing, weights, GATES[gate])
    assert made.dtype == jnp.float32
    expected = by_numpy(x, routing, weights, GATES[gate])
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_all_rows_to_one_expert_and_none_is_dropped(form):
    x, _ = some_rows(9)
    routing = Routing(jnp.ones((9, 1), jnp.float32), jnp.full((9, 1), 3, jnp.int32))
    weights = some_weights()
    expected = by_numpy(x, routing, weights, swiglu)
    made = FORMS[form](x, routing, weights, swiglu)
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_devices_with_some_of_the_experts_add_up_to_the_whole(form):
    (x, routing), weights = some_rows(6), some_weights(biases=True)
    whole = FORMS[form](x, routing, weights, swiglu)
    parts = [
        FORMS[form](x, routing, Weights(*(w[cut] for w in weights)), swiglu, first=cut.start)
        for cut in (slice(0, 2), slice(2, 3), slice(3, 5))
    ]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5, atol=1e-5)
    nobody = Routing(routing.weights, jnp.full_like(routing.ids, 4))
    none = FORMS[form](x, nobody, Weights(*(w[:2] for w in weights)), swiglu)
    assert not np.any(np.asarray(none)), "no row goes to these experts"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("junk", [jnp.inf, jnp.nan])
def test_an_expert_that_a_row_did_not_choose_adds_exactly_nothing(form, junk):
    """Biases make its output inf or nan while the others stay as they are."""
    (x, _), weights = some_rows(4), some_weights(biases=True)
    routing = Routing(jnp.full((4, 2), 0.5, jnp.float32), jnp.array([[0, 2]] * 4, jnp.int32))
    broken = weights._replace(
        down_bias=weights.down_bias.at[1].set(junk), up_bias=weights.up_bias.at[3].set(junk)
    )
    clean = FORMS[form](x, routing, weights, swiglu)
    np.testing.assert_array_equal(FORMS[form](x, routing, broken, swiglu), clean)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
def test_permuting_rows_permutes_their_bits(form, dtype):
    for rows in (4, 16):
        x, routing = some_rows(rows, dtype)
        order = np.random.default_rng(rows).permutation(rows)
        mixed = run(form, x[order], Routing(*(one[order] for one in routing)), dtype)
        np.testing.assert_array_equal(mixed, run(form, x, routing, dtype)[order])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("others", ["random", "all to the same experts", "nan"])
def test_a_row_keeps_its_bits_whatever_the_others_are(form, dtype, others):
    for rows in (4, 16):
        x, routing = some_rows(rows, dtype)
        alone = run(form, x, routing, dtype)[0]
        y, other = some_rows(rows, dtype, seed=2)
        if others == "all to the same experts":
            other = other._replace(ids=jnp.broadcast_to(routing.ids[0], (rows, K)))
        if others == "nan":
            y = jnp.full_like(y, jnp.nan)
        y = y.at[0].set(x[0])
        mixed = Routing(*(b.at[0].set(a[0]) for a, b in zip(routing, other, strict=True)))
        np.testing.assert_array_equal(run(form, y, mixed, dtype)[0], alone)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_keeps_its_bits_in_a_program_of_more_rows(dtype):
    """Narrow decodes agree with the wide one, from the CPU's four rows up (ragged ones do not)."""
    x, routing = some_rows(128, dtype)
    whole = run("dense", x, routing, dtype)
    for rows in (4, 16):
        few = run("dense", x[:rows], Routing(*(one[:rows] for one in routing)), dtype)
        np.testing.assert_array_equal(few, whole[:rows])


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_scattered(form):
    """A scatter that adds would take rows in the order in which they happen to come."""
    text = compiled(form, 16, "float32").as_text()
    assert "scatter" not in text
    assert "dot" in text, "the text is that of the program"


def test_weights_are_read_as_they_lie():
    """The dense form transposes none of them: it would move all weights at every step."""
    weights = some_weights("float32", biases=True)
    text = compiled("dense", 16, "float32").as_text()
    sizes = {str(list(w.shape)).replace(" ", "") for w in weights[:3]}
    moved = [
        line
        for line in text.splitlines()
        if any(f" = f32{size}" in line for size in sizes) and "parameter(" not in line
    ]
    assert moved == []
