"""The worked examples of the README's section on batches, run as they stand there."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.model

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
SECTION = README.partition("\n## Batches\n")[2].partition("\n## ")[0]


def example(title: str) -> str:
    """The commands below a paragraph that begins with `**title.**`."""
    found = re.search(rf"\*\*{title}\.\*\*.*?```bash\n(.*?)```", SECTION, re.DOTALL)
    assert found, f"the README has no example of {title}"
    return found[1].replace(".venv/bin/python", sys.executable)


def run(title: str, folder: Path) -> None:
    done = subprocess.run(
        ["bash", "-euc", example(title)], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_classification(tmp_path):
    run("Classification", tmp_path)
    found = rows(tmp_path / "labels.csv")
    assert [row["id"] for row in found] == ["r1", "r2", "r3"]
    assert found[0]["text"] == "The battery lasts two days, I love it."
    assert [row["output"] for row in found] == ["positive", "negative", "positive"]
    assert all(row["finish_reason"] == "stop" for row in found)


def test_translation(tmp_path):
    run("Translation", tmp_path)
    lines = (tmp_path / "french.jsonl").read_text("utf-8").splitlines()
    found = sorted((json.loads(line) for line in lines), key=lambda line: line["custom_id"])
    assert [line["custom_id"] for line in found] == ["row-1", "row-2"]
    assert found[0]["row"] == {"text": "Good morning, how are you?"}
    assert all(line["output"].strip() for line in found)


def test_extraction(tmp_path):
    run("Extraction", tmp_path)
    found = [json.loads(row["output"]) for row in rows(tmp_path / "orders.csv")]
    assert len(found) == 2
    assert all(order.keys() == {"name", "item", "count"} for order in found)
    assert [order["count"] for order in found] == [3, 12]
