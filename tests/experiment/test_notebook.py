"""The example notebook runs from top to bottom, over a model of this suite's."""

import json
import subprocess
import sys
from pathlib import Path

import tiny_model

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "scripts" / "sharding_experiment.ipynb"
MODEL = 'RUNS = "smollm2-135m-instruct"'


def as_script(model: Path) -> str:
    """Its cells of code, one after the other."""
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells), "outputs are kept out of the repository"
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    text = "\n\n".join(sources)
    assert text.count(MODEL) == 1
    return text.replace(MODEL, f"RUNS = {str(model)!r}")


def test_the_notebook_runs(tmp_path: Path) -> None:
    model = tiny_model.write_checkpoint(tmp_path / "tiny")
    script = tmp_path / "script.py"
    script.write_text(as_script(model), "utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made = tmp_path / "experiment"
    assert (made / "planned.png").stat().st_size > 20_000
    planned, ran = (
        [json.loads(line) for line in (made / name).read_text("utf-8").splitlines()]
        for name in ("planned.jsonl", "ran.jsonl")
    )
    assert [one["status"] for one in planned] == ["ok"] * 15
    assert {one["cell"]["rules"] for one in planned} == {"1d", "2d", "fsdp", "sequence", "own"}
    assert [one["cell"]["rules"] for one in ran] == ["1d", "sequence"]
    assert all(one["logits"]["mean"] < 1e-4 and one["logits"]["top1"] == 1 for one in ran)
