"""The engine on real weights against what transformers answered: logits, tokens, meshes."""

import numpy as np
import pytest
from compare import compare_greedy, row_error
from engine_side import Scorer
from golden_file import NEW_TOKENS, STEPS, load

from tpuinfer import LLM, SamplingParams

pytestmark = pytest.mark.model

LOGIT_ERROR = 1e-4
LOGPROB_ERROR = 1e-3
GREEDY = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=0)


@pytest.fixture(scope="module")
def stored():
    return load()


@pytest.fixture(scope="module")
def answers(llm, stored):
    outputs = llm.generate([golden.prompt_ids for golden in stored.goldens], GREEDY)
    return [output.outputs[0] for output in outputs]


def test_no_program_needs_scratch_of_the_size_of_the_rings(llm):
    entries = {entry.name: entry for entry in llm.programs()}
    assert not entries.pop("mask").alias_bytes + entries.pop("bias").alias_bytes, "they keep none"
    for entry in entries.values():
        assert 0 < entry.temp_bytes < entry.alias_bytes / 4, entry


def test_logits_agree_with_transformers(llm, stored):
    scorer = Scorer(llm.plan)
    worst = 0.0
    for golden in stored.goldens:
        ids = [*golden.prompt_ids, *golden.tokens]
        positions = [len(golden.prompt_ids) - 1 + step for step in STEPS]
        rows = scorer.logits(ids, positions)
        errors = [
            row_error(row, golden, step, stored.probe_ids)
            for row, step in zip(rows, STEPS, strict=True)
        ]
        worst = max(worst, *errors)
        assert max(errors) < LOGIT_ERROR, f"{golden.name}: {max(errors):.2e}"
    print(f"worst relative logit error {worst:.2e} over {len(stored.goldens)} prompts")


def test_greedy_tokens_agree_with_transformers(answers, stored):
    agreements = [
        compare_greedy(answer.token_ids, golden)
        for answer, golden in zip(answers, stored.goldens, strict=True)
    ]
    assert [agreement.note for agreement in agreements if not agreement.ok] == []
    assert sum(agreement.matched for agreement in agreements) > 0.9 * NEW_TOKENS * len(agreements)


def test_log_probabilities_agree_with_transformers(answers, stored):
    for answer, golden in zip(answers, stored.goldens, strict=True):
        agreed = compare_greedy(answer.token_ids, golden).matched
        for index, step in enumerate(STEPS):
            if step < agreed:
                rows = golden.rows
                want = rows.top_values[index, 0] - rows.logsumexps[step]
                assert answer.logprobs[step] == pytest.approx(want, abs=LOGPROB_ERROR)


def test_prompts_are_tokenized_as_in_the_goldens(llm, stored):
    for golden in stored.goldens:
        assert llm.tokenizer.encode(golden.text, parse_special=True) == golden.prompt_ids


@pytest.mark.parametrize("mesh", ["2x4", "8"])
def test_meshes_give_the_same_greedy_tokens(mesh, stored):
    few = [golden for golden in stored.goldens if len(golden.prompt_ids) <= 32][:6]
    assert len(few) >= 4
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    llm = LLM(mesh=mesh, dtype="float32", context=64)
    outputs = llm.generate([golden.prompt_ids for golden in few], params)
    for golden, output in zip(few, outputs, strict=True):
        tokens = output.outputs[0].token_ids
        assert np.array_equal(tokens, golden.tokens[:24]), golden.name


def test_the_answer_people_know(llm):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answer = llm.chat(question, SamplingParams(temperature=0, max_tokens=32))[0].outputs[0]
    assert answer.text == "The capital of France is Paris."
    assert answer.finish_reason == "stop"
