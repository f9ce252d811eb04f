"""Every recipe in configs/ loads, and its parts fit each other and the slice that it names."""

import functools
import re
from pathlib import Path

import pytest

from tests import doors
from tests.planning import described
from tpuinfer.checkpoint import catalogue
from tpuinfer.config import Settings, load_settings
from tpuinfer.models import sizes
from tpuinfer.planning import compiled
from tpuinfer.planning import topology as slices
from tpuinfer.planning.answer import Answer, answer
from tpuinfer.planning.question import Question, find_model, lay_out
from tpuinfer.sharding.mesh import DATA, parse_mesh

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {path.stem: path for path in sorted((ROOT / "configs").glob("*.toml"))}
FOR_SLICES = [name for name, path in RECIPES.items() if load_settings(path, {}).topology]

MODELS = (
    "llama-3.1-8b",
    "llama-3.3-70b",
    "qwen3-8b",
    "qwen3-32b",
    "qwen3-30b-a3b",
    "gemma-3-27b",
    "gpt-oss-20b",
    "gpt-oss-120b",
    "mixtral-8x7b",
)
SLICES = ("v5e-8", "v6e-8", "v5p-8", "tpu7x-8")
TOO_LARGE = {"gpt-oss-120b_v5e-8"}
"""Even in int8, enough slots leave no room for what is only estimated."""

CONTEXT, ENOUGH_SLOTS, STEP_SECONDS = 8192, 16, 25e-3
"""What recipes for slices hold to: tokens a slot, slots a copy, a step's bound."""

HEADROOM, ROOM_TO_START = 0.03, 0.10
"""Of memory: what a recipe must leave, and what one is chosen to leave."""


def question(chosen: Settings) -> Question:
    """What `python -m tpuinfer.plan --config` asks."""
    name, config = find_model(chosen.model)
    assert chosen.topology is not None
    return Question(
        name,
        config,
        slices.parse(chosen.topology),
        parse_mesh(chosen.mesh),
        chosen.engine(),
        weights="none" if chosen.weights == "auto" else chosen.weights,
        dtype=chosen.dtype,
    )


@functools.cache
def reckoned(name: str) -> Answer:
    """The answer to a recipe; refuses a mesh that does not cover the slice."""
    return answer(question(load_settings(RECIPES[name], {})))


def test_there_are_recipes():
    cpu = {"smollm2-135m_cpu-1", "smollm2-135m_cpu-2x4"}
    tpu = {f"{model}_{slice_}" for model in MODELS for slice_ in SLICES}
    assert RECIPES.keys() == cpu | (tpu - TOO_LARGE) | {"llama-3.3-70b_v6e-16"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_together(name):
    settings = load_settings(RECIPES[name], {})
    shards = dict(parse_mesh(settings.mesh).axes)[DATA]
    assert all(one.slots % shards == 0 for one in settings.engine().classes)
    assert settings.model in catalogue.entries() or "/" in settings.model


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_named_after_its_model_and_where_it_runs(name):
    settings = load_settings(RECIPES[name], {})
    model, _, place = name.partition("_")
    assert sizes.by_path(settings.model) == model
    if settings.topology:
        assert settings.topology == str(slices.parse(place))
    else:
        assert place == f"cpu-{settings.mesh}"


@pytest.mark.parametrize("name", FOR_SLICES)
def test_a_recipe_fits_its_slice(name):
    found = reckoned(name)
    assert found.hbm.headroom >= HEADROOM * found.hbm.capacity
    assert found.decode.bound.seconds <= STEP_SECONDS
    assert found.plan.slots.per_shard >= ENOUGH_SLOTS
    assert found.plan.context == min(CONTEXT, found.question.config.context)


@pytest.mark.parametrize("name", FOR_SLICES)
def test_a_recipe_says_what_it_is_and_what_bounds_it(name):
    settings = load_settings(RECIPES[name], {})
    first, second = RECIPES[name].read_text("utf-8").splitlines()[:2]
    kept = "int8 weights and rings" if settings.ring == "int8" else "int8 weights"
    assert f" on {name.partition('_')[2]} (" in first
    assert first.endswith(": all bf16." if settings.weights == "auto" else f": {kept}.")
    limit = {"HBM": "HBM", "FLOPs": "the multipliers", "ICI": "the links"}
    bound = reckoned(name).decode.bound
    order = ("weights", "rings") if bound.weights > bound.rings else ("rings", "weights")
    assert second.startswith(f"# A decode step waits for {limit[bound.limit]}")
    if bound.limit == "HBM":
        assert re.search(r"for (\w+) more than for (\w+);", second).groups() == order


@pytest.mark.parametrize("name", sorted(TOO_LARGE))
def test_what_has_no_recipe_does_not_fit(name):
    model, _, place = name.partition("_")
    topology = slices.parse(place)
    for mesh in slices.meshes(topology):
        small = Settings(
            model,
            mesh=slices.written(mesh),
            topology=str(topology),
            slots=ENOUGH_SLOTS * dict(mesh.axes)[DATA],
            context=CONTEXT,
            weights="int8",
            ring="int8",
        )
        hbm = answer(question(small)).hbm
        assert hbm.headroom < ROOM_TO_START * hbm.capacity


def test_a_plan_takes_a_recipe_and_flags_win():
    recipe = str(RECIPES["llama-3.1-8b_v5e-8"])
    own = doors.run("plan", "--config", recipe)
    assert (own.code, own.err) == (0, "")
    assert "v5e:2x4" in own.out
    other = doors.run("plan", "--config", recipe, "--topology", "v6e-8")
    assert other.code == 0
    assert "v6e:2x4" in other.out


@pytest.mark.aot
@pytest.mark.skipif(not described.LIBTPU, reason=described.WHY)
@pytest.mark.parametrize("name", ["llama-3.1-8b_v5e-8", "mixtral-8x7b_v5e-8"])
def test_the_compiler_agrees(name):
    plan = lay_out(question(load_settings(RECIPES[name], {})), described=True)
    decode = compiled.compile_all(plan, names=["decode"])["decode"]
    assert decode.needs == 0
    assert decode.ring_copies == 0
    assert decode.alias_bytes > 0
