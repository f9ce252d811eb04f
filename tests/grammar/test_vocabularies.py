"""Grammars over vocabularies as they are published: what is guided is the text that comes out."""

import io
import json
import random
import re

import jsonschema
import pytest
import sentencepiece
from guided import allowed, walk
from schemas import schema as made_up

from tpuinfer.checkpoint.catalogue import find
from tpuinfer.checkpoint.fetch import fetch
from tpuinfer.checkpoint.gguf import open_gguf
from tpuinfer.checkpoint.load import default_cache_dir
from tpuinfer.grammar.compiler import GrammarCompiler
from tpuinfer.grammar.guide import Guide
from tpuinfer.tokenizer.gguf_vocab import tokenizer_files
from tpuinfer.tokenizer.load import load_tokenizer
from tpuinfer.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module", params=[True, False], ids=["dummy-prefix", "plain"])
def sentences(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world the cat sat", "the quick brown fox"] * 20),
        model_writer=model,
        vocab_size=310,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        control_symbols=["<c>"],
        add_dummy_prefix=request.param,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    folder = tmp_path_factory.mktemp("sentences")
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = fetch(find("smollm2-135m-instruct"), default_cache_dir() / "downloads")
    folder = tmp_path_factory.mktemp("smollm2")
    for name, data in tokenizer_files(open_gguf(path).metadata).items():
        (folder / name).write_bytes(data)
    return load_tokenizer(folder)


@pytest.mark.parametrize("pattern", ["the cat", " the  cat", "( ?[a-z]+){1,4}", "[ \u00e9\u20ac]+"])
def test_walks_over_sentencepiece_give_the_text_asked_for(
    sentences: Tokenizer, pattern: str
) -> None:
    vocab = sentences.vocab_size
    grammar = GrammarCompiler(sentences, vocab + 10).compile(Guide("regex", pattern))
    rng = random.Random(pattern)
    whole = 0
    for _ in range(20):
        taken = walk(grammar.matcher(), rng, sentences.eos_ids, vocab + 10, most=40)
        if taken is not None:
            whole += 1
            assert re.fullmatch(pattern, sentences.decode(taken)), taken
    assert whole > 5


def test_the_usual_spelling_of_a_text_is_allowed_from_its_first_token(
    sentences: Tokenizer,
) -> None:
    grammar = GrammarCompiler(sentences, sentences.vocab_size).compile(Guide("regex", "the cat"))
    matcher = grammar.matcher()
    for token in sentences.encode("the cat", add_special_tokens=False):
        assert token in allowed(matcher, sentences.vocab_size)
        matcher.take(token)
    assert matcher.done


@pytest.mark.model
def test_walks_over_a_real_vocabulary_conform(smollm2: Tokenizer) -> None:
    compiler = GrammarCompiler(smollm2, smollm2.vocab_size)
    rng = random.Random(3)
    controls = set(smollm2.controls.values())
    whole = 0
    for _ in range(40):
        condition = made_up(rng)
        matcher = compiler.compile(Guide("json_schema", json.dumps(condition))).matcher()
        taken = walk(matcher, rng, smollm2.eos_ids, smollm2.vocab_size, most=100)
        if taken is not None:
            whole += 1
            assert not controls.intersection(taken)
            jsonschema.Draft202012Validator(
                condition, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
            ).validate(json.loads(smollm2.decode(taken)))
    assert whole > 20


@pytest.mark.model
def test_no_control_token_of_a_real_vocabulary_passes_for_text(smollm2: Tokenizer) -> None:
    compiler = GrammarCompiler(smollm2, smollm2.vocab_size)
    ids = allowed(compiler.compile(Guide("regex", "(?s:.)+")).matcher(), smollm2.vocab_size)
    assert len(ids) > 48_000
    assert not set(ids).intersection(smollm2.controls.values())
    named = compiler.compile(Guide("grammar", 'start: <|im_start|> "a"')).matcher()
    assert allowed(named, smollm2.vocab_size) == [smollm2.controls["<|im_start|>"]]
