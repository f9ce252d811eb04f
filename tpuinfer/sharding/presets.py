"""Tables by name, and tables from TOML files.

1d         heads, mlp, vocab and experts over model, rows over data: what runs by default
2d         1d, and weights cut along embed over data too: rows come together for the products
data       rows over every device, weights whole on each
fsdp       1d, and weights cut along embed over data where they lie, gathered where they are used
sequence   1d, and sums kept scattered along embed: norms work on a device's own part
expert     experts by number over `expert`, rows over data and expert, the rest over model
context    rings cut along their length over model, KV heads whole
"""

import dataclasses
import difflib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpuinfer.config import read_toml
from tpuinfer.errors import MeshError
from tpuinfer.sharding.mesh import DATA, EXPERT, MESH_AXES, MODEL
from tpuinfer.sharding.rules import Place, ShardingRules

DEFAULT = ShardingRules()


def _also(gather: tuple[str, ...] = (), **axes: Place) -> ShardingRules:
    return dataclasses.replace(DEFAULT, axes={**DEFAULT.axes, **axes}, gather=gather)


PRESETS: Mapping[str, ShardingRules] = types.MappingProxyType(
    {
        "1d": DEFAULT,
        "2d": _also(embed=DATA, expert_mlp=(DATA, MODEL)),
        "data": ShardingRules(axes={"batch": MESH_AXES}),
        "fsdp": _also(("embed", "expert_embed"), embed=DATA, expert_embed=DATA),
        "sequence": _also(residual=MODEL),
        "expert": _also(batch=(DATA, EXPERT), expert=EXPERT),
        "context": _also(kv_heads=None, length=MODEL),
    }
)

_ENTRIES = ("preset", "reduce", "gather", "axes", "fallback", "prefill")


def load_rules(source: str | Path | ShardingRules | None) -> ShardingRules:
    """A preset by name, or rules from TOML; a table as it is, and the default one for nothing.

    A file has `preset` (the table that it changes; "1d" if it names none), `reduce`, `gather`, the
    tables [axes] and [fallback], and [prefill] with the same entries: what differs there. What is
    absent stays as it is. An empty string replicates an axis, a list cuts it over several mesh
    axes: `heads = ""`, `batch = ["data", "expert"]`.

    Raises:
      MeshError: an unknown preset, table, axis or value. ConfigError: the file cannot be read.
    """
    if isinstance(source, ShardingRules):
        return source
    if source is None or source == "":
        return DEFAULT
    if (found := PRESETS.get(str(source))) is not None:
        return found
    path = Path(source)
    if not path.suffix and not path.exists():
        near = difflib.get_close_matches(str(source), PRESETS, n=1, cutoff=0.0)[0]
        raise MeshError(
            f"rules is {str(source)!r}, which is no file and no preset; nearest: {near!r}; presets "
            f"are {', '.join(PRESETS)}"
        )
    return from_data(read_toml(path), str(path))


def from_data(data: Mapping[str, Any], where: str = "rules") -> ShardingRules:
    """Rules from what a TOML file holds.

    Args:
      where: what errors begin with.

    Raises:
      MeshError: as `load_rules`.
    """
    name = data.get("preset", "1d")
    if not isinstance(name, str) or name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=1, cutoff=0.0)[0]
        raise MeshError(f"{where}: preset is {name!r}; nearest: {near!r}")
    base = _changed(PRESETS[name], data, where)
    if "prefill" not in data:
        return base
    prefill = data["prefill"]
    if not isinstance(prefill, Mapping):
        raise MeshError(f"{where}: prefill is {prefill!r}: write a table, [prefill]")
    for entry in ("preset", "prefill"):
        if entry in prefill:
            raise MeshError(f"{where}: [prefill] has {entry!r}: it says what differs; leave it out")
    alone = dataclasses.replace(base, prefill=None)
    changed = _changed(alone, prefill, f"{where}: [prefill]")
    try:
        return dataclasses.replace(base, prefill=changed)
    except MeshError as error:
        raise MeshError(f"{where}: {error}") from error


def _changed(base: ShardingRules, data: Mapping[str, Any], where: str) -> ShardingRules:
    if unknown := sorted(set(data) - set(_ENTRIES)):
        near = difflib.get_close_matches(unknown[0], _ENTRIES, n=1, cutoff=0.0)[0]
        raise MeshError(
            f"{where}: {unknown[0]!r} is not known; nearest: {near!r}; write preset, reduce, "
            "gather, [axes], [fallback], [prefill]"
        )
    for table in ("axes", "fallback"):
        if not isinstance(data.get(table, {}), Mapping):
            raise MeshError(f"{where}: {table} is {data[table]!r}: write a table, [{table}]")
    if not isinstance(data.get("gather", []), list | tuple):
        raise MeshError(f"{where}: gather is {data['gather']!r}: write a list of axes")
    axes = {name: None if place == "" else place for name, place in data.get("axes", {}).items()}
    try:
        return dataclasses.replace(
            base,
            axes={**base.axes, **axes},
            fallback={**base.fallback, **data.get("fallback", {})},
            reduce=data.get("reduce", base.reduce),
            gather=data.get("gather", base.gather),
        )
    except MeshError as error:
        raise MeshError(f"{where}: {error}") from error
