"""Records as text and as HTML."""

from experiment.made_records import cells, record, records

from tpuinfer.experiment import grid
from tpuinfer.experiment.as_table import best, table


def test_one_row_a_cell_and_the_fastest_is_marked():
    made = [record(cell, step) for cell, step in zip(cells(), (3.0, 1.5, 2.0, None), strict=True)]
    text = str(table(made)).splitlines()
    assert best(made) == 1
    assert [line[:1] for line in text[:5]] == [" ", " ", "*", " ", " "]
    assert text[2].split()[1:4] == ["1", "data", "ok"]
    assert "model tiny, slots 4x64" in text[5]
    assert "simulated devices share" in text[-1]


def test_a_bound_is_no_measurement():
    made = [record(cells()[0], None), record(cells()[1], 5.0)]
    assert best(made) == 1
    assert best(made[:1]) == 0
    assert best([]) is None


def test_a_step_counts_by_its_tokens():
    few, many = cells(["1"], ["1d"], ["4x64", "16x64"])
    assert best([record(few, 2.0), record(many, 4.0)]) == 1


def test_reasons_stand_under_the_table_once():
    made = records(5)
    made += [record(cells(["8"])[0], status="refused", why="it cannot be", programs={}, hbm=None)]
    found = table(made)
    assert [row[2] for row in found.rows] == ["ok"] * 4 + ["refused"] * 2
    assert [note for note in found.notes if "it cannot be" in note] == [
        "3, 1d, 4x64 and 1 more: refused: it cannot be"
    ]


def test_fallbacks_and_bits_are_told():
    logits = {"max": 0.5, "mean": 0.1, "top1": 1.0, "equal": False, "same_bits": False, "why": None}
    why = [{"axis": "heads", "why": "9 does not divide by model=4: replicated"}]
    found = table([record(cells()[0], logits=logits, replicated=why)])
    assert "1, 1d, 4x64: heads: 9 does not divide by model=4: replicated" in found.notes
    assert any("its bits differ" in note for note in found.notes)
    row = dict(zip(found.header, found.rows[0], strict=True))
    assert (row["logits max"], row["top-1"], row["collectives / MB a step"]) == (
        "0.5",
        "1",
        "5 / 0.005",
    )
    assert "traffic" not in row


def test_the_context_of_slots_that_memory_decides_is_told():
    made = []
    for context in (2048, 4096, "auto", None):
        (cell,) = grid("tiny", slots=["auto"], context=context)
        made.append(record(cell))
    found = table(made)
    at = found.header.index("context")
    assert [row[at] for row in found.rows] == ["2048", "4096", "auto", "-"]
    assert "context" not in str(table([record(cell) for cell in cells()]))


def test_a_notebook_gets_html_that_is_escaped():
    (cell,) = cells(["1"], ["1d"], model="<b>")
    html = table([record(cell), record(cells(["2"], ["1d"])[0])])._repr_html_()
    assert html.count("<tr") == 3
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
