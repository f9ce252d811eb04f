import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpuinfer.accuracy.text import built_in, cut, from_file
from tpuinfer.errors import ConfigError


def test_windows_by_hand():
    windows = cut(range(10, 20), [1], 4, None)
    assert windows.ids == ((1, 10, 11, 12), (1, 13, 14, 15), (1, 16, 17, 18), (1, 19))
    assert windows.starts == (0, 3, 6, 9, 10)
    assert windows.scored == 10


def test_without_an_opening_the_first_token_of_a_window_is_not_scored():
    windows = cut(range(7), [], 3, None)
    assert windows.ids == ((0, 1, 2), (3, 4, 5))  # a rest of one token has nothing to score
    assert windows.scored == 4


@given(st.integers(2, 60), st.integers(0, 1), st.integers(2, 20), st.integers(2, 60))
def test_every_token_that_is_read_stands_in_one_window(count, opening, length, most):
    windows = cut(range(100, 100 + count), [1] * opening, max(length, opening + 1), most)
    read = [token for one in windows.ids for token in one[opening:]]
    left_out = min(count, most) - len(read)
    assert read == list(range(100, 100 + len(read)))
    assert 0 <= left_out <= 1 - opening
    assert all(len(one) <= length for one in windows.ids)


@pytest.mark.parametrize(
    ("ids", "length", "most", "says"),
    [
        (range(5), 1, None, "window is 1: at least 2"),
        (range(5), 4, 1, "tokens is 1: at least 2"),
        ((), 4, None, "the text has 0 tokens"),
        ((7,), 4, None, "the text has 1 tokens"),
    ],
)
def test_what_cannot_be_scored_is_refused(ids, length, most, says):
    with pytest.raises(ConfigError, match=says):
        cut(ids, [], length, most)


def test_the_built_in_text_is_what_the_figures_were_measured_on():
    """Another text would give other figures under the same name."""
    text = built_in()
    assert text.content.startswith("CHAPTER 1\n\nNo one who had ever seen Catherine Morland")
    assert text.sha256 == hashlib.sha256(text.content.encode()).hexdigest()
    assert text.sha256.startswith("7f129f9ca9a942ad")


def test_a_file_is_read_and_one_that_is_no_text_refused(tmp_path):
    good, empty, binary = (tmp_path / name for name in ("good", "empty", "binary"))
    good.write_text("Hé", "utf-8")
    empty.write_text(" \n")
    binary.write_bytes(b"\xff\xfe")
    assert from_file(good).content == "Hé"
    for path, says in ((empty, "nothing in it"), (binary, "UTF-8"), (tmp_path / "no", "No such")):
        with pytest.raises(ConfigError, match=says):
            from_file(path)
