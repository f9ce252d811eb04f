"""What the README says in tables is what the code says."""

from pathlib import Path

from tpuinfer.models import registry
from tpuinfer.sharding.presets import PRESETS

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_its_table_of_families_is_the_registry():
    header, *rows = registry.table()
    lines = [
        f"| {' | '.join(header)} |",
        "|" + "---|" * len(header),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    table = "\n".join(lines)
    assert f"\n\n{table}\n\n" in README, f"paste this:\n{table}"


def test_its_table_of_presets_is_what_there_is():
    _, table = README.split("| preset | what it does | wins | loses |", 1)
    rows = table.split("\n\n", 1)[0].splitlines()[2:]
    assert sorted(row.split("`")[1] for row in rows) == sorted(PRESETS)
