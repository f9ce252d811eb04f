"""The rules by which a row ends, on columns written by hand."""

from typing import Any

import numpy as np
import pytest

from tpuinfer.engine.answer import Answer
from tpuinfer.engine.request import Delta, Request, SamplingParams
from tpuinfer.testing.fake import FakeTokenizer

TOKENIZER = FakeTokenizer(eos_ids=(0,))


def answer(limit: int = 10, **params: Any) -> Answer:
    request = Request("r", [65], SamplingParams(**params))
    own = () if request.params.ignore_eos else TOKENIZER.eos_ids
    return Answer(
        request,
        limit=limit,
        eos_ids=TOKENIZER.eos_ids,
        stop_ids=(*own, *request.params.stop_token_ids),
        detokenizer=TOKENIZER.detokenizer(skip_special_tokens=request.params.skip_special_tokens),
    )


def take(row: Answer, text: str, padding: int = 0) -> Delta:
    return row.take([ord(char) for char in text] + [-1] * padding, [0.0] * (len(text) + padding))


def ended(delta: Delta) -> tuple[str, str, str | None, str | int | None]:
    ids = "".join(map(chr, delta.token_ids))
    return delta.text, ids, delta.finish_reason, delta.stop_reason


def test_goes_on() -> None:
    row = answer()
    assert ended(take(row, "ab")) == ("ab", "ab", None, None)
    assert ended(take(row, "c")) == ("c", "c", None, None)


def test_the_end_token_is_an_id_and_no_text() -> None:
    assert ended(take(answer(), "ab\0", 2)) == ("ab", "ab\0", "stop", None)
    shown = answer(skip_special_tokens=False)
    assert ended(take(shown, "ab\0")) == ("ab", "ab\0", "stop", None)


def test_ignore_eos_shows_it_when_asked() -> None:
    assert ended(take(answer(ignore_eos=True), "a\0b")) == ("ab", "a\0b", None, None)
    shown = answer(ignore_eos=True, skip_special_tokens=False)
    assert ended(take(shown, "a\0b")) == ("a<end>b", "a\0b", None, None)


def test_a_stop_token_id_is_the_reason() -> None:
    assert ended(take(answer(stop_token_ids=[98]), "ab", 1)) == ("a", "ab", "stop", 98)
    ignoring = answer(ignore_eos=True, stop_token_ids=[0])
    assert ended(take(ignoring, "a\0", 1)) == ("a", "a\0", "stop", 0)
    both = answer(stop_token_ids=[0])
    assert ended(take(both, "a\0", 1)) == ("a", "a\0", "stop", None)


def test_the_limit() -> None:
    row = answer(limit=3)
    assert ended(take(row, "ab")) == ("ab", "ab", None, None)
    assert ended(take(row, "c", 1)) == ("c", "c", "length", None)
    assert ended(take(answer(limit=2), "a\0")) == ("a", "a\0", "stop", None)


def test_a_stop_string_across_dispatches() -> None:
    row = answer(stop=["cde"])
    assert ended(take(row, "abc")) == ("ab", "abc", None, None)
    assert ended(take(row, "d")) == ("", "d", None, None)
    assert ended(take(row, "efg")) == ("", "e", "stop", "cde")


def test_a_stop_string_at_the_limit_is_a_stop() -> None:
    assert ended(take(answer(limit=3, stop=["bc"]), "abc")) == ("a", "abc", "stop", "bc")


def test_what_was_held_for_a_stop_string_comes_out_at_the_end() -> None:
    assert ended(take(answer(limit=3, stop=["cde"]), "abc")) == ("abc", "abc", "length", None)
    assert ended(take(answer(stop=["cde"]), "abc\0")) == ("abc", "abc\0", "stop", None)


class HalfCharacters:
    """Holds everything back until the end, as a detokeniser does with half a character."""

    def push(self, token: int, /) -> str:
        return ""

    def flush(self) -> str:
        return "\ufffd"


@pytest.mark.parametrize(
    ("stop", "text", "reason"), [((), "\ufffd", None), (("\ufffd",), "", "\ufffd")]
)
def test_half_a_character_at_the_end(stop: tuple[str, ...], text: str, reason: str | None) -> None:
    request = Request("r", [65], SamplingParams(stop=stop))
    row = Answer(request, limit=9, eos_ids=(0,), stop_ids=(0,), detokenizer=HalfCharacters())
    assert ended(take(row, "a\0")) == (text, "a\0", "stop", reason)


def test_logprobs_only_when_asked_and_only_of_what_was_taken() -> None:
    assert answer().take([97, 0], [-1.0, -2.0]).logprobs is None
    assert answer(logprobs=0).take([97, 0, -1], [-1.0, -2.0, 0.0]).logprobs == [-1.0, -2.0]
    assert answer(logprobs=0, stop="a").take([97, 98], [-1.0, -2.0]).logprobs == [-1.0]


def alternatives(*rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Each row's ids, and the log-probability -id of each."""
    ids = np.array(rows, np.int32)
    return ids, -ids.astype(np.float32)


def test_alternatives_as_many_as_asked() -> None:
    given = alternatives([7, 3, 9], [1, 2, 3], [-1, -1, -1])
    row = answer(logprobs=2, stop="b")
    delta = row.take([97, 98, 99], [-1.0, -2.0, -3.0], given)
    assert delta.logprobs == [-1.0, -2.0]
    assert delta.top_logprobs == [{7: -7.0, 3: -3.0}, {1: -1.0, 2: -2.0}]
    assert [list(one) for one in delta.top_logprobs] == [[7, 3], [1, 2]]


@pytest.mark.parametrize("logprobs", [None, 0])
def test_no_alternatives_unless_asked(logprobs: int | None) -> None:
    given = alternatives([7, 3, 9])
    assert answer(logprobs=logprobs).take([97], [-1.0], given).top_logprobs is None


def test_no_more_alternatives_than_the_vocabulary_has() -> None:
    delta = answer(logprobs=3).take([97], [-1.0], alternatives([7, 3, -1]))
    assert delta.top_logprobs == [{7: -7.0, 3: -3.0}]


def test_alternatives_that_are_missing_are_a_fault() -> None:
    with pytest.raises(AssertionError, match="r: 3 alternatives missing"):
        answer(logprobs=3).take([97], [-1.0])


def test_a_row_that_ends_for_no_reason_is_a_fault() -> None:
    with pytest.raises(AssertionError, match="r: 1 of 2 tokens"):
        take(answer(), "a", 1)
    with pytest.raises(AssertionError, match="r: 0 of 1 tokens"):
        take(answer(), "", 1)
