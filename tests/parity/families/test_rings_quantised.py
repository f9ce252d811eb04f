"""Whole models over rings of codes: however a text is cut, and as a float ring of rounded rows."""

import ml_dtypes
import numpy as np
import pytest
from family_golden import row_errors
from family_ours import CHUNK, CONTEXT, LENGTH, Model
from family_quantised import checkpoint_of

from tpuinfer.cache import ring
from tpuinfer.quant.rows import Rounded

LIMIT = 1e-3
"""Of most rows: a key that lies between two codes may fall to the other one when the order of a
sum differs, and that is seen by the next few."""

SEEN = 2e-3

CASES = {"gemma2-capped": "int8", "gpt-oss-by-number": "fp8", "llama-tied": "int8"}
"""Windows and bent scores; learned sinks; everything in view."""


@pytest.fixture(scope="module", params=CASES)
def case(request):
    with checkpoint_of(request.param) as checkpoint:
        kept = CASES[request.param]
        yield checkpoint, kept, Model(checkpoint, "1", ring=kept).run(LENGTH, CHUNK)


def test_as_a_float_ring_that_is_given_rounded_rows(case, monkeypatch):
    """What is kept is what is attended to, and nothing else is rounded."""
    checkpoint, kept, chunks = case
    exact = Model(checkpoint, "1").run(LENGTH, CHUNK)
    monkeypatch.setattr(ring, "round_rows", lambda rows, _: Rounded(by_rows(rows, kept), None))
    wanted = Model(checkpoint, "1").run(LENGTH, CHUNK)
    assert row_errors(chunks, wanted).max() < LIMIT
    assert row_errors(chunks, exact).max() > SEEN


def by_rows(rows, kept):
    """Rows [..., H] as their codes stand for them, by jax's operators on arrays alone."""
    top = 127 if kept == "int8" else float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max)
    step = abs(rows).max(axis=-1, keepdims=True) / top
    step = step + (step == 0)
    codes = rows / step
    codes = codes.round() if kept == "int8" else codes.astype(ml_dtypes.float8_e4m3fn)
    return codes.astype(np.float32) * step


@pytest.mark.parametrize(
    ("mesh", "prompt", "width"), [("1", LENGTH, CONTEXT), ("2x4", 30, CHUNK)], ids=["whole", "mesh"]
)
def test_however_a_text_is_cut(case, mesh, prompt, width):
    """A chunk sees its own rows as the ring will keep them, so all ways agree."""
    checkpoint, kept, chunks = case
    errors = row_errors(Model(checkpoint, mesh, ring=kept).run(prompt, width), chunks)
    assert np.quantile(errors, 0.9) < LIMIT
    assert errors.max() < 10 * LIMIT
