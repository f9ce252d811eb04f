"""The manifest as text and as JSON."""

import json

from toy import toy

from tpuinfer.programs.manifest import Entry, as_dicts, render, table

ENTRIES = [
    Entry("prefill_64", "tokens i32[4,64]", 0.25, 1.5, 4_000_000, 2_000_000, 30_000, 0, 5e9, "hit"),
    Entry("decode", "n i32[], " + 20 * "word ", 0.5, 2.0, 0, 0, 0, 10_000, None, "miss"),
]


def test_the_table_by_hand():
    header, first, second, total = table(ENTRIES)
    assert {len(line) for line in (header, first, second, total)} == {10}
    assert first == (
        *("prefill_64", "0.25", "1.50", "hit", "4.00", "2.00", "0.03", "0.00", "5.000"),
        "tokens i32[4,64]",
    )
    assert second[8] == "-"
    assert second[9].startswith("n i32[], word word")
    assert second[9].endswith("...")
    assert total[:4] == ("total", "0.75", "3.50", "1 hit, 1 miss")


def test_text_is_one_line_a_program():
    lines = render(ENTRIES).splitlines()
    assert [line.split()[0] for line in lines] == ["program", "prefill_64", "decode", "total"]


def test_json_keeps_everything():
    assert [Entry(**entry) for entry in json.loads(json.dumps(as_dicts(ENTRIES)))] == ENTRIES


def test_a_compiled_program_has_its_line():
    """Sizes by hand: w, sum f32[8]; calls, n i32[]; rows i32[4,3]; sums i32[4]."""
    program = toy("toy")
    entry = program.entry
    assert (program.name, entry.name) == ("toy", "toy")
    assert entry.shapes == "rows i32[4,3], n i32[]"
    assert entry.argument_bytes == 32 + 32 + 4 + 48 + 4
    assert entry.alias_bytes == 32 + 4
    assert entry.output_bytes >= 32 + 4 + 16
    assert entry.flops > 0
    assert entry.lower_seconds > 0
    assert entry.compile_seconds > 0
