"""From a directory to vectors: `LLM.embed` on tiny encoders, against the numpy reference."""

import dataclasses
import random

import doors
import numpy as np
import pytest
from tiny_encoder import EVEN, ODD, VOCABULARY, random_weights, tokenizer, vector, write_directory

from tpuinfer import LLM
from tpuinfer.config import EngineConfig
from tpuinfer.engine import build
from tpuinfer.engine.encoder import encoder_plan_of
from tpuinfer.errors import ConfigError, RecompileError, RequestError, TokenizerError
from tpuinfer.model_config import Pooling
from tpuinfer.sharding.presets import PRESETS

MEAN = Pooling(mode="mean", normalise=True, max_tokens=32)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def text(chance, letters):
    """A text of so many letters, in words of one to four: as many tokens, and two."""
    words = []
    while letters:
        size = min(chance.randint(1, 4), letters)
        words.append("".join(chance.choices(LETTERS, k=size)))
        letters -= size
    return " ".join(words)


def texts_of(count, seed=0, longest=30):
    chance = random.Random(seed)
    return [text(chance, chance.randint(0, longest)) for _ in range(count)]


def wanted(config, texts, pooling=MEAN):
    ids = [tokenizer().encode(one).ids for one in texts]
    return np.stack([vector(config, random_weights(config), one, pooling) for one in ids])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_directory(tmp_path_factory.mktemp("odd") / "odd", ODD)


@pytest.fixture(scope="module")
def llm(directory, cache):
    return LLM(directory, cache_dir=cache, strict_compile=True)


def test_vectors_are_the_references(llm):
    texts = texts_of(40)
    out = llm.embed(texts)
    assert (out.shape, out.dtype) == ((40, ODD.embed), np.float32)
    np.testing.assert_allclose(out, wanted(ODD, texts), atol=1e-5)


def test_one_text_or_ids_or_none(llm):
    (alone,) = llm.embed("abc")
    ids = tokenizer().encode("abc").ids
    np.testing.assert_array_equal(alone, llm.embed(ids)[0])
    np.testing.assert_array_equal(alone, llm.embed([ids, "x"])[0])
    assert llm.embed([]).shape == (0, ODD.embed)
    np.testing.assert_array_equal(alone, next(llm.embed_stream(iter(["abc"]))))


def test_control_tokens_that_a_user_types_are_plain_text(llm):
    typed = llm.embed("[SEP]")[0]
    assert not np.allclose(typed, llm.embed([[2, VOCABULARY["[SEP]"], 3]])[0], atol=1e-3)


def test_bits_depend_on_neither_neighbours_nor_place_nor_load(llm):
    texts = texts_of(60, seed=1)
    alone = {one: llm.embed(one)[0].tobytes() for one in texts}
    chance = random.Random(2)
    for _ in range(4):
        some = chance.choices(texts, k=chance.randint(2, 60))
        for one, out in zip(some, llm.embed(some), strict=True):
            assert out.tobytes() == alone[one]


def test_nothing_compiles_after_warm_up(llm):
    llm.embed(texts_of(50, seed=3))
    assert llm._embedder.recompiles == 0
    names = [entry.name for entry in llm.programs()]
    assert names == ["encode_4x32"]
    assert llm.programs()[0].shapes == "tokens i32[4,32], length i32[4]"
    assert llm.programs()[0].alias_bytes == 0


def test_a_call_that_no_program_takes_is_heard_of(directory, cache):
    llm = LLM(directory, cache_dir=cache, strict_compile=True)
    embedder = llm._embedder
    embedder._sizes[32] = (4, 5)
    with pytest.raises(RecompileError, match=r"tokens is i32\[5,32\], compiled for i32\[4,32\]"):
        llm.embed("abc")
    assert embedder.recompiles == 1


def test_limit_is_the_checkpoints_or_up_to_the_encoders(llm, directory, cache):
    long = " ".join("abcdefgh" * 5)[: 2 * 31 - 1]
    with pytest.raises(RequestError, match=r"texts\[0\] has 33 tokens .* at most 32"):
        llm.embed(long)
    cut = llm.embed(long, truncate=True)
    np.testing.assert_array_equal(cut, llm.embed(long[: 2 * 30 - 1]))
    longer = LLM(directory, cache_dir=cache, context=40)
    np.testing.assert_allclose(longer.embed(long), wanted(ODD, [long]), atol=1e-5)
    assert [entry.name for entry in longer.programs()] == ["encode_4x32", "encode_3x40"]
    with pytest.raises(ConfigError, match=r"context is 41, .* at most 40; nearest: 40"):
        LLM(directory, cache_dir=cache, context=41)


@pytest.mark.parametrize("config", [ODD, EVEN], ids=["odd", "even"])
def test_a_mesh_gives_the_same_vectors(config, tmp_path, cache):
    files = {"1_Pooling/config": {"pooling_mode_cls_token": True}, "sentence_bert_config": None}
    path = write_directory(tmp_path / "model", config, **files)
    llm = LLM(path, mesh="2x4", cache_dir=cache)
    texts = texts_of(9, seed=4)
    pooling = Pooling("cls", normalise=True)
    np.testing.assert_allclose(llm.embed(texts), wanted(config, texts, pooling), atol=1e-5)
    alone = [llm.embed(one)[0] for one in texts]
    np.testing.assert_array_equal(llm.embed(texts[::-1])[::-1], alone)
    assert {row.name for row in llm.sharding()} >= {"layers.*.self_attn.q_proj.weight"}


def test_auto_is_float32_and_bfloat16_is_near(directory, cache, llm):
    assert llm.plan.dtype == "float32"
    half = LLM(directory, cache_dir=cache, dtype="bfloat16")
    texts = texts_of(8, seed=5)
    error = np.abs(half.embed(texts) - llm.embed(texts)).max()
    assert 1e-5 < error < 0.1


def test_prompts_of_the_checkpoint(tmp_path, cache):
    prompts = {"prompts": {"query": "find: "}, "default_prompt_name": None}
    path = write_directory(tmp_path / "model", ODD, config_sentence_transformers=prompts)
    llm = LLM(path, cache_dir=cache)
    np.testing.assert_array_equal(llm.embed("abc", prompt="query"), llm.embed("find: abc"))


def test_an_encoder_makes_no_text(llm):
    for ask in (llm.generate, llm.chat):
        with pytest.raises(RequestError, match=r"encoder \(bert\): .* nearest: LLM\.embed"):
            ask(["abc"])


def test_a_front_door_that_makes_text_refuses_an_encoder_in_one_line(directory, cache):
    with pytest.raises(ConfigError, match=r"is an encoder \(bert\): .* nearest: in Python, LLM"):
        build.make_plan(directory, cache_dir=cache)
    flags = ("--model", str(directory), "--cache-dir", str(cache))
    done = doors.run("generate", *flags, "--prompt", "x")
    last = done.err.splitlines()[-1]
    assert (done.code, done.out) == (2, "")
    assert last.startswith(f"tpuinfer: {directory} is an encoder")
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (EngineConfig.parse(16), "slots is 16: an encoder keeps nothing between texts"),
        (EngineConfig.parse("4x32,4x16"), "slots is 4,4: an encoder"),
        (EngineConfig.parse(8, context_policy="roll"), "context-policy is roll"),
        (EngineConfig.parse(8, sinks=2), "sinks is 2"),
        (EngineConfig.parse(8, prefill_wait_ms=5.0), "prefill-wait-ms is 5.0"),
    ],
)
def test_settings_of_decoders_are_refused_by_name(engine, message):
    with pytest.raises(ConfigError, match=message):
        encoder_plan_of(ODD, MEAN, engine=engine)


def test_widths_and_rows_follow_from_the_platform():
    plan = encoder_plan_of(dataclasses.replace(ODD, positions=300), Pooling())
    assert plan.sizes == ((4, 32), (2, 64), (1, 128), (1, 256), (1, 300))
    simulated = encoder_plan_of(dataclasses.replace(ODD, positions=300), Pooling(), mesh="2x4")
    assert simulated.sizes == ((1, 128), (1, 256), (1, 300))


def test_a_tokenizer_of_another_model_is_refused(tmp_path, cache):
    path = write_directory(tmp_path / "model", dataclasses.replace(ODD, vocab=50))
    with pytest.raises(TokenizerError, match=r"tokenizer knows 58 ids, .* 50 rows"):
        LLM(path, cache_dir=cache)


def test_rows_may_lie_on_every_device():
    """An encoder has no slots that would have to divide."""
    layout = encoder_plan_of(EVEN, Pooling(), mesh="2x2", rules=PRESETS["data"]).layout
    assert (layout.shards("batch"), layout.shards("mlp")) == (4, 1)
