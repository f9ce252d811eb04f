import pytest

from tpuinfer.planning import roofline
from tpuinfer.planning import topology as slices
from tpuinfer.planning.traffic import Collective
from tpuinfer.planning.work import Work

V5E = slices.parse("v5e:2x4")


def work(weights=0, rings=0, flops=0.0, collectives=None, kind="bf16"):
    return Work(weights, rings, 0, {kind: flops}, flops, collectives or {})


def test_reading_weights_and_rings_takes_both_times():
    found = roofline.bound(work(819_000_000, 81_900_000), V5E, 8)
    assert found.seconds == pytest.approx(1.1e-3)
    assert found.limit == "HBM"


def test_multiplying_hides_reading_of_weights_but_not_of_rings():
    found = roofline.bound(work(819_000_000, 81_900_000, 197e9 * 2), V5E, 8)
    assert found.seconds == pytest.approx(2.1e-3)
    assert found.limit == "FLOPs"


def test_what_multiplies_longer_than_it_reads_weights_may_still_be_bound_by_rings():
    found = roofline.bound(work(819_000_000, 819_000_000, 197e9 * 1.5), V5E, 8)
    assert found.limit == "HBM"
    assert found.seconds == pytest.approx(2.5e-3)


def test_int8_multiplies_at_its_own_rate_where_there_is_one():
    assert roofline.bound(work(flops=393e9, kind="int8"), V5E, 8).flops == pytest.approx(1e-3)
    tpu7x = slices.parse("tpu7x-8")
    assert roofline.bound(work(flops=2307e9, kind="int8"), tpu7x, 8).flops == pytest.approx(2e-3)


def test_a_device_that_is_half_a_chip_has_half_of_it():
    found = roofline.bound(work(7_380_000_000 // 2), slices.parse("tpu7x-8"), 8)
    assert found.weights == pytest.approx(1e-3)


def test_links_bound_what_moves_more_than_it_reads():
    both = {kind: Collective(1, 100_000_000) for kind in ("reduce-scatter", "all-gather")}
    found = roofline.bound(work(819_000, collectives=both), V5E, 8)
    assert found.links == pytest.approx(2 * 7 / 8 * 1e8 / 100e9)  # two of four links of 50 GB/s
    assert (found.seconds, found.limit) == (found.links, "ICI")
    assert roofline.bound(work(819_000, collectives=both), V5E, 1).links == 0


@pytest.mark.parametrize(("name", "rate"), [("h100:8", 450e9), ("l4:8", 32e9)])
def test_a_switch_gives_all_links_at_once(name, rate):
    once = work(collectives={"all-gather": Collective(1, 10**9)})
    found = roofline.bound(once, slices.parse(name), 8)
    assert found.links == pytest.approx(7 / 8 * 1e9 / rate)


def test_an_all_reduce_goes_round_twice():
    once = roofline.bound(work(collectives={"all-gather": Collective(1, 1000)}), V5E, 8)
    twice = roofline.bound(work(collectives={"all-reduce": Collective(1, 1000)}), V5E, 8)
    assert twice.links == 2 * once.links


def test_what_a_million_tokens_cost():
    assert roofline.per_million(1000, 8, 1.2) == pytest.approx(8 * 1.2 / 3.6)
    assert roofline.per_million(0, 8, 1.2) == float("inf")
