"""`python -m tpuinfer.plan`: what a slice would do with a model, before it is rented."""

import dataclasses
import json
import logging
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from absl import flags

from tpuinfer import flags as shared
from tpuinfer.errors import ConfigError, MeshError, OutOfMemoryError
from tpuinfer.planning import as_json, as_text, best, compare, question, remedies
from tpuinfer.planning import topology as slices
from tpuinfer.planning.answer import answer
from tpuinfer.planning.question import Question
from tpuinfer.planning.topology import Topology
from tpuinfer.sharding.mesh import MODEL, MeshShape, parse_mesh
from tpuinfer.sharding.presets import load_rules

flags.adopt_module_key_flags(shared)

_log = logging.getLogger("tpuinfer.plan")

_TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "A slice, such as v5e:2x4, v5p:2x2x1, v5e-8 or h100:8; several with --compare; default: the "
    "config's.",
)
_COMPILE = flags.DEFINE_bool(
    "compile", False, "Ask the TPU compiler, which needs no TPU; without it figures are reckoned."
)
_STEPS = flags.DEFINE_integer(
    "steps", None, "Decode steps in one dispatch; default: by the platform.", lower_bound=1
)
_FIT = flags.DEFINE_bool("fit", False, "Choose slots and context: as --slots auto --context auto.")
_COMPARE = flags.DEFINE_bool("compare", False, "Rank every mesh of the slice, or of several.")
_PRICE = flags.DEFINE_float(
    "price-per-chip-hour", None, "Print what a million tokens cost.", lower_bound=0.0
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON (tpuinfer/planning/as_json.py describes it).")


_READ = frozenset(flag.name for flag in (*shared.OF_A_PLAN, shared.MESH))


def main() -> None:
    """Answer the question that the flags put; exit with 3 if it does not fit."""
    shared.refuse_unread(_READ, "the planner")
    jax.config.update("jax_platforms", "cpu")  # nothing runs, and no TPU is to be taken
    chosen = shared.settings()
    named = _TOPOLOGY.value or chosen.topology
    if not named:
        raise ConfigError(
            "topology is given neither by a flag nor by a config: such as --topology v5e:2x4"
        )
    _refuse_both()
    if _FIT.value:
        chosen = dataclasses.replace(chosen, slots="auto", context="auto")
    topologies = slices.several(named)
    name, config = question.find_model(chosen.model)
    asked = Question(
        name,
        config,
        topologies[0],
        _mesh(chosen.mesh, topologies[0], config.kv_heads),
        engine=chosen.engine(),
        weights=chosen.weights if chosen.weights != "auto" else "none",
        rules=load_rules(chosen.rules) if chosen.rules else None,
        dtype=chosen.dtype,
        steps=_STEPS.value,
    )
    if _COMPARE.value:
        rows = compare.compare(asked, topologies, _PRICE.value)
        _print(rows, as_json.comparison, as_text.comparison)
        if not any(row.fits for row in rows):
            sys.exit(OutOfMemoryError.exit_code)
        return
    if len(topologies) > 1:
        raise ConfigError(f"topology is {named!r}: several go with --compare")
    _answer(_with_best(asked) if chosen.mesh == "auto" else asked)


def _refuse_both() -> None:
    """What one flag chooses another must not give: it would count for nothing.

    Raises:
      ConfigError: names both.
    """
    chosen = (
        (_FIT, shared.SLOTS, "--slots auto --context N chooses slots alone"),
        (_FIT, shared.CONTEXT, "--slots auto --context N chooses slots alone"),
        (_COMPARE, shared.MESH, "--compare takes every mesh in turn"),
        (_COMPARE, _COMPILE, "compile the mesh that it ranks first"),
    )
    for chooser, given, nearest in chosen:
        if chooser.value and given.present and given.value not in (False, "auto"):
            said = "" if given.value is True else f"={given.value}"
            raise ConfigError(
                f"--{given.name}{said} goes not with --{chooser.name}: leave out one; {nearest}"
            )


def _mesh(text: str, topology: Topology, kv_heads: int) -> MeshShape:
    """What --mesh says; else the most model-parallel one that cuts the KV heads evenly."""
    if text != "auto" and (shared.MESH.present or shared.CONFIG.value):
        return parse_mesh(text)
    legal = slices.meshes(topology)
    return next((one for one in legal if kv_heads % dict(one.axes)[MODEL] == 0), legal[0])


def _with_best(asked: Question) -> Question:
    """With the mesh that is ranked first; where none fits as it was, to say what would."""
    try:
        found = best.choose(asked)
    except OutOfMemoryError as error:
        _log.info("%s", str(error).partition(";")[0])
        return asked
    _log.info("mesh auto is %s: %s", found.mesh, found.why)
    return dataclasses.replace(asked, mesh=parse_mesh(found.mesh))


def _answer(asked: Question) -> None:
    def note(program: str) -> None:
        print(f"compiled {program}", file=sys.stderr, flush=True)

    if _COMPILE.value and not asked.topology.is_tpu:
        raise ConfigError(
            f"compile is set, and topology is {asked.topology}: the compiler that needs no device "
            "is the TPU's; nearest: leave out --compile"
        )
    try:
        found = answer(asked, compile=_COMPILE.value, note=note)
    except MeshError as error:
        _refused(asked, error)
    would = [] if found.fits and found.hbm.has_room else remedies.remedies(asked)
    _print(
        found,
        lambda found, price: as_json.as_json(found, would, price),
        lambda found, price: as_text.as_text(found, would, price),
    )
    if not found.fits:
        sys.exit(OutOfMemoryError.exit_code)


def _refused(asked: Question, error: MeshError) -> NoReturn:
    """Say what would work where nothing fits, or where rules forbid the mesh.

    Other errors name the nearest legal value themselves.
    """
    if not isinstance(error, OutOfMemoryError) and asked.rules is None:
        raise error
    would = remedies.remedies(asked)
    if _JSON.value:
        print(json.dumps(as_json.refused(asked, str(error), would), indent=1))
    raise type(error)(f"{error}\n{as_text.changes_in_words(would)}") from error


def _print(
    found: Any, data: Callable[[Any, float | None], Any], text: Callable[[Any, float | None], str]
) -> None:
    price = _PRICE.value
    print(json.dumps(data(found, price), indent=1) if _JSON.value else text(found, price))


if __name__ == "__main__":
    shared.run(main)
