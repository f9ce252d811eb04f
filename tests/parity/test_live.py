"""The reference itself: on a small Llama of random weights, and against the goldens it made."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the parity extra (torch)")
pytest.importorskip("transformers", reason="needs the parity extra (transformers)")

from compare import compare_greedy, row_error
from golden_file import NEW_TOKENS, STEPS, Golden, load, probe_ids
from torch_reference import Reference, summarise

from tpuinfer.checkpoint.catalogue import find
from tpuinfer.checkpoint.fetch import fetch
from tpuinfer.checkpoint.load import default_cache_dir

pytestmark = pytest.mark.parity

VOCAB = 128
PROMPT = [5, 77, 3, 120, 9]


@pytest.fixture(scope="module")
def reference():
    return Reference.random_llama(
        seed=1,
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )


@pytest.fixture(scope="module")
def golden(reference):
    tokens = reference.greedy(PROMPT, NEW_TOKENS)
    rows = summarise(reference.logits(PROMPT, tokens), probe_ids(VOCAB))
    return Golden("random llama", "", PROMPT, tokens, rows)


def test_tokens_from_the_cache_are_the_best_of_the_rows_without_one(reference, golden):
    logits = reference.logits(PROMPT, golden.tokens)
    assert logits.shape == (NEW_TOKENS + 1, VOCAB)
    assert compare_greedy(logits[:-1].argmax(axis=-1).tolist(), golden).matched == NEW_TOKENS
    assert len(set(golden.tokens)) > 3


@pytest.mark.parametrize("step", STEPS)
def test_its_own_rows_agree_and_another_prompts_rows_do_not(reference, golden, step):
    probes = probe_ids(VOCAB)
    own = reference.logits(PROMPT, golden.tokens)[step]
    other = reference.logits([*PROMPT[:-1], 10], golden.tokens)[step]
    assert row_error(own, golden, step, probes) < 1e-6
    assert row_error(other, golden, step, probes) > 1e-4


def test_weights_are_copies_under_hugging_face_names(reference):
    weights = reference.weights()
    assert "lm_head.weight" not in weights
    assert weights["model.layers.1.self_attn.k_proj.weight"].shape == (16, 48)
    norm = weights["model.norm.weight"]
    assert norm.std() > 0.1
    norm[:] = 0
    assert np.any(reference.weights()["model.norm.weight"])


@pytest.mark.model
def test_the_goldens_are_what_this_transformers_answers():
    path = fetch(find("smollm2-135m-instruct"), default_cache_dir() / "downloads")
    reference = Reference.from_gguf(path)
    file = load()
    for golden in file.goldens:
        if golden.name in ("one-letter", "chat-short"):
            logits = reference.logits(golden.prompt_ids, golden.tokens)
            errors = [row_error(logits[step], golden, step, file.probe_ids) for step in STEPS]
            assert max(errors) < 1e-5
            assert compare_greedy(logits[:-1].argmax(axis=-1).tolist(), golden).ok
