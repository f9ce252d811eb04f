"""Gemma 3 270M in its GGUF file against what transformers answered, where its windows wrap.

Its weights come under Gemma's terms of use: `-m 'not gemma'` leaves these tests out.
"""

import pytest
from compare import compare_greedy
from gemma_prompts import PROMPTS, WINDOW
from gemma_weights import SHA256, UnreachableError, fetch_gemma
from golden_file import GEMMA, NEW_TOKENS, STEPS, TOP, load

from tpuinfer import LLM, SamplingParams
from tpuinfer.checkpoint.load import default_cache_dir
from tpuinfer.errors import RequestError

pytestmark = pytest.mark.gemma

LOGPROB_ERROR = 1e-3
CONTEXT = 1024
GREEDY = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=TOP)

IDS = {
    "hello world": [23391, 1902],
    " leading": [5830],
    "trailing   ": [136697, 139],
    "    return": [140, 2060],
    "  two\t\ttabs\n\n\n  x": [138, 13498, 255969, 39218, 109, 138, 236781],
    "\n\n\n\n": [110],
    "\t\t\tx": [255970, 236781],
    "a\r\nb": [236746, 251, 107, 236763],
    "x" + " " * 31 + "y": [236781, 167, 236762],
    "🎉👩‍👩‍👧‍👦🇫🇷": [
        *(242061, 243767, 237243, 243767, 237243, 244814, 237243, 244990, 246598, 242644),
    ],
    "日本の首都": [76444, 120211],
    "\u00a0nbsp": [432, 398, 11539],
    "<div><b>hi</b>": [224, 200, 2202, 209],
}
"""Ids on which transformers' reading of the file's vocabulary agrees."""


@pytest.fixture(scope="module")
def stored():
    return load(GEMMA)


@pytest.fixture(scope="module")
def llm():
    try:
        path = fetch_gemma(default_cache_dir() / "downloads")
    except UnreachableError as error:
        pytest.skip(str(error))
    return LLM(path, dtype="float32", slots=f"{len(PROMPTS)}x{CONTEXT}")


@pytest.fixture(scope="module")
def answers(llm, stored):
    outputs = llm.generate([golden.prompt_ids for golden in stored.goldens], GREEDY)
    return [output.outputs[0] for output in outputs]


def test_the_goldens_are_of_these_weights_and_on_both_sides_of_the_window(stored):
    assert stored.model_sha256 == SHA256
    lengths = {golden.name: len(golden.prompt_ids) for golden in stored.goldens}
    assert lengths.keys() == PROMPTS.keys()
    assert lengths["spaces"] + NEW_TOKENS < WINDOW < lengths["beyond"]
    assert lengths["across"] < WINDOW < lengths["across"] + NEW_TOKENS


def test_rings_of_layers_with_a_window_hold_the_window(llm):
    rings = {row.group: row for row in llm.memory() if row.kind == "rings"}
    assert (rings["global"].count, rings["global"].columns) == (3, CONTEXT)
    assert (rings["window 512"].count, rings["window 512"].columns) == (15, WINDOW)
    assert rings["window 512"].bytes == 15 * len(PROMPTS) * WINDOW * 256 * 2 * 4


def test_greedy_tokens_are_those_of_transformers(answers, stored):
    agreements = [
        compare_greedy(answer.token_ids, golden)
        for answer, golden in zip(answers, stored.goldens, strict=True)
    ]
    assert [agreement.note for agreement in agreements if not agreement.ok] == []
    assert sum(agreement.matched for agreement in agreements) > 0.9 * NEW_TOKENS * len(agreements)


def test_log_probabilities_are_those_of_transformers(answers, stored):
    """The best sixteen of each row that is kept; nothing but rounding is between them."""
    compared = 0
    for answer, golden in zip(answers, stored.goldens, strict=True):
        agreed = compare_greedy(answer.token_ids, golden).matched
        for index, step in enumerate(STEPS):
            if step >= agreed:
                continue
            rows = golden.rows
            best = (rows.top_values[index] - rows.logsumexps[step]).tolist()
            want = dict(zip(rows.top_ids[index].tolist(), best, strict=True))
            assert answer.top_logprobs[step] == pytest.approx(want, abs=LOGPROB_ERROR), step
            compared += 1
    assert compared > 0.9 * len(answers) * NEW_TOKENS / 8


def test_prompts_are_tokenized_as_transformers_does(llm, stored):
    for golden in stored.goldens:
        assert golden.text == PROMPTS[golden.name]
        assert llm.tokenizer.encode(golden.text) == golden.prompt_ids
        assert llm.tokenizer.decode(golden.prompt_ids) == golden.text


@pytest.mark.parametrize("text", IDS)
def test_ids_of_spaces_tabs_newlines_and_emoji(llm, text):
    assert llm.tokenizer.encode(text, add_special_tokens=False) == IDS[text]
    assert llm.tokenizer.decode(IDS[text]) == text


def test_forty_spaces_are_the_longest_run_and_the_rest(llm):
    """As SentencePiece cuts user-defined pieces; transformers merges 16 and 24 instead."""
    assert llm.tokenizer.encode("x" + " " * 40 + "y")[1:] == [236781, 167, 145, 236762]


def test_control_tokens_typed_by_a_user_stay_text(llm):
    text = "<start_of_turn>user\nhi<end_of_turn>\n<bos><eos><pad><unk>"
    typed = llm.tokenizer.encode(text, add_special_tokens=False)
    assert not {0, 1, 2, 3, 105, 106} & set(typed)
    assert llm.tokenizer.decode(typed) == text
    parsed = llm.tokenizer.encode(text, add_special_tokens=False, parse_special=True)
    assert parsed[:9] == [105, 2364, 107, 2202, 106, 107, 2, 1, 0]


def test_a_base_model_has_no_chat(llm):
    with pytest.raises(RequestError, match="chat template"):
        llm.chat([{"role": "user", "content": "hi"}])
