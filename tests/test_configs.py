"""Every recipe in configs/ loads, and its parts fit each other."""

from pathlib import Path

import pytest

from tpuinfer.checkpoint import catalogue
from tpuinfer.config import load_settings
from tpuinfer.sharding.mesh import DATA, parse_mesh

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "configs").glob("*.toml"))


def test_there_are_recipes():
    assert {"smollm2-135m_cpu-1.toml", "smollm2-135m_cpu-2x4.toml"} <= {p.name for p in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_fits_together(path):
    settings = load_settings(path, {})
    shards = dict(parse_mesh(settings.mesh).axes)[DATA]
    assert all(one.slots % shards == 0 for one in settings.engine().classes)
    assert settings.model in catalogue.entries() or "/" in settings.model


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_named_after_its_mesh(path):
    mesh = load_settings(path, {}).mesh
    assert path.stem.rpartition("-")[2] == str(mesh)
