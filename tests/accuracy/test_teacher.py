"""A tiny model reads windows; what it thinks is compared with numpy's float64."""

import numpy as np
import pytest

from tpuinfer.accuracy.teacher import Teacher
from tpuinfer.accuracy.text import cut
from tpuinfer.testing import reference
from tpuinfer.testing.tiny import TINY, tiny

WINDOW = 40


@pytest.fixture(scope="module")
def windows():
    ids = np.random.default_rng(3).integers(TINY.vocab, size=150).tolist()
    return cut(ids, [1], WINDOW, None)


def read(windows, cache, width=16, **made):
    one = tiny(**made)
    teacher = Teacher(one.plan, one.params, width, cache_dir=cache)
    found = np.full((windows.scored, TINY.vocab), np.nan, np.float32)
    targets = np.full(windows.scored, -1)
    for start, rows, comes in teacher.read(windows):
        assert np.isnan(found[start : start + len(rows)]).all(), "a token scored twice"
        found[start : start + len(rows)] = rows
        targets[start : start + len(rows)] = comes
    assert targets.tolist() == [token for one in windows.ids for token in one[1:]]
    return found


def wanted(windows):
    one = tiny()
    rows = [reference.logits(TINY, one.weights, ids)[:-1] for ids in windows.ids]
    return reference.log_softmax(np.concatenate(rows))


@pytest.mark.parametrize("mesh", ["1", "2x4"])
def test_windows_are_read_from_their_own_beginning(windows, mesh, tmp_path):
    """The last window is shorter than the others, so that its data shard idles at the end."""
    found = read(windows, tmp_path, mesh=mesh)
    np.testing.assert_allclose(found, wanted(windows), atol=1e-4)


def test_the_width_of_a_chunk_is_no_matter(windows, tmp_path):
    narrow, wide = (read(windows, tmp_path, width) for width in (7, WINDOW))
    np.testing.assert_allclose(narrow, wide, atol=1e-5)


def test_what_a_scheme_and_a_ring_round_is_seen(windows, tmp_path):
    exact, weights, ring = (
        read(windows, tmp_path, **made) for made in ({}, {"quant": "int8"}, {"ring": "int8"})
    )
    for rounded in (weights, ring):
        apart = np.abs(rounded - exact).max()
        assert 1e-4 < apart < 0.3
