"""`LLM.generate` and `LLM.chat` over iterators, on the fake engine: lazy, in order, bounded."""

import gc
import itertools
import weakref
from types import SimpleNamespace

import pytest

from tpuinfer import LLM, SamplingParams
from tpuinfer.engine.calls import window
from tpuinfer.engine.engine import Engine
from tpuinfer.errors import RequestError
from tpuinfer.testing.fake import FakeRunner, FakeTokenizer

SLOTS = 2
WINDOW = window(SLOTS)
FIVE = SamplingParams(temperature=0, max_tokens=5, logprobs=0)


@pytest.fixture
def llm():
    runner, tokenizer = FakeRunner(SLOTS, capacity=64), FakeTokenizer()
    engine = Engine(runner, tokenizer, max_waiting=2**31)
    loaded = SimpleNamespace(plan=None, engine=engine, runner=runner, tokenizer=tokenizer)
    return LLM.from_loaded(loaded)


class Source:
    """Prompts, and how many have been read."""

    def __init__(self, prompts):
        self.read = 0
        self._prompts = iter(prompts)

    def __iter__(self):
        return self

    def __next__(self):
        prompt = next(self._prompts)
        self.read += 1
        return prompt


def letters(count):
    return [chr(ord("A") + place % 50) * (1 + place % 7) for place in range(count)]


def mixed(count):
    """Parameters of short answers and long ones, one of them each."""
    return [
        SamplingParams(
            n=1 + place % 2, max_tokens=1 + place * 5 % 13, seed=place, ignore_eos=True, logprobs=1
        )
        for place in range(count)
    ]


def plain(outputs):
    return [
        (output.prompt, output.prompt_token_ids, output.outputs, output.finished)
        for output in outputs
    ]


def live(llm):
    metrics = llm._engine.metrics
    return metrics.running + metrics.waiting


def test_the_answers_are_those_of_the_list(llm):
    prompts, params = letters(150), mixed(150)
    assert plain(llm.generate(iter(prompts), iter(params))) == plain(llm.generate(prompts, params))
    assert not llm._engine.has_work


def test_an_iterator_gives_an_iterator_and_a_list_a_list(llm):
    assert isinstance(llm.generate(["A"], FIVE), list)
    answers = llm.generate(iter(["A", [66]]), FIVE)
    assert [one.outputs[0].text for one in answers] == ["BCDEF", "CDEFG"]
    assert list(llm.generate(iter([]), FIVE)) == []


def test_nothing_is_read_before_the_first_answer_is_asked_for(llm):
    source = Source(["A"])
    answers = llm.generate(source, FIVE)
    assert (source.read, live(llm)) == (0, 0)
    assert next(answers).outputs[0].text == "BCDEF"


def test_prompts_are_read_as_far_ahead_as_the_window(llm):
    source = Source(itertools.repeat("A"))
    answers = llm.generate(source, FIVE)
    most = 0
    for taken in range(500):
        next(answers)
        assert source.read <= taken + WINDOW
        assert live(llm) <= WINDOW
        most = max(most, source.read - taken)
    assert most == WINDOW, "the first that is asked for may take long: go on behind it"


def test_it_goes_on_behind_a_long_answer_up_to_the_window(llm):
    source = Source(["A"] + ["B"] * 1000)
    params = itertools.chain([SamplingParams(max_tokens=60, ignore_eos=True)], [FIVE] * 1000)
    answers = llm.generate(source, params)
    next(answers)
    assert SLOTS + 60 // 6 <= source.read <= WINDOW


def test_answers_that_are_many_count_as_many(llm):
    source = Source(itertools.repeat("A"))
    four = SamplingParams(n=4, max_tokens=5)
    for taken, _ in zip(range(100), llm.generate(source, four), strict=False):
        assert 4 * (source.read - taken) <= WINDOW
        assert live(llm) <= WINDOW


def test_all_slots_are_filled_in_the_first_step(llm):
    runner = llm._engine.runner
    next(llm.generate(iter(["A", "B", "C"]), FIVE))
    assert set(itertools.chain(*runner.sent[:4])) == {0, 1}


def test_an_answer_is_out_as_soon_as_those_before_it_are(llm):
    source = Source(itertools.repeat("A"))
    next(llm.generate(source, FIVE))
    assert source.read < WINDOW, "the first one does not wait for a whole window"


def test_answers_that_were_taken_are_let_go(llm):
    taken = []
    for output in llm.generate(iter(letters(400)), FIVE):
        taken.append(weakref.ref(output))
        assert sum(one() is not None for one in taken) <= 1
    assert len(taken) == 400


def test_a_prompt_that_cannot_be_served_is_raised_in_its_place(llm):
    source = Source(["A", "B", "A" * 64, "C"])
    answers = llm.generate(source, FIVE)
    assert [next(answers).outputs[0].text for _ in range(2)] == ["BCDEF", "CDEFG"]
    with pytest.raises(RequestError, match="context holds 64"):
        next(answers)
    assert (source.read, live(llm)) == (3, 0)
    with pytest.raises(StopIteration):
        next(answers)
    with pytest.raises(RequestError, match="a prompt is 65: it must be a string or a list"):
        list(llm.generate(iter([65, 66]), FIVE))


def test_one_of_several_answers_that_is_refused_takes_the_others_along(llm, monkeypatch):
    engine = llm._engine
    add = engine.add

    def refuse(request):
        if request.choice == 2:
            raise RequestError("no third")
        add(request)

    monkeypatch.setattr(engine, "add", refuse)
    long = SamplingParams(n=3, max_tokens=60, ignore_eos=True)
    answers = llm.generate(iter("AB"), iter([FIVE, long]))
    assert next(answers).outputs[0].text == "BCDEF"
    assert live(llm) == 0
    with pytest.raises(RequestError, match="no third"):
        next(answers)


def test_a_source_that_fails_is_heard_in_its_place(llm):
    def prompts():
        yield "A"
        raise KeyError("gone")

    answers = llm.generate(prompts(), FIVE)
    assert next(answers).outputs[0].text == "BCDEF"
    with pytest.raises(KeyError, match="gone"):
        next(answers)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (2, "2 sampling parameters, and there is prompt 3"),
        (4, "3 prompts, and there are more sampling parameters"),
    ],
)
def test_parameters_alongside_must_be_as_many(llm, count, words):
    answers = llm.generate(iter("ABC"), iter([FIVE] * count))
    taken = list(itertools.islice(answers, min(count, 3)))
    assert len(taken) == min(count, 3)
    with pytest.raises(RequestError, match=words) as refusal:
        next(answers)
    assert refusal.value.param == "sampling_params"


def test_closing_it_aborts_what_runs(llm):
    answers = llm.generate(iter(letters(100)), FIVE)
    next(answers)
    assert live(llm) > 0
    answers.close()
    assert live(llm) == 0
    assert llm._engine.metrics.finished["abort"] > 0
    assert llm.generate("A", FIVE)[0].outputs[0].text == "BCDEF"


def test_leaving_a_loop_aborts_what_runs(llm):
    for _ in llm.generate(iter(letters(100)), FIVE):
        break
    gc.collect()
    assert live(llm) == 0


def test_two_at_once_and_a_list_between(llm):
    prompts, params = letters(100), mixed(100)
    expected = plain(llm.generate(prompts, params))
    one = llm.generate(iter(prompts), iter(params))
    other = llm.generate(iter(prompts[::-1]), iter(params[::-1]))
    pairs = list(zip(one, other, strict=True))
    assert plain(first for first, _ in pairs) == expected
    assert plain(second for _, second in pairs) == expected[::-1]
    third = llm.generate(iter(prompts), iter(params))
    first = next(third)
    assert llm.generate("A", FIVE)[0].outputs[0].text == "BCDEF"
    assert plain([first, *third]) == expected


def test_a_call_from_a_listener(llm):
    inner = []

    def hear(index, delta):
        if delta.finish_reason and len(inner) < 3:
            inner.append(llm.generate("K", FIVE)[0].outputs[0].text)

    prompts = letters(10)
    expected = plain(llm.generate(prompts, FIVE))
    assert plain(llm.generate(prompts, FIVE, on_delta=hear)) == expected
    assert inner == ["LMNOP"] * 3


def test_deltas_arrive_with_the_index_of_their_prompt(llm):
    seen = {}

    def hear(index, delta):
        seen[index] = seen.get(index, "") + delta.text

    outputs = list(llm.generate(iter(letters(20)), FIVE, on_delta=hear))
    assert [seen[index] for index in range(20)] == [one.outputs[0].text for one in outputs]


def test_weights_are_not_changed_while_one_is_open(llm):
    answers = llm.generate(iter("AB"), FIVE)
    next(answers)
    with pytest.raises(RequestError, match=r"requests are running: .* iterators have ended"):
        llm.update_params(1)
    answers.close()
    llm.update_params(1)
    assert next(llm.generate(iter("A"), FIVE)).outputs[0].text == "CEGIK"


def test_conversations(llm):
    conversations = [[{"role": "user", "content": letter}] for letter in "ABC"]
    assert plain(llm.chat(iter(conversations), FIVE)) == plain(llm.chat(conversations, FIVE))
    with pytest.raises(RequestError, match="a conversation is a message: it must be a list"):
        next(llm.chat(iter(conversations[0]), FIVE))
    with pytest.raises(RequestError, match="a conversation is empty"):
        llm.chat([conversations[0], []], FIVE)
