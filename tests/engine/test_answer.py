"""The rules by which a row ends, on columns written by hand."""

from typing import Any

import numpy as np
import pytest

from tpuinfer.engine.answer import Answer
from tpuinfer.engine.request import Delta, Request, SamplingParams
from tpuinfer.engine.runner import PromptScores
from tpuinfer.testing.constraint import FakeConstraint
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


def test_a_stop_string_that_is_complete_too_early_does_not_count() -> None:
    row = answer(stop=["bc"], min_tokens=3)
    assert ended(take(row, "abc")) == ("abc"[:1], "abc", None, None)  # held: it could be longer
    assert ended(take(row, "xbc")) == ("bcx", "xbc", "stop", "bc")


def test_a_stop_string_that_begins_early_and_is_complete_in_time_counts() -> None:
    row = answer(stop=["bc"], min_tokens=2)
    assert ended(take(row, "abcd")) == ("a", "abc", "stop", "bc")


def test_what_was_held_when_it_did_not_count_comes_out_at_the_end() -> None:
    assert ended(take(answer(limit=3, stop=["bc"], min_tokens=3), "abc")) == (
        "abc",
        "abc",
        "length",
        None,
    )


def constrained(*allowed: str, limit: int = 10, **ends: int) -> Answer:
    """Token i must be of the i-th string."""
    constraint = FakeConstraint(lambda taken: map(ord, allowed[len(taken)]), **ends)
    return Answer(
        Request("r", [65], constraint=constraint, choice=2),
        limit=limit,
        eos_ids=(0,),
        stop_ids=(0,),
        detokenizer=TOKENIZER.detokenizer(),
    )


def bits(words: np.ndarray | None) -> str:
    assert words is not None
    return "".join(chr(t) for t in range(128) if words[t // 32] >> t % 32 & 1)


def test_a_constraint_is_followed_token_by_token() -> None:
    row = constrained("ab", "\0x", "z")
    assert bits(row.mask(row.delta(), 128)) == "ab"
    delta = take(row, "b")
    assert bits(row.mask(delta, 128)) == "\0x"
    assert (delta.choice, delta.finish_reason) == (2, None)
    assert bits(row.mask(take(row, "x"), 128)) == "z"


def test_a_constraint_that_is_done_ends_the_answer() -> None:
    row = constrained("a", "b", done=2)
    row.mask(row.delta(), 128)
    row.mask(take(row, "a"), 128)
    assert ended(take(row, "b")) == ("b", "b", "stop", None)


def test_done_at_the_limit_is_a_stop() -> None:
    row = constrained("a", limit=1, done=1)
    row.mask(row.delta(), 128)
    assert ended(take(row, "a")) == ("a", "a", "stop", None)


def test_the_models_own_end_needs_no_constraint() -> None:
    row = constrained("\0")
    row.mask(row.delta(), 128)
    assert ended(take(row, "\0")) == ("", "\0", "stop", None)


def test_a_constraint_that_fails_ends_the_answer_with_its_reason() -> None:
    row = constrained("a", "b", fails=1)
    row.mask(row.delta(), 128)
    delta = take(row, "a")
    assert ended(delta) == ("a", "a", "error", None)
    assert delta.error == "nothing may follow 1 tokens"


@pytest.mark.parametrize(("ends", "reason"), [({"done": 0}, "stop"), ({"fails": 0}, "error")])
def test_a_constraint_that_leaves_nothing_to_begin_with(ends: dict[str, int], reason: str) -> None:
    row = constrained(**ends)
    delta = row.delta()
    assert row.mask(delta, 128) is None
    assert ended(delta) == ("", "", reason, None)
    assert (delta.error is None) is (reason == "stop")


class FailsInFill(FakeConstraint):
    """Finds out only when it is asked for a mask."""

    @property
    def error(self) -> str | None:
        return "too much work" if self._filled else None


def test_a_constraint_that_fails_while_it_makes_a_mask() -> None:
    row = constrained()
    row._constraint = FailsInFill(lambda _: range(128))
    delta = row.delta()
    assert row.mask(delta, 128) is None
    assert (delta.finish_reason, delta.error) == ("error", "too much work")


def scores(*tokens: int) -> PromptScores:
    ids = np.array([[t, t + 1, -1] for t in tokens], np.int32).reshape(-1, 3)
    return PromptScores(-np.array(tokens, np.float32), ids, -ids.astype(np.float32))


def test_the_scores_of_all_chunks_come_with_the_first_token() -> None:
    row = answer(prompt_logprobs=1)
    row.score(scores(5, 6))
    row.score(scores(7))
    first, second = take(row, "a"), take(row, "b")
    assert first.prompt_logprobs == [None, -5.0, -6.0, -7.0]
    assert first.prompt_top_logprobs == [None, {5: -5.0}, {6: -6.0}, {7: -7.0}]
    assert second.prompt_logprobs is second.prompt_top_logprobs is None


def test_a_prompt_is_scored_without_alternatives_unless_asked() -> None:
    row = answer(prompt_logprobs=0)
    row.score(scores())
    delta = take(row, "a")
    assert (delta.prompt_logprobs, delta.prompt_top_logprobs) == ([None], None)
    assert take(answer(), "a").prompt_logprobs is None


def test_no_more_alternatives_to_the_prompt_than_the_vocabulary_has() -> None:
    row = answer(prompt_logprobs=3)
    row.score(scores(5))
    assert take(row, "a").prompt_top_logprobs == [None, {5: -5.0, 6: -6.0}]
