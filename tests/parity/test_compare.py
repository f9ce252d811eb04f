import numpy as np
import pytest
from compare import NEAR_TIE, compare_greedy, relative_error, row_error
from golden_file import NEW_TOKENS, PROBES, STEPS, TOP, Golden, Rows

VOCAB = 200
PROBE_IDS = list(range(0, VOCAB, 4))[:PROBES]


def logits_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 5, (NEW_TOKENS + 1, VOCAB)).astype(np.float32)


def golden_of(logits: np.ndarray) -> Golden:
    order = np.argsort(-logits, axis=-1, kind="stable")
    top = np.take_along_axis(logits, order, axis=-1)
    steps = list(STEPS)
    rows = Rows(
        scales=np.abs(logits).max(-1),
        margins=top[:, 0] - top[:, 1],
        logsumexps=np.log(np.exp(logits.astype(np.float64)).sum(-1)).astype(np.float32),
        top_ids=order[steps, :TOP].astype(np.int32),
        top_values=top[steps, :TOP],
        probe_values=logits[steps][:, PROBE_IDS],
    )
    return Golden("made up", "text", [1, 2, 3], order[:-1, 0].tolist(), rows)


@pytest.mark.parametrize(
    ("ours", "reference", "error"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -3.0], [1.0, -4.0], 0.25),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 1.0], [0.0, 0.0], np.inf),
        ([np.nan, 1.0], [0.0, 1.0], np.inf),
        ([1.0, 1.0], [np.inf, 1.0], np.inf),
    ],
)
def test_relative_error_is_over_the_whole_row(ours, reference, error):
    assert relative_error(ours, reference) == error


def test_relative_error_takes_the_scale_of_a_larger_row():
    assert relative_error([1.0], [2.0], scale=10.0) == pytest.approx(0.1)


def test_relative_error_refuses_rows_of_different_lengths():
    with pytest.raises(ValueError, match=r"\(2,\) and \(1,\)"):
        relative_error([1.0, 2.0], [1.0])


@pytest.mark.parametrize("step", STEPS)
def test_a_row_agrees_with_its_own_golden(step):
    logits = logits_of(0)
    assert row_error(logits[step], golden_of(logits), step, PROBE_IDS) < 1e-6


@pytest.mark.parametrize("where", ["top", "probe", "neither"])
def test_row_error_sees_a_changed_logit(where):
    logits = logits_of(1)
    golden = golden_of(logits)
    ranked = golden.rows.top_ids[1].tolist()
    places = {
        "top": ranked[3],
        "probe": next(i for i in PROBE_IDS if i not in ranked),
        "neither": next(i for i in range(VOCAB) if i not in ranked and i not in PROBE_IDS),
    }
    row = logits[STEPS[1]].copy()
    row[places[where]] = row.max() * 1.05
    assert row_error(row, golden, STEPS[1], PROBE_IDS) > 1e-2


@pytest.mark.parametrize("size", [1e-5, 1e-3])
def test_row_error_measures_noise(size):
    logits = logits_of(2)
    golden = golden_of(logits)
    noise = np.random.default_rng(9).choice([-1.0, 1.0], VOCAB) * size * golden.rows.scales[0]
    assert row_error(logits[0] + noise, golden, 0, PROBE_IDS) == pytest.approx(size, rel=0.1)


def test_row_error_of_a_row_with_nan_is_infinite():
    logits = logits_of(3)
    row = logits[0].copy()
    row[VOCAB - 1] = np.nan
    assert row_error(row, golden_of(logits), 0, PROBE_IDS) == np.inf


def test_row_error_refuses_a_step_that_is_not_stored():
    logits = logits_of(4)
    with pytest.raises(ValueError, match="step 3 is not stored"):
        row_error(logits[3], golden_of(logits), 3, PROBE_IDS)


def test_row_error_refuses_a_row_that_is_too_short():
    logits = logits_of(4)
    with pytest.raises(ValueError, match="cannot hold id"):
        row_error(logits[0, :50], golden_of(logits), 0, PROBE_IDS)


def test_equal_tokens_agree():
    golden = golden_of(logits_of(5))
    agreement = compare_greedy(golden.tokens, golden)
    assert agreement.ok
    assert (agreement.matched, agreement.compared) == (NEW_TOKENS, NEW_TOKENS)


def test_a_short_answer_does_not_agree():
    golden = golden_of(logits_of(5))
    agreement = compare_greedy(golden.tokens[:10], golden)
    assert not agreement.ok
    assert agreement.matched == 10


@pytest.mark.parametrize(("share", "ok"), [(0.5, True), (1.0, False), (2.0, False)])
def test_a_difference_is_forgiven_only_at_a_near_tie(share, ok):
    logits = logits_of(6)
    best, second = np.argsort(-logits[20])[:2]
    logits[20, best] = 16.0 + 16.0 * NEAR_TIE * share  # scale is a hair over 16
    logits[20, second] = 16.0
    logits[20] = np.clip(logits[20], -16.0, None)
    golden = golden_of(logits)
    tokens = [*golden.tokens[:20], int(second), *golden.tokens[21:]]
    threshold = NEAR_TIE if share != 1.0 else NEAR_TIE * 0.99
    agreement = compare_greedy(tokens, golden, near_tie=threshold)
    assert agreement.ok is ok
    assert agreement.matched == 20
    assert "token 20" in agreement.note


def test_what_follows_a_near_tie_is_not_compared():
    logits = logits_of(7)
    best, second = np.argsort(-logits[2])[:2]
    logits[2, second] = logits[2, best]
    golden = golden_of(logits)
    tokens = [*golden.tokens[:2], int(second), *[VOCAB - 1] * (NEW_TOKENS - 3)]
    tokens[2] = int(second) if golden.tokens[2] == int(best) else int(best)
    assert compare_greedy(tokens, golden).ok
