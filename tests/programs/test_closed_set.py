"""Which programs there are, by hand."""

import pytest
from windowed import rolls, stops

from tpuinfer.platform import PlatformSettings
from tpuinfer.programs.closed_set import decode_name, narrow_rows, prefill_name, prefill_shapes
from tpuinfer.programs.compile import lower
from tpuinfer.testing.tiny import TINY, tiny

SETTINGS = PlatformSettings(prefill_rows=(1, 4, 8), prefill_tokens=512, narrow_rows=(4, 16))


def test_names_by_hand():
    assert (prefill_name(4, 128), decode_name(), decode_name(4)) == (
        "prefill_4x128",
        "decode",
        "decode_4",
    )


@pytest.mark.parametrize(
    ("per_shard", "shapes"),
    [
        (1, {64: (1,), 128: (1,), 1024: (1,)}),
        (4, {64: (1, 4), 128: (1, 4), 1024: (1,)}),
        (7, {64: (1, 4), 128: (1, 4), 1024: (1,)}),
        (8, {64: (1, 4, 8), 128: (1, 4), 1024: (1,)}),
    ],
)
def test_rows_share_a_prefill_where_they_fit_it_and_have_slots(per_shard, shapes):
    assert prefill_shapes(SETTINGS, (64, 128, 1024), per_shard) == shapes


def test_a_narrow_decode_saves_at_least_half():
    found = [narrow_rows(SETTINGS, per_shard) for per_shard in (4, 7, 8, 31, 32)]
    assert found == [(), (), (4,), (4,), (4, 16)]


def test_the_widest_prefill_comes_first_and_what_others_check_last():
    """`WarmUp` compares programs of several rows, and narrow decodes, with what is there."""
    assert list(tiny(TINY).specs) == ["mask", "bias", "prefill_1x16", "prefill_1x8", "decode"]
    mixed = tiny(TINY, slots="8x48", rows=(1, 4), narrow=(4,))
    prefills = ["prefill_1x16", "prefill_1x8", "prefill_4x16", "prefill_4x8"]
    assert list(mixed.specs) == ["mask", "bias", *prefills, "decode", "decode_4"]


def test_ring_classes_and_policies_ask_for_no_more_programs():
    names = ["mask", "bias", "prefill_1x64", "prefill_4x64", "decode"]
    assert list(stops().specs) == list(rolls().specs) == [*names, "decode_4"]
    assert list(rolls("2x4").specs) == [*names, "decode_2"]


def test_shapes_count_all_data_shards():
    specs = rolls("2x4").specs
    assert specs["prefill_4x64"].arguments[3].tokens.shape == (8, 64)
    assert [x.shape for x in specs["decode"].arguments[3:]] == [(14,)]
    assert [x.shape for x in specs["decode_2"].arguments[3:]] == [(14,), (4,)]


def test_prefill_computes_by_its_own_rules_and_decode_by_the_others(tmp_path):
    """Weights lie alike under 2d and fsdp: the table's programs are one of these's each."""
    table = tmp_path / "table.toml"
    table.write_text('preset = "2d"\n[prefill]\ngather = ["embed"]\n', "utf-8")
    own, two_d, fsdp = (
        tiny(TINY, "2x4", buckets=(16,), rules=rules).specs for rules in (str(table), "2d", "fsdp")
    )

    def text(specs, name):
        return lower(specs[name]).as_text()

    assert text(own, "decode") == text(two_d, "decode") != text(fsdp, "decode")
    assert text(own, "prefill_1x16") == text(fsdp, "prefill_1x16") != text(two_d, "prefill_1x16")
