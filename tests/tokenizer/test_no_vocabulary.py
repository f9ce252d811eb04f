"""A checkpoint without a tokenizer: ids in, ids out, and text refused by name."""

import json
import logging
from pathlib import Path

import pytest

from tpuinfer.engine.engine import Engine
from tpuinfer.engine.request import Request, SamplingParams
from tpuinfer.errors import RequestError
from tpuinfer.testing.fake import FakeRunner
from tpuinfer.tokenizer.load import load_tokenizer
from tpuinfer.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def bare(tmp_path: Path) -> Tokenizer:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    return load_tokenizer(tmp_path, vocab_size=128)


def test_it_is_said_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_tokenizer(tmp_path, vocab_size=128)
    (record,) = caplog.records
    assert "has no tokenizer: prompts and answers are token ids only" in record.message


def test_ids_have_no_text(bare: Tokenizer) -> None:
    assert (bare.vocab_size, bare.eos_ids, bare.bos_id) == (128, (7,), None)
    assert not bare.has_text
    assert not bare.has_chat_template
    assert bare.decode([1, 2, 3]) == ""
    assert (bare.token_bytes(3), bare.token_text(3)) == (b"", "")


def test_text_is_refused(bare: Tokenizer) -> None:
    for parse_special in (True, False):
        with pytest.raises(RequestError, match=r"send token ids in \[0, 127\]") as caught:
            bare.encode("hello", parse_special=parse_special)
        assert caught.value.param == "prompt"
    with pytest.raises(RequestError, match="no tokenizer"):
        bare.vocabulary.encode_cut(["hello"])
    with pytest.raises(RequestError, match="no chat template"):
        bare.encode_chat([{"role": "user", "content": "hello"}])


def test_an_engine_serves_ids_and_refuses_stop_strings(bare: Tokenizer) -> None:
    engine = Engine(FakeRunner(1, capacity=64), bare)
    with pytest.raises(RequestError, match=r"stop is set.*stop_token_ids") as caught:
        engine.add(Request("a", (1, 2), SamplingParams(stop="x")))
    assert caught.value.param == "stop"
    engine.add(Request("a", (1, 2), SamplingParams(temperature=0, max_tokens=9)))
    deltas = []
    while engine.has_work:
        deltas += engine.step()
    assert [token for delta in deltas for token in delta.token_ids] == [3, 4, 5, 6, 7]
    assert (deltas[-1].finish_reason, "".join(delta.text for delta in deltas)) == ("stop", "")
