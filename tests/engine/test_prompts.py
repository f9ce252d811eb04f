"""What `LLM.generate` is given, as lists and as iterators."""

import itertools

import pytest

from tpuinfer.engine.prompts import as_list, paired, per_prompt
from tpuinfer.engine.request import SamplingParams
from tpuinfer.errors import RequestError

ONE, TWO = SamplingParams(seed=1), SamplingParams(seed=2)


@pytest.mark.parametrize(
    ("given", "several"),
    [
        ("ab", ["ab"]),
        ([1, 2], [[1, 2]]),
        (["ab", [1, 2]], ["ab", [1, 2]]),
        ([[1], "c"], [[1], "c"]),
        ([], []),
    ],
)
def test_one_prompt_is_told_from_several(given, several) -> None:
    assert as_list(given) == several


def test_parameters_for_all_or_for_each() -> None:
    assert per_prompt(None, 2) == [SamplingParams()] * 2
    assert per_prompt(ONE, 2) == [ONE, ONE]
    assert per_prompt((ONE, TWO), 2) == [ONE, TWO]
    with pytest.raises(RequestError, match="2 sampling parameters for 3 prompts"):
        per_prompt([ONE, TWO], 3)


def test_pairs_are_made_one_by_one() -> None:
    prompts, params = itertools.count(), itertools.cycle([ONE, TWO])
    pairs = paired(prompts, params)
    assert list(itertools.islice(pairs, 3)) == [(0, ONE), (1, TWO), (2, ONE)]
    assert (next(prompts), next(params)) == (3, TWO), "nothing is read ahead"
    assert list(paired(iter("ab"), None)) == [("a", SamplingParams()), ("b", SamplingParams())]
    assert list(paired(iter("ab"), [ONE, TWO])) == [("a", ONE), ("b", TWO)]


def test_pairs_that_do_not_go_up() -> None:
    pairs = paired(iter("abc"), [ONE])
    assert next(pairs) == ("a", ONE)
    with pytest.raises(RequestError, match="1 sampling parameters, and there is prompt 2"):
        next(pairs)
    with pytest.raises(RequestError, match="0 prompts, and there are more sampling parameters"):
        next(paired(iter(""), [ONE]))
