"""Habits that hold for every file of the project."""

import os
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_OURS = {".git", ".venv", "__pycache__", "build", "dist"}
BINARY = {".npz", ".png", ".model"}
LONGEST = 600

# Written in halves, so that this file does not hold what it looks for.
PRIVATE = tuple(
    first + second
    for first, second in [
        ("/wo", "rk/"),
        ("/opt/", "wheels"),
        ("pypi", ".org"),
        ("pythonhosted", ".org"),
        ("-----BEGIN ", "PRIVATE"),
    ]
)


def project_files() -> list[Path]:
    """Every file of the checkout but those of git, environments, caches and builds."""
    found = []
    for folder, names, files in os.walk(ROOT):
        names[:] = [
            n for n in names if n not in NOT_OURS and not n.endswith((".egg-info", "_cache"))
        ]
        names[:] = [n for n in names if n != ".hypothesis"]
        found += [Path(folder, name) for name in files]
    return sorted(path for path in found if path.suffix not in BINARY and path.name != "uv.lock")


def private_strings(text: str) -> list[str]:
    """The machine-bound strings that `text` holds."""
    return [string for string in PRIVATE if string in text]


def test_no_file_names_a_machine_or_a_registry():
    named = {
        path.relative_to(ROOT).as_posix(): private_strings(
            path.read_text("utf-8", errors="replace")
        )
        for path in project_files()
    }
    assert {path: strings for path, strings in named.items() if strings} == {}
    assert {"pyproject.toml", "scripts/serve", ".ci/run", "tpuinfer/config.py"} <= named.keys()


def test_a_private_string_is_seen():
    assert private_strings("cd " + "/wo" + "rk/main && ls") == ["/wo" + "rk/"]
    assert private_strings("the work is done; network/ is fine") == []


def test_no_source_outgrows_its_room():
    long = {
        path.name: lines
        for path in project_files()
        if path.suffix == ".py" and (lines := path.read_text("utf-8").count("\n")) > LONGEST
    }
    assert long == {}


def requirement_names(requirements: list[str]) -> set[str]:
    """The name in front of each: etils[epath]>=1.9 is etils."""
    return {re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0] for line in requirements}


@pytest.fixture(scope="module")
def pins():
    lines = (ROOT / "scripts" / "constraints.txt").read_text("utf-8").splitlines()
    matches = [re.fullmatch(r"([a-z0-9][a-z0-9-]*)==([0-9][0-9a-z.]*)", line) for line in lines]
    assert all(matches), "each line is name==version, with no host, marker or local version"
    return [match.group(1) for match in matches]


def test_pins_are_sorted_and_single(pins):
    assert pins == sorted(set(pins))


def test_every_direct_dependency_is_pinned(pins):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = requirement_names([*project["dependencies"], *extras["dev"], *extras["parity"]])
    assert wanted - set(pins) == set()
