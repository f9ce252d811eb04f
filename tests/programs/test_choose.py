"""Tokens from logits that are cut over a mesh: bit by bit those of whole rows on one device."""

import functools

import jax
import numpy as np
import pytest

from tests.ops.sampling_reference import rows
from tests.ops.steering_reference import mask_words
from tpuinfer.ops.sampling import sample
from tpuinfer.ops.steering import GENERATED, IN_PROMPT, Biases, Steering, Tables, steer
from tpuinfer.programs.choose import choose
from tpuinfer.sharding.layout import resolve
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.rules import ShardingRules

V, SLOTS = 5_000, 24
MESHES = ["1", "8", "2x4"]

STEERED = {
    "repetition": [1, 1, 1.3],
    "frequency": [0.0, 0.5, 0.0],
    "biased": [0, 0, 1],
    "constrained": [0, 1, 0],
}
ASKED = {
    "nothing": {},
    "sampled": {"temperature": [0, 0.7, 1.5], "top_p": [1, 0.9, 1], "top_k": [0, 0, 40]},
    "logprobs": {"logprobs": [-1, 0, 20]},
    "steered": STEERED,
    "all": {**STEERED, "temperature": [0, 0.9, 0], "min_p": [0, 0.01, 0], "logprobs": [-1, 5, 0]},
}


@functools.cache
def compiled(mesh, count):
    """`choose` for so many rows on a mesh; without one, the same by its parts."""
    sizes = {"batch": count, "vocab": V}
    layout = None if mesh is None else resolve(ShardingRules(), build_mesh(parse_mesh(mesh)), sizes)

    def plain(logits, settings, positions, by):
        return sample(logits, settings, positions, steer(logits, settings, by))

    def cut(logits, settings, positions, by):
        logits = layout.constrain(logits, ("batch", "vocab"))
        return choose(logits, settings, positions, by, layout)

    return jax.jit(plain if layout is None else cut)


def asked(kind, count):
    """Every third row asks for the same."""
    fields = {"temperature": [0], **ASKED[kind]}
    cycle = {name: np.resize(np.asarray(values), count) for name, values in fields.items()}
    return rows(count, seed=5, **cycle)


@functools.cache
def logits_of(count):
    """Ties within a piece and between pieces, infinities, and zeros of both signs."""
    random = np.random.default_rng(count)
    logits = random.normal(0, 3, (count, V)).astype(np.float32)
    logits[0, [V - 1, 3000, 2500, 700]] = 30
    logits[1] = np.round(logits[1])
    logits[2], logits[2, [1, V - 2]] = -1, [-0.0, 0.0]
    logits[3], logits[3, V - 1] = -np.inf, -1e30
    logits[4, [800, 4000]], logits[5, 4999] = np.inf, np.inf
    logits[6], logits[7] = -np.inf, 2.5
    return logits


@functools.cache
def steering():
    random = np.random.default_rng(1)
    counts = random.choice([0, 0, 0, IN_PROMPT, IN_PROMPT + 2 * GENERATED], (SLOTS, V))
    ids = np.stack([random.permutation(V)[:4] for _ in range(SLOTS)]).astype(np.int32)
    biases = Biases(ids, np.full(ids.shape, 9, np.float32))
    tables = Tables(mask_words(random.random((SLOTS, V)) < 0.02), biases)
    stops = random.integers(0, V, (SLOTS, 3)).astype(np.int32)
    return Steering(counts.astype(np.int32), stops, np.zeros(SLOTS, np.int32), tables)


def result(mesh, kind, slots=None, count=SLOTS):
    by = steering()
    if slots is None:
        by = jax.tree.map(lambda x: x[:count], by)
    else:
        count = len(slots)
        by = Steering(by.counts, by.stops[:count], by.barred[:count], by.tables, slots)
    given = logits_of(count), asked(kind, count), np.arange(count, dtype=np.int32) + 7, by
    return jax.tree.map(np.asarray, compiled(mesh, count)(*given))


def same(found, expected):
    for name in ("tokens", "logprobs", "top_ids", "top_logprobs"):
        one, other = (np.asarray(getattr(x, name)) for x in (found, expected))
        np.testing.assert_array_equal(one.view(np.int32), other.view(np.int32), err_msg=name)


@pytest.mark.parametrize("kind", ASKED)
@pytest.mark.parametrize("mesh", MESHES)
def test_tokens_and_logprobs_are_those_of_one_device(mesh, kind):
    same(result(mesh, kind), result(None, kind))


@pytest.mark.parametrize("kind", ["nothing", "all"])
@pytest.mark.parametrize(("mesh", "count"), [("8", 10), ("2x4", 10)])
def test_rows_of_named_slots_that_may_not_divide(mesh, count, kind):
    slots = np.random.default_rng(2).permutation(SLOTS)[:count].astype(np.int32)
    same(result(mesh, kind, slots), result(None, kind, slots))


def test_all_slots_in_order_that_do_not_divide():
    same(result("8", "all", count=10), result(None, "all", count=10))


@pytest.mark.parametrize("mesh", ["1", "2x4"])
def test_a_row_that_asks_for_nothing_is_the_same_beside_any(mesh):
    alone = result(mesh, "nothing")
    assert alone.tokens[:8].tolist() == [700, *logits_of(SLOTS)[1:8].argmax(axis=1)]
    for kind in ASKED:
        np.testing.assert_array_equal(result(mesh, kind).tokens[::3], alone.tokens[::3])


def test_the_other_rows_do_change():
    alone = result(None, "nothing").tokens
    for kind in ("sampled", "steered", "all"):
        assert (result(None, kind).tokens != alone)[8:].sum() >= 5
    assert (result(None, "logprobs").top_ids[2::3] >= 0).all()


@pytest.mark.parametrize("kind", ["nothing", "all"])
def test_nan_leads_to_an_id_of_the_vocabulary_and_no_other_row_astray(kind):
    logits = logits_of(SLOTS).copy()
    logits[8], logits[9, [700, 4_999]], logits[10, :4_990] = np.nan, np.nan, np.nan
    given = logits, asked(kind, SLOTS), np.arange(SLOTS, dtype=np.int32) + 7, steering()
    tokens = np.asarray(compiled("2x4", SLOTS)(*given).tokens)
    assert ((tokens >= 0) & (tokens < V)).all()
    others = np.delete(np.arange(SLOTS), [8, 9, 10])
    np.testing.assert_array_equal(tokens[others], result("2x4", kind).tokens[others])


def test_ends_are_barred_on_a_mesh_too():
    by, logits = steering(), np.zeros((SLOTS, V), np.float32)
    logits[:, 4_321], logits[:, 1_000] = 2, 1
    stops = np.full_like(by.stops, 4_321)
    barred = np.arange(SLOTS, dtype=np.int32) % 2
    by = by.replace(stops=stops, barred=barred)
    given = logits, asked("nothing", SLOTS), np.zeros(SLOTS, np.int32), by
    tokens = compiled("2x4", SLOTS)(*given).tokens
    assert tokens.tolist() == [4_321, 1_000] * (SLOTS // 2)
