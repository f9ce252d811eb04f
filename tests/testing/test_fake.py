"""The fake counts as its docstring says, and refuses what the device would get wrong."""

import dataclasses
import time

import pytest

from tpuinfer.engine.request import SamplingParams
from tpuinfer.engine.runner import Pending, PrefillWork, Runner
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
    runner: Runner = FakeRunner(4, 2, chunk=8)
    assert (runner.slots, runner.shards, runner.chunk, runner.buckets) == (4, 2, 8, (4, 8))


def test_counts_up_to_the_stop_id() -> None:
    runner = FakeRunner(2)
    assert columns(runner.prefill([WORK])) == [[4], [-1]]
    assert columns(runner.decode(2, [0])) == [[5, 6], [-1, -1]]
    assert columns(runner.decode(2, [0])) == [[7, -1], [-1, -1]]
    assert columns(runner.decode(1, [0])) == [[-1], [-1]]


def test_counts_up_to_the_limit() -> None:
    runner = FakeRunner(1)
    runner.prefill([work(limit=3, stop_ids=())])
    assert columns(runner.decode(4, [0])) == [[5, 6, -1, -1]]


def test_seed_and_choice_shift_what_is_sampled() -> None:
    runner = FakeRunner(1)
    sampled = work(params=SamplingParams(temperature=1.0), choice=10)
    assert columns(runner.prefill([sampled])) == [[3 + 1 + 2 + 10]]


def test_adds_up_the_whole_row() -> None:
    runner = FakeRunner(1, rule=add_up, vocab=10)
    assert columns(runner.prefill([WORK])) == [[6]]
    assert columns(runner.decode(2, [0])) == [[2, 4]]  # 12, 14
    assert answer([1, 2, 3], limit=3, rule=add_up, vocab=10) == [6, 2, 4]


def test_answer_is_what_the_runner_gives() -> None:
    assert answer([1, 2, 3], limit=5, stop_ids=[7]) == [4, 5, 6, 7]
    assert answer([126], limit=3) == [127, 0, 1]
    assert answer([1], limit=2, shift=4) == [6, 11]


def test_log_probabilities() -> None:
    runner = FakeRunner(1, vocab=128)
    assert runner.prefill([WORK]).result().logprobs.tolist() == [[-4 / 128]]


def test_results_are_fixed_at_dispatch() -> None:
    runner = FakeRunner(1)
    first = runner.prefill([WORK])
    second = runner.decode(1, [0])
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
    pending = FakeRunner(1, seconds=0.02).prefill([WORK])
    before = time.monotonic()
    pending.result()
    assert time.monotonic() - before >= 0.02


def test_a_slot_left_out_is_dead_until_it_is_reopened() -> None:
    runner = FakeRunner(2)
    runner.prefill([WORK])
    runner.prefill([work(slot=1)])
    runner.decode(1, [1])
    with pytest.raises(AssertionError, match="slot 0 is closed"):
        runner.decode(1, [0, 1])
    runner.prefill([work(tokens=(20,))])
    assert columns(runner.decode(1, [0, 1])) == [[22], [6]]


def test_a_live_slot_can_be_reopened() -> None:
    runner = FakeRunner(1)
    runner.prefill([WORK])
    assert columns(runner.prefill([work(tokens=(20,))])) == [[21]]


FULL = tuple(range(10, 18))


@pytest.mark.parametrize(
    ("works", "message"),
    [
        ([], "a prefill of nothing"),
        ([work(), work(slot=1)], "two works on one data shard"),
        ([work(), work(slot=2, bucket=8)], "different buckets"),
        ([work(bucket=5)], "bucket 5 is not of"),
        ([work(tokens=())], "0 tokens in bucket 4"),
        ([work(tokens=FULL)], "8 tokens in bucket 4"),
        ([work(last=False)], "a chunk of 3 before the last"),
        ([work(tokens=(128,))], "beyond the vocabulary"),
        ([work(start=3)], "slot 0 is closed"),
        ([work(limit=0)], "a limit of 0"),
        ([work(limit=62)], "beyond the capacity"),
        ([work(stop_ids=tuple(range(17)))], "17 stop ids"),
        ([work(seed=2**32)], "seed 4294967296"),
    ],
)
def test_prefill_misuse(works: list[PrefillWork], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        FakeRunner(4, 2, capacity=64, chunk=8).prefill(works)


def test_a_chunk_must_follow_the_one_before() -> None:
    runner = FakeRunner(1, chunk=8)
    runner.prefill([work(tokens=FULL, bucket=8, last=False)])
    with pytest.raises(AssertionError, match="starts at 16, not 8"):
        runner.prefill([work(start=16)])
    with pytest.raises(AssertionError, match="slot 0 is filling"):
        runner.decode(1, [0])
    assert columns(runner.prefill([work(start=8)])) == [[4]]
    with pytest.raises(AssertionError, match="slot 0 is live"):
        runner.prefill([work(start=11)])


def test_decode_misuse() -> None:
    runner = FakeRunner(1)
    with pytest.raises(AssertionError, match="a decode of no slot"):
        runner.decode(1, [])
    with pytest.raises(AssertionError, match="a decode of 0 steps"):
        runner.decode(0, [0])
    with pytest.raises(AssertionError, match="slot 0 is closed"):
        runner.decode(1, [0])
    runner.prefill([WORK])
    with pytest.raises(AssertionError, match="a slot twice"):
        runner.decode(1, [0, 0])


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(AssertionError, match="3 slots do not divide over 2 shards"):
        FakeRunner(3, 2)
    with pytest.raises(AssertionError, match="is not chunk 8"):
        FakeRunner(2, chunk=8, buckets=(2, 4))


def test_a_token_is_a_character() -> None:
    tokenizer = FakeTokenizer()
    assert tokenizer.encode("aé<end>") == [97, 63, 0]
    assert tokenizer.encode("<end>", parse_special=False) == [60, 101, 110, 100, 62]
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
