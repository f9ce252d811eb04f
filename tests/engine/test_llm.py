"""`LLM` on the fake engine, whose answers are done by hand: each token is the last one plus one."""

from types import SimpleNamespace

import pytest

from tpuinfer import LLM, SamplingParams
from tpuinfer.engine.engine import Engine
from tpuinfer.errors import RequestError
from tpuinfer.grammar.guide import Guide
from tpuinfer.testing.fake import FakeRunner, FakeTokenizer

FIVE = SamplingParams(temperature=0, max_tokens=5, logprobs=0)


@pytest.fixture
def llm():
    runner, tokenizer = FakeRunner(2, capacity=64), FakeTokenizer()
    engine = Engine(runner, tokenizer, max_waiting=100)
    loaded = SimpleNamespace(plan=None, engine=engine, runner=runner, tokenizer=tokenizer)
    return LLM.from_loaded(loaded)


def texts(outputs):
    return [output.outputs[0].text for output in outputs]


def test_a_string_and_its_ids_are_the_same_prompt(llm):
    (by_text,) = llm.generate("xa", FIVE)
    (by_ids,) = llm.generate([ord("x"), ord("a")], FIVE)
    assert by_text.outputs[0].text == by_ids.outputs[0].text == "bcdef"
    assert by_text.prompt_token_ids == by_ids.prompt_token_ids
    assert (by_text.prompt, by_ids.prompt) == ("xa", None)
    assert by_text.outputs[0].finish_reason == "length"


def test_answers_come_in_the_order_of_the_prompts_whatever_their_number(llm):
    prompts = [chr(letter) for letter in range(ord("a"), ord("k"))]
    lengths = [SamplingParams(temperature=0, max_tokens=1 + index % 4) for index in range(10)]
    outputs = llm.generate(prompts, lengths)
    wanted = [
        "".join(chr(ord(prompt) + 1 + step) for step in range(params.max_tokens))
        for prompt, params in zip(prompts, lengths, strict=True)
    ]
    assert texts(outputs) == wanted


def test_defaults_are_sixteen_tokens(llm):
    answer = llm.generate(["A"], SamplingParams(ignore_eos=True))[0].outputs[0]
    assert len(answer.token_ids) == 16


def test_log_probabilities_add_up(llm):
    answer = llm.generate("a", FIVE)[0].outputs[0]
    assert len(answer.logprobs) == len(answer.token_ids) == 5
    assert answer.cumulative_logprob == pytest.approx(sum(answer.logprobs))
    silent = llm.generate("a", SamplingParams(temperature=0))[0].outputs[0]
    assert (silent.logprobs, silent.cumulative_logprob) == (None, None)


def test_alternatives_are_gathered(llm):
    three = SamplingParams(temperature=0, max_tokens=3, logprobs=2)
    answer = llm.generate("a", three)[0].outputs[0]
    assert [list(one) for one in answer.top_logprobs] == [[98, 99], [99, 100], [100, 101]]
    assert [
        one[token] for one, token in zip(answer.top_logprobs, answer.token_ids, strict=True)
    ] == (answer.logprobs)
    assert llm.generate("a", FIVE)[0].outputs[0].top_logprobs is None


def test_deltas_arrive_with_the_index_of_their_prompt(llm):
    seen = {0: "", 1: "", 2: ""}

    def hear(index, delta):
        seen[index] += delta.text

    outputs = llm.generate(["a", "k", "u"], FIVE, on_delta=hear)
    assert list(seen.values()) == texts(outputs)


def test_a_conversation_or_several(llm):
    one = [{"role": "user", "content": "hello"}]
    (single,) = llm.chat(one, FIVE)
    several = llm.chat([one, one], FIVE)
    assert texts(several) == texts([single]) * 2
    assert single.prompt_token_ids == llm.tokenizer.encode_chat(one)
    with pytest.raises(RequestError, match="messages is empty"):
        llm.chat([])


def test_control_text_is_text_unless_asked_otherwise(llm):
    (plain,) = llm.generate("a<end>", FIVE)
    assert plain.prompt_token_ids == [ord(char) for char in "a<end>"]
    (parsed,) = llm.generate("a<end>", FIVE, parse_special=True)
    assert parsed.prompt_token_ids == [ord("a"), 0]


def test_a_model_that_makes_text_makes_no_vectors(llm):
    for ask in (llm.embed, llm.embed_stream):
        with pytest.raises(RequestError, match=r"makes text, and no vectors; .* LLM\.generate"):
            ask(["abc"])


def test_what_cannot_be_served_leaves_nothing_behind(llm):
    with pytest.raises(RequestError, match="context holds 64"):
        llm.generate(["a", "b" * 64], FIVE)
    with pytest.raises(RequestError, match="2 sampling parameters for 1 prompts"):
        llm.generate(["a"], [FIVE, FIVE])
    assert not llm._engine.has_work
    assert texts(llm.generate(["a"], FIVE)) == ["bcdef"]


def test_a_listener_that_fails_frees_its_slots(llm):
    def fail(index, delta):
        raise KeyError(delta.text)

    with pytest.raises(KeyError):
        llm.generate(["a", "b", "c"], FIVE, on_delta=fail)
    assert llm._engine.metrics.running == 0
    assert texts(llm.generate(["c", "d"], FIVE)) == ["defgh", "efghi"]


def test_several_answers_to_one_prompt(llm):
    params = SamplingParams(n=3, temperature=1, seed=0, max_tokens=2, prompt_logprobs=0)
    seen = {}

    def hear(index, delta):
        seen[index, delta.choice] = seen.get((index, delta.choice), "") + delta.text

    outputs = llm.generate(["a", "kk"], params, on_delta=hear)
    assert [[one.text for one in output.outputs] for output in outputs] == [
        ["bc", "ce", "dg"],
        ["lm", "mo", "nq"],
    ]
    assert [[one.index for one in output.outputs] for output in outputs] == [[0, 1, 2]] * 2
    assert seen[1, 2] == "nq"
    assert len(seen) == 6
    assert [output.prompt_logprobs for output in outputs] == [[None], [None, -ord("k") / 128]]
    assert all(output.finished for output in outputs)


def test_other_weights(llm):
    llm.update_params(1)
    assert texts(llm.generate("a", FIVE)) == ["cegik"]
    with pytest.raises(RequestError, match="params is 'no number'"):
        llm.update_params("no number")
    assert texts(llm.generate("a", FIVE)) == ["cegik"]


def test_weights_are_not_changed_under_a_running_request(llm):
    with pytest.raises(RequestError, match="requests are running"):
        llm.generate("a", FIVE, on_delta=lambda index, delta: llm.update_params(1))
    llm.update_params(1)  # the failed call has left nothing that runs
    assert texts(llm.generate("a", FIVE)) == ["cegik"]


def test_a_guided_answer(llm):
    guide = Guide("choice", '["yes", "nope"]', "guide")
    params = SamplingParams(temperature=0, max_tokens=20, guide=guide, n=2)
    (output,) = llm.generate("m", params)
    assert [one.text for one in output.outputs] == ["nope", "nope"]
    assert {one.finish_reason for one in output.outputs} == {"stop"}


def test_a_guide_that_cannot_be_followed(llm):
    with pytest.raises(RequestError) as refusal:
        llm.generate("m", SamplingParams(guide=Guide("regex", "(", "guide")))
    assert refusal.value.param == "guide"
