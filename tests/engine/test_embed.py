"""`Embedder` on programs whose arithmetic is done by hand: a text's vector is (sum, width)."""

from types import SimpleNamespace

import numpy as np
import pytest

from tpuinfer.engine.embed import Embedder
from tpuinfer.errors import RequestError
from tpuinfer.model_config import Pooling
from tpuinfer.programs.encode import encode_name

SIZES = ((3, 4), (2, 8), (1, 10))
"""(rows, width)."""


MEAN = Pooling()


class Letters:
    """Each letter is its code; 1 opens a text and 2 ends it."""

    suffix_ids = (2,)

    def encode(self, text, *, parse_special):
        assert not parse_special
        return [1, *map(ord, text), 2]


class Fake:
    """Stands in for compiled programs, and notes what they were given."""

    def __init__(self, pooling=MEAN):
        self.calls = []
        self.embedder = Embedder({}, Letters(), pooling, sizes=SIZES, shards=1, vocab=200, limit=10)
        for rows, width in SIZES:
            self.embedder.programs[encode_name(rows, width)] = SimpleNamespace(call=self.call)

    def call(self, params, tokens, length):
        self.calls.append(tokens.shape)
        real = np.arange(tokens.shape[1])[None] < length[:, None]
        assert (tokens[~real] == 0).all()
        out = np.stack([tokens.sum(1), np.full(len(tokens), tokens.shape[1])], 1)
        return SimpleNamespace(
            copy_to_host_async=lambda: None, addressable_data=lambda _: out.astype(np.float32)
        )

    def embed(self, texts, **how):
        return [tuple(map(int, one)) for one in self.embedder.stream(texts, **how)]


@pytest.fixture
def fake():
    return Fake()


def by_hand(text, width):
    return (3 + sum(map(ord, text)), width)


def test_answers_come_in_the_order_of_the_texts(fake):
    texts = ["a", "abcd", "", "abcdefgh", "ab", "x", "y", "zz"]
    widths = [4, 8, 4, 10, 4, 4, 4, 4]
    assert fake.embed(texts) == [by_hand(*one) for one in zip(texts, widths, strict=True)]
    assert fake.calls == [(3, 4), (3, 4), (2, 8), (1, 10)]


def test_a_text_has_one_width_whatever_its_neighbours(fake):
    alone = fake.embed(["ab"])
    assert fake.embed(["abcdefgh", "abc", "ab"])[2] == alone[0] == by_hand("ab", 4)


def test_a_stream_takes_texts_as_it_needs_them(fake):
    taken = 0

    def texts():
        nonlocal taken
        for number in range(1000):
            taken = number + 1
            yield "abc"[: number % 4]

    stream = fake.embedder.stream(texts())
    assert taken == 0
    assert tuple(next(stream)) == by_hand("", 4)
    assert taken <= 100
    assert len(list(stream)) == 999


def test_token_ids_are_taken_as_they_are(fake):
    assert fake.embed([[5, 6], np.array([7])]) == [(11, 4), (7, 4)]


def test_prompts_go_before_strings_and_the_default_is_used_unasked():
    prompts = {"query": "q:", "none": ""}
    plain = Fake(Pooling(prompts=prompts))
    assert plain.embed(["a"]) == [by_hand("a", 4)]
    assert plain.embed(["a"], prompt="query") == [by_hand("q:a", 8)]
    usual = Fake(Pooling(prompts=prompts, default_prompt="query"))
    assert usual.embed(["a", [9]]) == [by_hand("q:a", 8), (9, 4)]
    assert usual.embed(["a"], prompt="none") == [by_hand("a", 4)]
    with pytest.raises(RequestError, match=r"prompt is 'passage', .* it has query, none"):
        plain.embed(["a"], prompt="passage")


def test_lower_case_comes_first():
    assert Fake(Pooling(lowercase=True)).embed(["AB"]) == [by_hand("ab", 4)]


def test_a_text_that_is_too_long_is_an_error_unless_it_may_be_cut(fake):
    with pytest.raises(RequestError, match=r"texts\[1\] has 11 tokens .* at most 10; truncate"):
        fake.embed(["a", "abcdefghi"])
    assert fake.calls == []
    assert fake.embed(["abcdefghi"], truncate=True) == [by_hand("abcdefgh", 10)]
    assert fake.embed([[*range(3, 14)]], truncate=True) == [(sum(range(3, 13)), 10)]
    assert fake.embed(["abcdefgh"]) == [by_hand("abcdefgh", 10)]


@pytest.mark.parametrize("bad", [[], [200], [-1], [1.5], ["a"]])
def test_ids_that_cannot_be_are_refused(fake, bad):
    with pytest.raises(RequestError, match=r"texts\[1\] has (no tokens|token)"):
        fake.embed(["a", bad])


@pytest.mark.parametrize("stray", [0, 1])
def test_warm_up_looks_whether_a_row_has_bits_of_its_own(fake, caplog, stray):
    """`stray` is added to the last row."""

    def call(params, tokens, length):
        out = fake.call(params, tokens, length)
        vectors = out.addressable_data(0)
        vectors[-1] += stray
        return SimpleNamespace(copy_to_host_async=lambda: None, addressable_data=lambda _: vectors)

    fake.embedder.add(SimpleNamespace(name="encode_3x4", call=call))
    assert fake.calls == [(3, 4)]
    said = [record.getMessage() for record in caplog.records]
    assert said == ["program encode_3x4: bits depend on a text's place here"] * stray


def test_no_text_is_no_vector(fake):
    assert fake.embed([]) == []
    assert fake.calls == []
