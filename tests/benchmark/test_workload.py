"""The mix of requests is the same for the same seed, and within its bounds."""

import math

import pytest

from tpuinfer.benchmark.workload import Blank, Item, describe, mixed, prompt_ids

PINNED = [(149, 29), (207, 170), (216, 105)]
"""Prompt and answer of the first three requests of the default mix."""


def test_the_same_seed_gives_the_same_mix():
    assert mixed(8, 100, seed=3) == mixed(8, 100, seed=3)
    assert mixed(8, 100, seed=3) != mixed(8, 100, seed=4)


def test_a_shorter_mix_begins_a_longer_one():
    assert mixed(4, 100) == mixed(8, 100)[:4]


def test_the_default_mix_never_changes():
    """Figures of different days are compared: this pins what they were measured with."""
    mix = [(len(item.prompt), item.new_tokens) for item in mixed(64, 49152)]
    assert mix[:3] == PINNED
    assert describe(mixed(64, 49152)).startswith("64 requests: prompts of ")


def test_lengths_and_ids_stay_in_their_ranges():
    items = mixed(500, 7, prompt=(2, 4), output=(1, 3))
    assert {len(item.prompt) for item in items} == {2, 3, 4}
    assert {item.new_tokens for item in items} == {1, 2, 3}
    assert {token for item in items for token in item.prompt} == set(range(7))


def test_a_long_tail_has_many_short_ones_and_a_few_of_the_longest():
    items = mixed(2000, 7, prompt=(4, 64), output=(8, 256), lengths="long-tailed")
    answers = sorted(item.new_tokens for item in items)
    assert answers[0] == 8
    assert 250 < answers[-1] <= 256
    assert {len(item.prompt) for item in items} == set(range(4, 65))
    assert answers[1000] == pytest.approx((8 * 256) ** 0.5, rel=0.1), "the median is in the middle"
    assert sum(answers) / 2000 == pytest.approx((256 - 8) / math.log(256 / 8), rel=0.05)


def test_prompts_differ_from_one_another():
    items = mixed(20, 1000, prompt=(8, 8))
    assert len({item.prompt for item in items}) == 20
    assert prompt_ids(8, 1000) == prompt_ids(8, 1000)


def test_a_mix_in_words():
    items = [Item((1, 2), 3), Item((4,), 5)]
    assert describe(items) == (
        "2 requests: prompts of 1 to 2 tokens (3 in all), answers of 3 to 5 (8 in all)"
    )


def test_a_vocabulary_without_words():
    letters = Blank(30).detokenizer()
    assert [letters.push(token) for token in (0, 25, 26)] == ["a", "z", "a"]
    assert letters.flush() == ""
