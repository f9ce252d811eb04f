"""Imports fall, never rise; libraries stay in their rooms; every room says what it is."""

import ast
from pathlib import Path

import pytest
from import_rules import LEVELS, NO_JAX, RULES, cycle, module_name, room_of, violations

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tpuinfer"
FILES = {
    module_name(path.relative_to(PACKAGE).as_posix()): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
PACKAGES = frozenset(name for name, path in FILES.items() if path.name == "__init__.py")


@pytest.mark.parametrize("module", FILES)
def test_imports_keep_the_rules(module):
    source = FILES[module].read_text(encoding="utf-8")
    assert violations(source, module, module in PACKAGES) == []


def test_there_is_no_import_cycle():
    assert cycle({name: path.read_text("utf-8") for name, path in FILES.items()}, PACKAGES) == []


@pytest.mark.parametrize("module", sorted(PACKAGES))
def test_every_package_says_what_it_does(module):
    docstring = ast.get_docstring(ast.parse(FILES[module].read_text("utf-8")))
    assert docstring, f"tpuinfer/{module.replace('.', '/')}/__init__.py has no docstring"


def test_the_rules_name_places_that_exist():
    rooms = {room for level in LEVELS for room in level}
    written = {room_of(module) for module in FILES}
    assert {"models", "cache", "server", "engine"} <= written <= rooms
    for place in [*NO_JAX, *(place for rule in RULES for place in rule.allowed)]:
        assert place in rooms or place in FILES, f"{place} is neither a room nor a module"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cache.ring", "from tpuinfer.engine.request import Request"),
        ("cache.ring", "def f():\n    import tpuinfer.server.app"),
        ("cache.ring", "from ..engine import request"),
        ("ops.norm", "from tpuinfer.tokenizer import vocabulary"),
        ("models.llama", "from tpuinfer.serve import main"),
        ("engine.llm", "import tpuinfer.flags"),
        ("engine.llm", "from tpuinfer.testing.fake import FakeRunner"),
        ("serve", "from tpuinfer.testing import fake"),
        ("engine.llm", "from tpuinfer import LLM"),
        ("errors", "from tpuinfer.config import EngineConfig"),
        ("server.app", "import jax.numpy as jnp"),
        ("engine.scheduler", "if True:\n    import jax"),
        ("programs.buckets", "from jax import Array"),
        ("tokenizer.load", "from flax import struct"),
        ("engine.llm", "from absl import flags"),
        ("cache.ring", "import os\nHOME = os.environ['HOME']"),
        ("cache.ring", "from os import environ"),
        ("cache.ring", "import os as system\nHOME = system.environ.get('HOME')"),
        ("cache.ring", "import os\nHOME = os.getenv('HOME')"),
        ("engine.device", "import jax\n\n@jax.jit\ndef f(x):\n    return x"),
        ("models.llama", "from functools import partial\nfrom jax import jit"),
        ("programs.decode", "from flax import nnx"),
        ("ops.norm", "import flax.nnx as nn"),
        ("ops.norm", "from jax._src import core"),
        ("ops.norm", "import jax\ncore = jax._src.core"),
        ("checkpoint.load", "from orbax.checkpoint import v1"),
        ("checkpoint.load", "import pickle"),
    ],
)
def test_a_violation_is_caught(module, source):
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("engine.llm", "import jax\nfrom tpuinfer.programs.compile import Programs"),
        ("engine.llm", "from tpuinfer.engine.request import Request"),
        ("engine.llm", "from . import request"),
        ("server.app", "from tpuinfer.engine.engine import Engine"),
        ("serve", "import os\nfrom absl import app\nfrom tpuinfer import flags\nos.environ['A']"),
        ("flags", "from absl import flags\nfrom tpuinfer.config import Settings"),
        ("config", "from tpuinfer.errors import ConfigError"),
        ("programs.decode", "import jax\nstep = jax.jit(lambda x: x)"),
        ("models.llama", "from flax import nnx"),
        ("sharding.simulate", "import os\nos.environ['NPROC'] = '8'"),
        ("checkpoint.paths", "import os\nos.path.join('environ', 'jax.jit')"),
        ("testing.fake", "from tpuinfer.engine.runner import Runner"),
        ("cache.ring", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import absl"),
        ("models.blocks", "from tpuinfer.ops.norm import rms_norm"),
    ],
)
def test_what_is_allowed_passes(module, source):
    assert violations(source, module) == []


def test_what_runs_when_types_are_not_checked_counts():
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    import absl"
    assert violations(source, "cache.ring")


def test_a_line_says_where_and_what():
    (line,) = violations("\nfrom absl import flags", "cache.ring")
    assert line.startswith("tpuinfer.cache.ring:2 uses absl.flags")


def test_a_cycle_is_found():
    sources = {
        "a": "from tpuinfer.b import x",
        "b": "import tpuinfer.c.d",
        "c": "",
        "c.d": "def f():\n    from tpuinfer import a",
        "e": "import json",
    }
    assert cycle(sources) == ["a", "b", "c.d", "a"]
    assert cycle({**sources, "c.d": ""}) == []


def test_a_cycle_through_a_package_is_found():
    sources = {"c": "from .d import x", "c.d": "from tpuinfer import c"}
    assert cycle(sources, frozenset({"c"})) == ["c", "c.d", "c"]
