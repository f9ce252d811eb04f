from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpuinfer.tokenizer.detokenize import Detokenizer, StopChecker
from tpuinfer.tokenizer.load import load_tokenizer
from tpuinfer.tokenizer.vocabulary import TokenTable

_SHARED_FIXTURES = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

BYTES = TokenTable(pieces=[bytes([b]) for b in range(256)], control=frozenset({0}))


def _decode(detokenizer: Detokenizer, ids: Sequence[int]) -> str:
    return "".join([*map(detokenizer.push, ids), detokenizer.flush()])


@_SHARED_FIXTURES
@given(data=st.data(), skip=st.booleans())
def test_any_bpe_ids_decode_as_the_library_does(
    bpe_dir: Path, data: st.DataObject, skip: bool
) -> None:
    tokenizer = load_tokenizer(bpe_dir)
    library = tokenizers.Tokenizer.from_file(str(bpe_dir / "tokenizer.json"))
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12))
    row = tokenizer.detokenizer(skip_special_tokens=skip)
    assert _decode(row, ids) == library.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("dummy_prefix", [True, False])
@pytest.mark.parametrize("remove_spaces", [True, False])
@_SHARED_FIXTURES
@given(data=st.data())
def test_any_sentencepiece_ids_decode_as_the_library_does(
    train_sentencepiece: Callable[..., bytes],
    tmp_path: Path,
    dummy_prefix: bool,
    remove_spaces: bool,
    data: st.DataObject,
) -> None:
    path = tmp_path / "tokenizer.model"
    if not path.exists():
        path.write_bytes(
            train_sentencepiece(
                add_dummy_prefix=dummy_prefix, remove_extra_whitespaces=remove_spaces
            )
        )
    tokenizer = load_tokenizer(tmp_path)
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    edges = ["\u2581", "\u2581the", "<c>", "<u>", "<unk>", "<0x20>", "<0xE2>", "<0x82>", "<0xAC>"]
    edge = st.sampled_from([library.piece_to_id(piece) for piece in edges])
    token = st.one_of(edge, st.integers(0, tokenizer.vocab_size - 1))
    ids = data.draw(st.lists(token, max_size=12))
    assert _decode(tokenizer.detokenizer(), ids) == library.decode(ids)


def test_a_character_comes_whole_with_its_last_byte() -> None:
    row = Detokenizer(BYTES)
    assert [row.push(b) for b in "a🙂é".encode()] == ["a", "", "", "", "🙂", "", "é"]
    assert row.flush() == ""


def test_a_character_cut_short_is_replaced_once() -> None:
    row = Detokenizer(BYTES)
    assert [row.push(b) for b in "🙂".encode()[:3]] == ["", "", ""]
    assert row.flush() == "\ufffd"
    assert row.flush() == ""


def test_byte_fallback_replaces_every_byte() -> None:
    row = Detokenizer(TokenTable(pieces=BYTES.pieces, byte_fallback=True))
    assert _decode(row, "🙂".encode()[:3]) == "\ufffd" * 3


def test_a_control_token_ends_a_character_only_where_it_cuts() -> None:
    euro = "€".encode()
    ids = [euro[0], euro[1], 0, euro[2]]
    assert _decode(Detokenizer(BYTES), ids) == "€"
    table = TokenTable(BYTES.pieces, BYTES.control, byte_fallback=True, control_cuts=True)
    assert _decode(Detokenizer(table), ids) == "\ufffd" * 3


@pytest.mark.parametrize(("run", "text"), [(False, " a b"), (True, "a b")])
def test_spaces_that_open_a_text(run: bool, text: str) -> None:
    pieces = [b" ", b" a", b" b"]
    table = TokenTable(pieces, opening=frozenset({0, 1, 2}), opening_run=run)
    assert _decode(Detokenizer(table), [0, 1, 2]) == text


def test_control_tokens_are_skipped_unless_asked_for() -> None:
    assert _decode(Detokenizer(BYTES), [65, 0, 66]) == "AB"
    assert _decode(Detokenizer(BYTES, skip_special_tokens=False), [65, 0, 66]) == "A\0B"


@pytest.mark.parametrize("token", [-1, 256])
def test_ids_outside_the_vocabulary_add_nothing(token: int) -> None:
    assert _decode(Detokenizer(BYTES), [65, token, 66]) == "AB"


def _expected(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """By definition: the stop that completes first, the longest of those that complete there."""
    hits = [(text.find(s) + len(s), -len(s), s) for s in stops if s in text]
    if not hits:
        return text, None
    end, _, stop = min(hits)
    return text[: end - len(stop)], stop


def _held(text: str, stops: Sequence[str]) -> int:
    """Length of the longest suffix of `text` that begins a stop string."""
    prefixes = [s[:n] for s in stops for n in range(1, len(s))]
    return max((len(p) for p in prefixes if text.endswith(p)), default=0)


_WORD = st.text("ab", min_size=1, max_size=5)


@given(st.lists(_WORD, max_size=4), st.lists(st.text("abc", max_size=5), max_size=8))
def test_stop_strings_against_the_definition(stops: list[str], chunks: list[str]) -> None:
    checker = StopChecker(stops)
    seen = emitted = ""
    hit = None
    for chunk in chunks:
        seen += chunk
        text, hit = checker.push(chunk)
        emitted += text
        if hit is not None:
            break
        assert emitted == seen[: len(seen) - _held(seen, stops)]
    assert (emitted + checker.flush(), hit) == _expected(seen, stops)


def test_text_that_may_begin_a_stop_is_held_until_it_cannot() -> None:
    checker = StopChecker(["</s>", "s>a"])
    assert checker.push("x</s") == ("x", None)
    assert checker.push("!") == ("</s!", None)
    assert checker.push("s>") == ("", None)
    assert checker.flush() == "s>"


def test_a_shorter_stop_inside_a_longer_one_wins_when_complete_first() -> None:
    assert StopChecker(["abcd", "bc"]).push("xabcd") == ("xa", "bc")


def test_among_stops_complete_at_once_the_longest_wins() -> None:
    assert StopChecker(["b", "ab"]).push("xab") == ("x", "ab")


def test_after_a_hit_nothing_more_is_emitted() -> None:
    checker = StopChecker(["."])
    assert checker.push("one. two") == ("one", ".")
    assert checker.push("three") == ("", ".")
    assert checker.flush() == ""


def test_without_stops_text_passes_through() -> None:
    checker = StopChecker([])
    assert checker.push("any") == ("any", None)
    assert checker.flush() == ""
