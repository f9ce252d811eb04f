import re

import pytest

from tpuinfer.server.spoken import call_ids


@pytest.mark.parametrize(
    ("short", "pattern"), [(False, "call_[0-9a-f]{24}"), (True, "[A-Za-z0-9]{9}")]
)
def test_ids_of_calls_follow_from_the_choice_and_the_place(short, pattern):
    def first(choice):
        new_id = call_ids(choice, short=short)
        return [new_id() for _ in range(50)]

    ids = first("a-0")
    assert ids == first("a-0")
    assert len({*ids, *first("a-1")}) == 100
    assert all(re.fullmatch(pattern, one) for one in ids)
