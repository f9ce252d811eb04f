"""The fake counts as its docstring says, and refuses what the device would get wrong."""

import dataclasses
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tpuinfer.engine.request import TOP_LOGPROBS, SamplingParams
from tpuinfer.engine.runner import Pending, PrefillWork, Runner
from tpuinfer.errors import RequestError
from tpuinfer.programs.slots import SlotLayout
from tpuinfer.testing import fake
from tpuinfer.testing.fake import FakeRunner, FakeTokenizer, add_up, answer

WORK = PrefillWork(
    slot=0,
    tokens=(1, 2, 3),
    start=0,
    bucket=4,
    last=True,
    limit=5,
    stop_ids=(7,),
    seed=2,
    choice=0,
    params=SamplingParams(temperature=0),
)


def work(**changes: object) -> PrefillWork:
    return dataclasses.replace(WORK, **changes)


def columns(pending: Pending) -> list[list[int]]:
    return pending.result().tokens.T.tolist()


def test_is_a_runner() -> None:
    runner: Runner = FakeRunner(4, 2, capacity=32)
    assert runner.layout == SlotLayout((4,), (32,), 2)
    assert (runner.chunk, runner.buckets, runner.prefill_rows) == (8, (4, 8), {4: 1, 8: 1})
    assert (runner.rolls, runner.recompiles) == (False, 0)
    runner = FakeRunner(((2, 16), (4, 64)), 2, buckets=(2, 4), prefill_rows={2: 4, 4: 1})
    assert runner.layout == SlotLayout((2, 4), (16, 64), 2)
    assert (runner.chunk, runner.prefill_rows) == (4, {2: 4, 4: 1})


def test_counts_up_to_the_stop_id() -> None:
    runner = FakeRunner(2)
    assert columns(runner.prefill([WORK])) == [[4], [-1]]
    assert columns(runner.decode(2, {0: 2})) == [[5, 6], [-1, -1]]
    assert columns(runner.decode(2, {0: 2})) == [[7, -1], [-1, -1]]
    assert columns(runner.decode(1, {0: 1})) == [[-1], [-1]]


def test_counts_up_to_the_limit() -> None:
    runner = FakeRunner(1)
    runner.prefill([work(limit=3, stop_ids=())])
    assert columns(runner.decode(4, {0: 4})) == [[5, 6, -1, -1]]


def test_seed_and_choice_shift_what_is_sampled() -> None:
    runner = FakeRunner(1)
    sampled = work(params=SamplingParams(temperature=1.0), choice=10)
    assert columns(runner.prefill([sampled])) == [[3 + 1 + 2 + 10]]


def test_adds_up_the_whole_row() -> None:
    runner = FakeRunner(1, rule=add_up, vocab=10)
    assert columns(runner.prefill([WORK])) == [[6]]
    assert columns(runner.decode(2, {0: 2})) == [[2, 4]]  # 12, 14
    assert answer([1, 2, 3], limit=3, rule=add_up, vocab=10) == [6, 2, 4]


def test_answer_is_what_the_runner_gives() -> None:
    assert answer([1, 2, 3], limit=5, stop_ids=[7]) == [4, 5, 6, 7]
    assert answer([126], limit=3) == [127, 0, 1]
    assert answer([1], limit=2, shift=4) == [6, 11]


def test_log_probabilities() -> None:
    runner = FakeRunner(1, vocab=128)
    assert runner.prefill([WORK]).result().logprobs.tolist() == [[-4 / 128]]


def asking(logprobs: int | None, **changes: object) -> PrefillWork:
    return work(params=SamplingParams(temperature=0, logprobs=logprobs), **changes)


def test_alternatives() -> None:
    runner = FakeRunner(3, prefill_rows=3, vocab=8)
    assert runner.prefill([asking(0), asking(None, slot=1)]).result().top_ids is None
    first = runner.prefill([asking(3), asking(0, slot=1)]).result()
    assert first.top_ids.shape == first.top_logprobs.shape == (1, 3, TOP_LOGPROBS)
    assert first.top_ids[0, :, :4].tolist() == [[4, 5, 6, -1], [-1] * 4, [-1] * 4]
    assert first.top_logprobs[0, 0, :3].tolist() == [-0.5, -1.5, -2.5]
    second = runner.decode(2, {0: 2, 1: 2}).result()
    assert second.top_ids[:, 0, :4].tolist() == [[5, 6, 7, -1], [6, 7, 0, -1]]
    assert runner.decode(1, {1: 1}).result().top_ids is None
    runner.prefill([asking(20, slot=2)])
    third = runner.decode(1, {1: 1, 2: 1}).result()
    assert third.top_ids[0, 2].tolist() == [5, 6, 7, 0, 1, 2, 3, 4] + [-1] * 12


def test_a_ring_that_rolls_forgets_its_oldest_tokens() -> None:
    runner = FakeRunner(1, capacity=4, rolls=True, rule=add_up, vocab=100)
    runner.prefill([work(stop_ids=())])
    assert columns(runner.decode(3, {0: 3})) == [[12, 23, 44]]  # 1+2+3+6, 2+3+6+12, 3+6+12+23
    assert answer([1, 2, 3], limit=4, rule=add_up, vocab=100, capacity=4) == [6, 12, 23, 44]


def test_several_rows_a_shard() -> None:
    runner = FakeRunner(4, 2, prefill_rows={4: 2, 8: 1})
    both = [work(slot=slot, tokens=(slot,)) for slot in (0, 1, 3)]
    assert columns(runner.prefill(both)) == [[1], [2], [-1], [4]]
    assert runner.sent == [(0, 1, 3)]
    with pytest.raises(AssertionError, match="2 works on data shard 0: it takes 1"):
        runner.prefill([work(slot=0, bucket=8), work(slot=1, bucket=8)])


def test_each_slot_has_the_capacity_of_its_class() -> None:
    runner = FakeRunner(((2, 8), (1, 32)))
    runner.prefill([work(slot=1, limit=5)])
    with pytest.raises(AssertionError, match="9 tokens in a ring of 8"):
        runner.prefill([work(slot=1, limit=6)])
    runner.prefill([work(slot=2, limit=29)])


def test_results_are_fixed_at_dispatch() -> None:
    runner = FakeRunner(1)
    first = runner.prefill([WORK])
    second = runner.decode(1, {0: 1})
    runner.prefill([work(tokens=(50,))])
    assert columns(second) == [[5]]
    assert columns(first) == [[4]]
    assert runner.events == [
        ("prefill", 0),
        ("decode", 1),
        ("prefill", 2),
        ("result", 1),
        ("result", 0),
    ]
    assert runner.sent == [(0,), (0,), (0,)]


def test_results_can_take_their_time() -> None:
    runner = FakeRunner(1)
    runner.seconds = 0.02
    before = time.monotonic()
    runner.prefill([WORK]).result()
    assert time.monotonic() - before >= 0.02


def test_dispatches_take_their_time_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(fake, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    runner = FakeRunner(1)
    runner.seconds = {"prefill": 5, "decode": 1}
    prefill, decode = runner.prefill([WORK]), runner.decode(1, {0: 1})
    sleep(2)  # the host's own work, meanwhile
    prefill.result()
    assert now == 5
    decode.result()
    assert now == 6
    sleep(10)
    runner.decode(1, {0: 1}).result()
    assert now == 17


def test_a_slot_left_out_is_dead_until_it_is_reopened() -> None:
    runner = FakeRunner(2)
    runner.prefill([WORK])
    runner.prefill([work(slot=1)])
    runner.decode(1, {1: 1})
    with pytest.raises(AssertionError, match="slot 0 is closed"):
        runner.decode(1, {0: 1, 1: 1})
    runner.prefill([work(tokens=(20,))])
    assert columns(runner.decode(1, {0: 1, 1: 1})) == [[22], [6]]


def test_a_live_slot_can_be_reopened() -> None:
    runner = FakeRunner(1)
    runner.prefill([WORK])
    assert columns(runner.prefill([work(tokens=(20,))])) == [[21]]


FULL = tuple(range(10, 18))


@pytest.mark.parametrize(
    ("works", "message"),
    [
        ([], "a prefill of nothing"),
        ([work(), work(slot=1)], "2 works on data shard 0: it takes 1"),
        ([work(), work()], "two works for one slot"),
        ([work(), work(slot=2, bucket=8)], "different buckets"),
        ([work(bucket=5)], "bucket 5 is not of"),
        ([work(tokens=())], "0 tokens in bucket 4"),
        ([work(tokens=FULL)], "8 tokens in bucket 4"),
        ([work(last=False)], "a chunk of 3 before the last"),
        ([work(following=4)], "token 4 follows the prompt"),
        ([work(tokens=FULL, bucket=8, last=False)], "token -1 follows the prompt"),
        ([work(tokens=(128,))], "beyond the vocabulary"),
        ([work(start=3)], "slot 0 is closed"),
        ([work(limit=0)], "a limit of 0"),
        ([work(limit=62)], "65 tokens in a ring of 64"),
        ([work(stop_ids=tuple(range(17)))], "17 stop ids"),
        ([work(seed=2**32)], "seed 4294967296"),
    ],
)
def test_prefill_misuse(works: list[PrefillWork], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        FakeRunner(4, 2, capacity=64).prefill(works)


def test_a_chunk_must_follow_the_one_before() -> None:
    runner = FakeRunner(1)
    runner.prefill([work(tokens=FULL, bucket=8, last=False, following=1)])
    with pytest.raises(AssertionError, match="starts at 16, not 8"):
        runner.prefill([work(start=16)])
    with pytest.raises(AssertionError, match="slot 0 is filling"):
        runner.decode(1, {0: 1})
    with pytest.raises(AssertionError, match="2 follows, and not 1 as was said"):
        runner.prefill([work(start=8, tokens=(2, 3))])
    assert columns(runner.prefill([work(start=8)])) == [[4]]
    with pytest.raises(AssertionError, match="slot 0 is live"):
        runner.prefill([work(start=11)])


def test_decode_misuse() -> None:
    runner = FakeRunner(1)
    for nobody in ({}, {0: 0}):
        with pytest.raises(AssertionError, match="a decode in which no slot may pick"):
            runner.decode(1, nobody)
    with pytest.raises(AssertionError, match="a decode of 0 steps"):
        runner.decode(0, {0: 1})
    with pytest.raises(AssertionError, match="slot 0 is closed"):
        runner.decode(1, {0: 1})
    runner.prefill([WORK])
    with pytest.raises(AssertionError, match="a quota of 2 in 1 steps"):
        runner.decode(1, {0: 2})


def test_a_token_is_a_character() -> None:
    tokenizer = FakeTokenizer()
    assert tokenizer.encode("aé<end>", parse_special=True) == [97, 63, 0]
    assert tokenizer.encode("<end>") == [60, 101, 110, 100, 62]
    assert tokenizer.decode([97, 0, 98]) == "ab"
    assert tokenizer.decode([97, 0], skip_special_tokens=False) == "a<end>"
    assert (tokenizer.token_text(97), tokenizer.token_bytes(0)) == ("a", b"<end>")
    row = tokenizer.detokenizer(skip_special_tokens=False)
    assert row.push(97) + row.push(0) + row.flush() == "a<end>"


def test_an_opening_token_is_added_once_asked_for() -> None:
    tokenizer = FakeTokenizer()
    tokenizer.bos_id = 1
    assert tokenizer.encode("a") == [1, 97]
    assert tokenizer.encode("a", add_special_tokens=False) == [97]


def test_the_chat_template() -> None:
    tokenizer = FakeTokenizer()
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    assert tokenizer.apply_chat_template(messages) == "system:be brief\nuser:hi\nassistant:"
    assert tokenizer.encode_chat(messages)[-3:] == [110, 116, 58]
    assert tokenizer.apply_chat_template(messages[:1], add_generation_prompt=False).endswith("f\n")


def test_quotas() -> None:
    runner = FakeRunner(3, prefill_rows=3)
    runner.prefill([WORK, work(slot=1, tokens=(10,)), work(slot=2, tokens=(20,))])
    assert columns(runner.decode(2, {0: 1, 1: 0, 2: 2})) == [[5, -1], [-1, -1], [22, 23]]
    assert columns(runner.decode(1, {0: 1, 1: 1})) == [[6], [12], [-1]]
    with pytest.raises(AssertionError, match="slot 2 is closed"):
        runner.decode(1, {2: 0, 0: 1})
    assert runner.quotas == [{0: 1, 1: 0, 2: 2}, {0: 1, 1: 1}]
    assert runner.sent[1:] == [(0, 2), (0, 1)]


def mask(*tokens: int, words: int = 4) -> np.ndarray:
    bits = np.zeros(32 * words, np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").view("<i4")


def test_masks() -> None:
    runner = FakeRunner(2, prefill_rows=2)
    runner.constrain({0: mask(3, 63), 1: mask(99)})
    both = [work(constrained=True, stop_ids=()), work(slot=1, stop_ids=())]
    assert columns(runner.prefill(both)) == [[63], [4]]
    with pytest.raises(AssertionError, match="slot 0 picks without a fresh mask"):
        runner.decode(1, {0: 1, 1: 1})
    runner.constrain({0: mask(5, 31)})
    assert columns(runner.decode(1, {0: 1})) == [[5], [-1]]  # 64 is wanted; going round
    assert runner.events[:2] == [("constrain", 0), ("prefill", 0)]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({}, "masks of no slot"),
        ({0: mask()}, "a mask without a token for slot 0"),
        ({0: mask(100, words=4)}, "a mask without a token for slot 0"),  # beyond the vocabulary
        ({0: mask(1, words=3)}, r"a mask of \(3,\) words"),
        ({0: mask(1).astype(np.int64)}, "a mask of int64"),
    ],
)
def test_mask_misuse(masks: dict[int, np.ndarray], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        FakeRunner(1, vocab=100).constrain(masks)


def test_ends_are_barred_for_a_while() -> None:
    runner = FakeRunner(1)
    first = work(tokens=(6,), params=SamplingParams(temperature=0, min_tokens=2))
    assert columns(runner.prefill([first])) == [[8]]
    runner = FakeRunner(1, rule=lambda tokens, shift: 7)
    assert columns(runner.prefill([first])) == [[8]]
    assert columns(runner.decode(3, {0: 3})) == [[8, 7, -1]]


@pytest.mark.parametrize(
    ("bias", "token"), [({4: -100}, 5), ({2: 100}, 2), ({4: 99, 3: -99}, 4), ({4: -100, 1: 100}, 1)]
)
def test_the_strongest_biases(bias: dict[int, float], token: int) -> None:
    params = SamplingParams(temperature=0, logit_bias=bias)
    assert columns(FakeRunner(1).prefill([work(params=params)])) == [[token]]


def test_scores_of_a_prompt() -> None:
    runner = FakeRunner(1, vocab=8, rule=add_up)
    asking = SamplingParams(temperature=0, prompt_logprobs=2)
    tokens = (1, 2, 3, 4, 5, 6, 7, 0)
    first = work(tokens=tokens, bucket=8, last=False, following=5, params=asking)
    scores = runner.prefill([first]).result().prompts[0]
    assert scores.logprobs.tolist() == [-t / 8 for t in (2, 3, 4, 5, 6, 7, 0, 5)]
    assert scores.top_ids[:2, :3].tolist() == [[2, 3, -1], [3, 4, -1]]
    assert scores.top_logprobs[0, :2].tolist() == [-0.25, -1.25]
    last = runner.prefill([work(start=8, tokens=(5, 4), params=asking)]).result().prompts[0]
    assert last.logprobs.tolist() == [-0.5]
    only = runner.prefill([work(tokens=(5,), params=asking)]).result().prompts[0]
    assert (only.logprobs.shape, only.top_ids.shape) == ((0,), (0, TOP_LOGPROBS))
    assert runner.prefill([WORK]).result().prompts == {}


def test_weights_are_a_number() -> None:
    runner = FakeRunner(1)
    runner.update(10)
    assert columns(runner.prefill([WORK])) == [[14]]
    with pytest.raises(RequestError, match="params is 'x'"):
        runner.update("x")


def test_a_control_token_that_is_kept() -> None:
    shown = FakeTokenizer(eos_ids=(0, 1)).detokenizer(keep=frozenset([1]))
    assert [shown.push(token) for token in (97, 0, 1)] == ["a", "", "<end>"]
