import dataclasses

import pytest

from tpuinfer.config import EngineConfig
from tpuinfer.engine import footprint, scratch
from tpuinfer.engine.fit import Room, plan_to_fit
from tpuinfer.errors import OutOfMemoryError
from tpuinfer.platform import platform_settings
from tpuinfer.sharding.mesh import abstract_mesh, parse_mesh
from tpuinfer.testing.tiny import TINY

LONG = dataclasses.replace(TINY, context=65536)
TPU = platform_settings("tpu")


def fit(slots, context=None, usable=10**9, mesh="2x4", config=LONG, **engine):
    chosen = EngineConfig.parse(slots, context, **engine)
    on = abstract_mesh(parse_mesh(mesh))
    return plan_to_fit(config, mesh=on, engine=chosen, usable=usable, settings=TPU)


def taken(plan):
    shares = footprint.shares(plan)
    return sum(one.bytes for one in shares) + scratch.temporaries(plan) + scratch.code(plan)


def beside(plan):
    """What does not grow with slots: the room that tests leave is beside that."""
    return footprint.weight_bytes(plan) + scratch.temporaries(plan) + scratch.code(plan)


def test_numbers_that_are_given_stay():
    plan = fit("6x700")
    assert (plan.slots.slots, plan.context) == (6, 700)


@pytest.mark.parametrize("slots", [4, 6, 32, 200])
def test_as_many_slots_as_fit_and_not_one_more(slots):
    """Of 2 data shards; beyond 8 each in whole eights."""
    asked = fit(f"{slots}x4096")
    plan = fit("auto", 4096, usable=taken(asked))
    most = slots if slots <= 16 else slots // 16 * 16
    assert (plan.slots.slots, plan.context) == (most, 4096)
    assert fit("auto", 4096, usable=taken(asked) - 1).slots.slots < slots


def test_slots_are_at_most_what_a_chip_can_use():
    assert fit("auto", 512, usable=10**13).slots.slots == 2 * TPU.most_slots


def test_slots_alone_take_the_usual_context():
    assert fit("auto").context == TPU.default_context


@pytest.mark.parametrize("context", [512, 4096, 65536])
def test_the_longest_context_that_fits(context):
    asked = fit(f"16x{context}")
    assert fit(16, "auto", usable=taken(asked)).context == context
    if context > 512:
        assert fit(16, "auto", usable=taken(asked) - 1).context == context - 512


def test_both_give_up_length_before_16_slots_a_shard():
    asked = fit("32x16384")
    plan = fit("auto", "auto", usable=taken(asked))
    assert (plan.slots.slots, plan.context) == (32, 16384)
    plan = fit("auto", "auto", usable=taken(asked) - 1)
    assert plan.context == 8192
    assert plan.slots.slots >= 32


def test_both_settle_for_fewer_where_even_short_ones_are_many():
    asked = fit("4x2048")
    plan = fit("auto", "auto", usable=taken(asked))
    assert (plan.slots.slots, plan.context) == (4, 2048)


@pytest.mark.parametrize(("slots", "context"), [("auto", 4096), ("auto", "auto"), (64, "auto")])
def test_nothing_that_fits_is_an_error_that_says_what_the_weights_take(slots, context):
    least = beside(fit("2x512"))
    with pytest.raises(OutOfMemoryError, match=r"no slot fits: weights take 0\.00 GB per device"):
        fit(slots, context, usable=least)


def test_weights_that_are_too_much_are_seen_before_any_slot_is_tried(monkeypatch):
    monkeypatch.setattr(Room, "needed", None)
    with pytest.raises(OutOfMemoryError, match=r"programs some 0\.\d\d GB, of 0\.00 GB that"):
        fit("auto", "auto", usable=footprint.weight_bytes(fit("2x512")))


def test_windows_leave_room_for_more():
    local = dataclasses.replace(LONG, windows=(512, 0))
    room = taken(fit("16x8192"))
    assert fit(16, "auto", usable=room, config=local).context > 8192


def test_halving_stops_at_2048_whatever_the_model_was_made_for():
    odd = dataclasses.replace(LONG, context=6000)
    plan = fit("auto", "auto", usable=taken(fit("4x2048", config=odd)), config=odd)
    assert (plan.slots.slots, plan.context) == (4, 2048)


def test_a_context_is_the_models_own_where_blocks_would_be_more():
    assert fit(16, "auto", config=dataclasses.replace(LONG, context=700)).context == 700
