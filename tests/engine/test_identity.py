"""What tells two models apart: everything that may change a bit of an answer, and no folder."""

import json
import shutil

import pytest
import tiny_model

from tpuinfer.config import EngineConfig
from tpuinfer.engine import build
from tpuinfer.engine.identity import identity
from tpuinfer.errors import ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("identity")


@pytest.fixture(scope="module")
def gguf(folder):
    return tiny_model.write_gguf(folder / "tiny.gguf")


@pytest.fixture(scope="module")
def plan(gguf, folder):
    return build.make_plan(gguf, engine=EngineConfig.parse(3, 100), cache_dir=folder)


def test_it_is_flat_json_and_the_same_each_time(plan):
    found = identity(plan, name="tiny")
    assert json.loads(json.dumps(found)) == found
    assert all(isinstance(value, str | int) for value in found.values())
    assert found == identity(plan, name="tiny")
    assert (found["slots"], found["dtype"], found["platform"]) == ("3x100", "bfloat16", "cpu")
    assert len(found["fingerprint"]) == 64


def test_a_copy_elsewhere_is_the_same_model(plan, gguf, folder):
    copy = shutil.copytree(plan.path, folder / "copy")
    there = build.make_plan(copy, engine=EngineConfig.parse(3, 100))
    assert identity(there, name="tiny") == identity(plan, name="tiny")


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"engine": EngineConfig.parse(4, 100)}, {"slots"}),
        ({"engine": EngineConfig.parse(3, 90)}, {"slots", "context"}),
        ({"engine": EngineConfig.parse(3, 100, context_policy="roll")}, {"context_policy"}),
        ({"dtype": "float32"}, {"dtype", "stored"}),
        ({"mesh": "2"}, {"mesh"}),
    ],
)
def test_what_may_change_bits_changes_it(plan, gguf, folder, changed, names):
    asked = {"engine": EngineConfig.parse(3, 100), "cache_dir": folder} | changed
    other = identity(build.make_plan(gguf, **asked), name="tiny")
    mine = identity(plan, name="tiny")
    differing = {name for name in mine if mine[name] != other[name]}
    assert names | {"fingerprint"} <= differing
    assert "weights" not in differing


def test_another_chat_template_and_another_vocabulary_change_it(plan, tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text("a", "utf-8")
    first = identity(plan, name="tiny", chat_template=template)
    template.write_text("b", "utf-8")
    second = identity(plan, name="tiny", chat_template=template)
    mine = identity(plan, name="tiny")
    assert len({one["fingerprint"] for one in (first, second, mine)}) == 3
    with pytest.raises(ConfigError, match="chat-template"):
        identity(plan, name="tiny", chat_template=tmp_path / "none")
    copy = shutil.copytree(plan.path, tmp_path / "copy")
    sums = copy / "SHA256SUMS"
    lines = sums.read_text("utf-8").splitlines()
    changed = ["0" * 64 + line[64:] if line.endswith(" config.json") else line for line in lines]
    assert changed != lines
    sums.write_text("\n".join(changed) + "\n", "utf-8")
    there = build.make_plan(copy, engine=EngineConfig.parse(3, 100))
    assert identity(there, name="tiny")["files"] != mine["files"]
