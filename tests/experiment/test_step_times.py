"""What is timed: every slot live near the end of its ring. A stand-in notes what it is given."""

import numpy as np
import pytest

from tpuinfer.engine.runner import StepTokens
from tpuinfer.experiment import timing
from tpuinfer.programs.slots import SlotLayout


class Watched:
    """A runner that does nothing at once; a slot decodes as long as its last prefill allows."""

    vocab, chunk = 128, 8

    def __init__(self, layout):
        self.layout = layout
        self.works, self.sent, self.left = [], [], {}

    def prefill(self, work):
        self.works.append(work)
        assert len({self.layout.shard_of(one.slot) for one in work}) == self.layout.shards
        assert all(0 < len(one.tokens) <= self.chunk == one.bucket for one in work)
        self.left |= {one.slot: one.limit - 1 for one in work}
        return _Done(None)

    def decode(self, steps, quotas):
        self.sent.append(quotas)
        tokens = np.full((steps, self.layout.slots), -1)
        for slot, quota in quotas.items():
            made = min(quota, self.left[slot])
            tokens[:made, slot] = 1
            self.left[slot] -= made
        return _Done(StepTokens(tokens, tokens))


class _Done:
    def __init__(self, found):
        self._found = found

    def result(self):
        return self._found


@pytest.mark.parametrize("steps", [1, 4])
def test_all_slots_decode_at_the_end_of_their_rings(steps):
    runner = Watched(SlotLayout((6,), (64,), 2))
    decode, chunks = timing.measure(runner, steps)
    assert len(decode) >= 6
    assert len(chunks) == 5
    assert runner.sent == [dict.fromkeys(range(6), steps)] * (len(decode) + 2)
    last = {one.slot: one for work in runner.works for one in work}
    assert sorted(last) == [*range(6)]
    for one in last.values():
        assert len(one.tokens) == 8
        assert one.start + 8 + one.limit == 63
        assert one.limit == 1 + steps * (len(decode) + 2)


def test_rings_of_several_lengths_are_each_near_their_end():
    runner = Watched(SlotLayout((2, 2), (64, 128)))
    _, chunks = timing.measure(runner, 1)
    ends = {one.slot: one.start + 8 + one.limit for work in runner.works for one in work}
    assert ends == {0: 63, 1: 63, 2: 127, 3: 127}
    assert len(chunks) == 5


def test_a_ring_that_is_too_short_has_a_chunk_only():
    decode, chunks = timing.measure(Watched(SlotLayout((2,), (16,))), 8)
    assert decode == []
    assert len(chunks) == 5


def test_samples_in_short():
    assert timing.in_short([]) is None
    assert timing.in_short([3.0, 1.0, 2.0]) == {
        "median": 2.0,
        "p10": pytest.approx(1.2),
        "p90": pytest.approx(2.8),
        "samples": 3,
    }
