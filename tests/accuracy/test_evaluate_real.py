"""What the README recommends, on the real model and a part of the text of its table."""

import pytest

from tpuinfer.accuracy.compare import Question, Variant, evaluate
from tpuinfer.accuracy.report import GOOD, change, verdict
from tpuinfer.accuracy.text import built_in

MODEL = "smollm2-135m-instruct"

pytestmark = pytest.mark.model


def test_int8_weights_and_an_int8_ring_are_within_half_a_percent():
    reference, *variants = (
        Variant(MODEL, weights, ring)
        for weights, ring in (("none", "auto"), ("int8", "auto"), ("none", "int8"))
    )
    answer = evaluate(Question(built_in(), tokens=1024), reference, variants)
    for row in answer.rows:
        assert abs(change(row, answer.reference)) <= GOOD, row
        assert verdict(row, answer.reference) == "recommended"
        assert row.scores.divergence < 0.01
        assert row.scores.top1 > 0.93
    assert 30 < answer.reference.scores.perplexity < 60
