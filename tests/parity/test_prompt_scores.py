"""Log-probabilities of prompts on real weights, against one pass of transformers over each."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the parity extra (torch)")
pytest.importorskip("transformers", reason="needs the parity extra (transformers)")

from golden_file import load
from torch_reference import Reference

from tpuinfer import SamplingParams
from tpuinfer.checkpoint.catalogue import find
from tpuinfer.checkpoint.fetch import fetch
from tpuinfer.checkpoint.load import default_cache_dir

pytestmark = [pytest.mark.parity, pytest.mark.model]

ERROR = 1e-3
TOP = 5
SHORT = ("one-word", "code-python", "chat-turns")
ASKED = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=TOP, logprobs=TOP)


@pytest.fixture(scope="module")
def reference():
    path = fetch(find("smollm2-135m-instruct"), default_cache_dir() / "downloads")
    return Reference.from_gguf(path)


@pytest.fixture(scope="module")
def prompts(llm):
    """Name -> ids: a few short ones, and one of several chunks."""
    stored = {golden.name: golden.prompt_ids for golden in load().goldens}
    long = stored["long-prose"]
    assert len(long) > 2 * 256
    return {name: stored[name] for name in SHORT} | {"long-prose": long}


@pytest.fixture(scope="module")
def scored(llm, prompts):
    """What the engine says of all prompts at once."""
    return dict(zip(prompts, llm.generate(list(prompts.values()), ASKED), strict=True))


def log_softmax(rows):
    wide = rows.astype(np.float64)
    fall = wide - wide.max(axis=-1, keepdims=True)
    return fall - np.log(np.exp(fall).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("name", [*SHORT, "long-prose"])
def test_each_token_of_a_prompt_scores_as_in_transformers(reference, prompts, scored, name):
    ids, output = prompts[name], scored[name]
    expected = log_softmax(reference.logits(ids[:1], ids[1:]))
    assert len(output.prompt_logprobs) == len(output.prompt_top_logprobs) == len(ids)
    assert output.prompt_logprobs[0] is None
    assert output.prompt_top_logprobs[0] is None
    own = [expected[place, token] for place, token in enumerate(ids[1:])]
    np.testing.assert_allclose(output.prompt_logprobs[1:], own, atol=ERROR)
    for tops, row in zip(output.prompt_top_logprobs[1:], expected, strict=False):
        best = np.sort(row)[::-1][:TOP]
        np.testing.assert_allclose(list(tops.values()), best, atol=ERROR)
        np.testing.assert_allclose(list(tops.values()), row[list(tops)], atol=ERROR)
    after = output.outputs[0].top_logprobs[0]
    np.testing.assert_allclose(list(after.values()), expected[-1][list(after)], atol=ERROR)


def test_a_prompt_scores_the_same_bits_alone(llm, prompts, scored):
    (alone,) = llm.generate([prompts["long-prose"]], ASKED)
    assert alone.prompt_logprobs == scored["long-prose"].prompt_logprobs
    assert alone.prompt_top_logprobs == scored["long-prose"].prompt_top_logprobs


def test_answers_to_a_question_rank_as_in_transformers(llm, reference):
    """As lm-eval asks: context and continuation echoed with logprobs 1, one token made.

    It sums the continuation's log-probabilities, and looks whether each was the most likely token.
    """
    context = llm.tokenizer.encode("The capital of France is")
    asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
    endings = [llm.tokenizer.encode(end) for end in (" Paris", " London", " a green pear.")]
    outputs = llm.generate([context + end for end in endings], asked)
    sums = []
    for output, end in zip(outputs, endings, strict=True):
        own, tops = output.prompt_logprobs[-len(end) :], output.prompt_top_logprobs[-len(end) :]
        expected = log_softmax(reference.logits(context, end))[: len(end)]
        wanted = sum(row[token] for row, token in zip(expected, end, strict=True))
        assert sum(own) == pytest.approx(wanted, abs=ERROR * len(end))
        assert [next(iter(top)) for top in tops] == expected.argmax(axis=1).tolist()
        sums.append(sum(own))
    assert sums == sorted(sums, reverse=True)
