import pytest

from tpuinfer.planning import roofline
from tpuinfer.planning import topology as slices
from tpuinfer.planning.exchanges import Exchange
from tpuinfer.planning.work import Work

V5E = slices.parse("v5e:2x4")


def work(weights=0, rings=0, flops=0.0, exchanges=(), kind="bf16"):
    return Work(weights, rings, 0, {kind: flops}, flops, exchanges)


def over(kind, nbytes, **axes):
    """One exchange of the axes' sizes."""
    return Exchange(kind, tuple(axes), tuple(axes.values()), 1, nbytes)


def test_reading_weights_and_rings_takes_both_times():
    found = roofline.bound(work(819_000_000, 81_900_000), V5E)
    assert found.seconds == pytest.approx(1.1e-3)
    assert found.limit == "HBM"


def test_multiplying_hides_reading_of_weights_but_not_of_rings():
    found = roofline.bound(work(819_000_000, 81_900_000, 197e9 * 2), V5E)
    assert found.seconds == pytest.approx(2.1e-3)
    assert found.limit == "FLOPs"


def test_what_multiplies_longer_than_it_reads_weights_may_still_be_bound_by_rings():
    found = roofline.bound(work(819_000_000, 819_000_000, 197e9 * 1.5), V5E)
    assert found.limit == "HBM"
    assert found.seconds == pytest.approx(2.5e-3)


def test_int8_multiplies_at_its_own_rate_where_there_is_one():
    assert roofline.bound(work(flops=393e9, kind="int8"), V5E).flops == pytest.approx(1e-3)
    tpu7x = slices.parse("tpu7x-8")
    assert roofline.bound(work(flops=2307e9, kind="int8"), tpu7x).flops == pytest.approx(2e-3)


def test_a_device_that_is_half_a_chip_has_half_of_it():
    found = roofline.bound(work(7_380_000_000 // 2), slices.parse("tpu7x-8"))
    assert found.weights == pytest.approx(1e-3)


def seconds(*exchanges, on=V5E):
    return roofline.bound(work(exchanges=exchanges), on).links


def test_links_bound_what_moves_more_than_it_reads():
    both = [over(kind, 100_000_000, model=8) for kind in ("reduce-scatter", "all-gather")]
    found = roofline.bound(work(819_000, exchanges=both), V5E)
    assert found.links == pytest.approx(2 * 7 / 8 * 1e8 / 100e9)  # two of four links of 50 GB/s
    assert (found.seconds, found.limit) == (found.links, "ICI")
    assert seconds(over("all-gather", 10**9, model=1)) == 0


def test_each_collective_is_of_its_own_devices():
    two, four = over("all-gather", 10**9, data=2), over("all-gather", 10**9, model=4)
    assert seconds(two) == pytest.approx(1 / 2 * 1e9 / 100e9)
    assert seconds(two, four) == pytest.approx((1 / 2 + 3 / 4) * 1e9 / 100e9)


def test_two_mesh_axes_have_two_rings_and_no_more_than_there_are_links():
    assert seconds(over("all-gather", 10**9, data=2, model=4)) == pytest.approx(7 / 8 * 1e9 / 200e9)
    three = over("all-gather", 10**9, data=2, expert=2, model=2)
    assert seconds(three) == pytest.approx(7 / 8 * 1e9 / 200e9)
    assert seconds(over("all-gather", 10**9, data=1, model=8)) == pytest.approx(7 / 8 * 1e9 / 100e9)


@pytest.mark.parametrize(("name", "rate"), [("h100:8", 450e9), ("l4:8", 32e9)])
def test_a_switch_gives_all_links_at_once(name, rate):
    on = slices.parse(name)
    for kind in ("all-gather", "all-to-all"):
        assert seconds(over(kind, 10**9, model=8), on=on) == pytest.approx(7 / 8 * 1e9 / rate)


def test_an_all_reduce_goes_round_twice():
    once = seconds(over("all-gather", 1000, model=8))
    assert seconds(over("all-reduce", 1000, model=8)) == 2 * once


@pytest.mark.parametrize(("devices", "hops"), [(2, 1), (4, 4), (8, 16)])
def test_an_all_to_all_goes_half_round_a_ring(devices, hops):
    """Each device sends a piece to each: the way is of 1, 1, 2 links among four."""
    pieces = hops * 10**9 / devices
    assert seconds(over("all-to-all", 10**9, model=devices)) == pytest.approx(pieces / 100e9)
    if devices == 4:
        assert hops == 1 + 1 + 2


def test_an_all_to_all_over_two_axes_takes_as_long_as_over_the_longer():
    both = over("all-to-all", 10**9, data=2, model=8)
    assert seconds(both) == seconds(over("all-to-all", 10**9, model=8))


def test_what_a_million_tokens_cost():
    assert roofline.per_million(1000, 8, 1.2) == pytest.approx(8 * 1.2 / 3.6)
    assert roofline.per_million(0, 8, 1.2) == float("inf")
