"""What a run has cost, by hand."""

import pytest

from tpuinfer.offline.meter import Bill


def test_rates_and_prices():
    bill = Bill(10, 3_000, 1_000, 20.0, price_per_hour=3.6, joules=7_200, metered="gpu")
    assert (bill.generated_per_second, bill.prompt_per_second) == (50, 150)
    assert bill.price_per_million_generated == pytest.approx(20)  # 0.02 for 1,000
    assert bill.price_per_million_tokens == pytest.approx(5)
    assert bill.watt_hours_per_million_generated == pytest.approx(2000)
    assert bill.watt_hours_per_million_tokens == pytest.approx(500)
    assert bill.words() == [
        "50.0 generated tok/s, 150.0 prompt tok/s",
        "cost: 20 per million generated tokens, 5 per million tokens in all",
        "energy of gpu: 2,000 Wh per million generated tokens, 500 Wh per million tokens in all",
    ]


def test_the_part_of_what_the_machine_could_do():
    asked = []

    def floor(*work):
        asked.append(work)
        return 5.0

    bill = Bill(10, 3_000, 1_000, 20.0, floor=floor)
    assert bill.fraction == 0.25
    assert asked == [(10, 3_000, 1_000)]
    assert bill.words()[1] == "25.0% of what this machine's memory and arithmetic allow"


def test_what_is_not_known_is_absent():
    bill = Bill(10, 3_000, 1_000, 20.0)
    assert bill.fraction is None
    assert bill.price_per_million_generated is None
    assert bill.watt_hours_per_million_tokens is None
    assert bill.words() == ["50.0 generated tok/s, 150.0 prompt tok/s"]
    nothing = Bill(0, 0, 0, 0.0, price_per_hour=1.0, joules=1.0, floor=lambda *_: 1.0)
    assert nothing.words() == []


def test_vectors_have_no_generated_tokens():
    bill = Bill(4, 1_000, 0, 10.0, price_per_hour=36.0)
    assert bill.words() == [
        "100.0 prompt tok/s",
        "cost: 100 per million tokens",
    ]
