import random
import re

import numpy as np
import pytest
from guided import Spelled, accepts, allowed, follow, matcher_of, walk

from tpuinfer.grammar.compiler import GrammarCompiler
from tpuinfer.grammar.guide import Guide
from tpuinfer.testing.fake import FakeTokenizer
from tpuinfer.tokenizer.detokenize import Detokenizer
from tpuinfer.tokenizer.vocabulary import TokenTable


def codes(text: str) -> list[int]:
    return [ord(char) for char in text]


def test_a_mask_allows_what_may_come_next_and_is_overwritten_whole() -> None:
    matcher = matcher_of("regex", "a[bc]?")
    assert allowed(matcher) == [97]
    matcher.take(97)
    assert allowed(matcher) == [0, 98, 99]
    assert not matcher.done
    matcher.take(98)
    assert matcher.done
    assert allowed(matcher) == [0]


def test_taking_an_end_token_ends_a_text_that_could_go_on() -> None:
    matcher = matcher_of("regex", "a*")
    matcher.take(97)
    matcher.take(0)
    assert matcher.done
    assert matcher.error is None


def test_every_end_token_is_allowed_once_the_text_is_complete() -> None:
    tokens = FakeTokenizer(eos_ids=(0, 3))
    matcher = matcher_of("regex", "ab?", tokens)
    assert allowed(matcher) == [97]
    matcher.take(97)
    assert allowed(matcher) == [0, 3, 98]


def test_a_model_without_end_tokens_ends_by_being_done() -> None:
    matcher = matcher_of("choice", '["ab"]', FakeTokenizer(eos_ids=()))
    assert walk(matcher, random.Random(0), (), 128) == codes("ab")
    assert matcher.done


def test_a_complete_text_that_this_vocabulary_cannot_prolong_is_done() -> None:
    matcher = matcher_of("regex", "a\u00e9?", FakeTokenizer(eos_ids=()))
    matcher.take(97)
    assert allowed(matcher) == []
    assert matcher.done
    assert matcher.error is None


def test_a_token_that_the_mask_forbids_is_an_error_that_stays() -> None:
    matcher = matcher_of("regex", "ab")
    matcher.take(99)
    assert matcher.error is not None
    assert "\n" not in matcher.error
    assert not matcher.done
    matcher.take(97)
    assert matcher.error is not None
    assert allowed(matcher) == [0]


@pytest.mark.parametrize("token", [-1, 128, 10**6])
def test_an_id_outside_the_vocabulary_is_an_error(token: int) -> None:
    matcher = matcher_of("regex", "ab")
    matcher.take(token)
    assert matcher.error == f"token {token} is not one that the text can have"


def test_matchers_of_one_grammar_are_independent() -> None:
    grammar = GrammarCompiler(FakeTokenizer(), 128).compile(Guide("regex", "ab|cd"))
    one, other = grammar.matcher(), grammar.matcher()
    one.take(97)
    assert allowed(one) == [98]
    assert allowed(other) == [97, 99]
    assert allowed(grammar.matcher()) == [97, 99]


def test_ids_that_the_model_scores_and_nothing_spells_are_never_allowed() -> None:
    grammar = GrammarCompiler(FakeTokenizer(), 200).compile(Guide("regex", "(?s:.)*"))
    assert allowed(grammar.matcher(), 200) == list(range(128))


def test_ids_that_the_model_does_not_score_are_never_allowed() -> None:
    grammar = GrammarCompiler(FakeTokenizer(), 100).compile(Guide("regex", "[a-z]+"))
    assert allowed(grammar.matcher(), 100) == [97, 98, 99]


def test_a_text_that_the_vocabulary_cannot_go_on_with_is_an_error_not_an_empty_mask() -> None:
    matcher = matcher_of("regex", "a\u00e9")
    matcher.take(97)
    assert allowed(matcher) == [0]
    assert matcher.error is not None


def test_all_spellings_of_a_text_are_allowed() -> None:
    tokens = Spelled([b"ab", b"abc", b"bc", b"x"])
    matcher = matcher_of("choice", '["abc"]', tokens)
    assert allowed(matcher, 132) == [97, 128, 129]
    matcher.take(97)
    assert allowed(matcher, 132) == [98, 130]


def test_part_of_a_character_is_allowed_where_the_rest_can_follow() -> None:
    tokens = Spelled([b"\xc3", b"\xa9", b"\xaa"])
    matcher = matcher_of("choice", '["\u00e9"]', tokens)
    assert allowed(matcher, 131) == [128]
    matcher.take(128)
    assert allowed(matcher, 131) == [129]


def test_a_control_token_never_passes_for_text() -> None:
    tokens = Spelled([b"{", b"<tool>"], controls={"{": 128, "<tool>": 129})
    assert allowed(matcher_of("json_object", "", tokens), 130) == [ord("{")]
    free = matcher_of("regex", "(?s:.)*", tokens)
    assert not {128, 129}.intersection(allowed(free, 130))


def test_a_grammar_asks_for_control_tokens_by_number_or_name() -> None:
    tokens = Spelled([b"<tool>"], controls={"<tool>": 128})
    for mark in ("<[128]>", "<tool>"):
        matcher = matcher_of("grammar", f'start: {mark} "b"', tokens)
        assert allowed(matcher, 129) == [128]
        matcher.take(128)
        assert allowed(matcher, 129) == [98]
    assert allowed(matcher_of("grammar", 'start: "<tool>"', tokens), 129) == [ord("<")]


def test_the_space_that_opens_a_sentencepiece_text_is_not_part_of_it() -> None:
    pieces = [bytes([code]) for code in range(128)] + [b" a", b" ", b"  a"]
    table = TokenTable(pieces, control=frozenset({0}), opening=frozenset({32, 128, 129, 130}))
    openers = {32: b"", 128: b"a", 129: b"", 130: b" a"}
    tokens = Spelled(pieces[128:], openers=openers)
    rng = random.Random(5)
    for pattern, first in [("a a", [97, 128]), (" a", [130]), ("(a| )+", [97, 128, 130])]:
        assert allowed(matcher_of("regex", pattern, tokens), 131) == first
        for _ in range(10):
            taken = walk(matcher_of("regex", pattern, tokens), rng, (0,), 131)
            detokenizer = Detokenizer(table)
            text = "".join(map(detokenizer.push, taken or []))
            assert re.fullmatch(pattern, text)
    later = matcher_of("regex", "a a", tokens)
    later.take(128)
    assert allowed(later, 131) == [32, 128, 129]


@pytest.mark.parametrize(
    "pattern",
    [
        r"(\d{3}-){2}\d{4}",
        r"[a-f]+|x{2,5}y?",
        r"(yes|no)( \w+){0,3}",
        r"^\s*(-?[0-9]+(\.[0-9]+)?)$",
        r"[^a-z]{1,4}",
        r"(a|ab)(c|bcd)*",
        r"(?i:hello) (world|\[.\])",
    ],
)
def test_walks_through_a_regex_are_what_python_matches(pattern: str) -> None:
    rng = random.Random(pattern)
    compiler = GrammarCompiler(FakeTokenizer(), 128)
    whole = 0
    for _ in range(20):
        matcher = compiler.compile(Guide("regex", pattern)).matcher()
        taken = walk(matcher, rng, (0,), 128)
        if taken is not None:
            whole += 1
            assert re.fullmatch(pattern, "".join(map(chr, taken)), re.ASCII), taken
    assert whole > 10


def test_choices_are_exact() -> None:
    choices = '["yes", "yes, sir", "no\\n", "a\\"b/\\\\"]'
    for good in ("yes", "yes, sir", "no\n", 'a"b/\\'):
        assert accepts("choice", choices, good)
    for bad in ("", "ye", "yes,", "no", "yess", "\n"):
        assert not accepts("choice", choices, bad)


def test_a_grammar_of_rules_is_followed() -> None:
    grammar = 'start: sum\nsum: NUM ("+" sum)?\nNUM: /[0-9]{1,3}/'
    assert accepts("grammar", grammar, "1+22+333")
    assert not accepts("grammar", grammar, "1+")
    assert not accepts("grammar", grammar, "1234")


def test_an_object_may_be_spaced_but_not_without_end() -> None:
    for good in ('{"a":1}', '{"a": [1, 2]}', '{\n    "a": {\n\t"b": null\n}\n}', "{ }"):
        assert accepts("json_object", "", good), good
    for bad in ("[]", "1", '{"a":  1}', "{\n\n}", " {}", "{} ", "{\n" + " " * 25 + "}"):
        assert not accepts("json_object", "", bad), bad


def test_filling_leaves_the_state_alone() -> None:
    matcher = matcher_of("json_object")
    words = [np.zeros(4, np.int32) for _ in range(2)]
    for mask in words:
        matcher.fill(mask)
    assert (words[0] == words[1]).all()
    assert follow(matcher, codes('{"a": 1}'))
