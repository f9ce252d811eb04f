"""`python -m tpuinfer.convert`: any model to a checkpoint directory, or to Hugging Face's files."""

import logging
from collections import Counter

from absl import flags

from tpuinfer import flags as shared
from tpuinfer.checkpoint import catalogue, layout
from tpuinfer.checkpoint import convert as room
from tpuinfer.checkpoint.export import export
from tpuinfer.checkpoint.load import default_cache_dir, find
from tpuinfer.errors import ConfigError
from tpuinfer.models import registry
from tpuinfer.quant.schemes import AUTO
from tpuinfer.sharding.report import render

_KEYS = (shared.CONFIG, shared.MODEL, shared.DTYPE, shared.WEIGHTS, shared.CACHE_DIR, shared.VERIFY)
for _flag in _KEYS:
    flags.declare_key_flag(_flag.name)

_NOT_HERE = (
    *(shared.MESH, shared.RULES, shared.SLOTS, shared.CONTEXT, shared.RING),
    *(shared.SHOW_SHARDING, shared.SHOW_MEMORY, shared.SHOW_PROGRAMS),
)

_OUTPUT = flags.DEFINE_string("output", None, "Directory to write; must not exist or be empty.")
_TO = flags.DEFINE_enum(
    "to", "orbax", ("orbax", "hf"), "A checkpoint directory, or Hugging Face's safetensors."
)
_LIST = flags.DEFINE_bool("list", False, "Print the model families, and the catalogue's names.")

_log = logging.getLogger("tpuinfer.convert")


def main() -> None:
    """Convert --model into --output; --dtype auto keeps what is published, bfloat16 of a GGUF."""
    for flag in _NOT_HERE:
        if flag.present:
            raise ConfigError(
                f"--{flag.name} is given, but a checkpoint is the same for every mesh and size: "
                "give it to serve or generate"
            )
    if _LIST.value:
        print(f"{render(registry.table())}\n\n{render(_catalogue())}")
        return
    output: str | None = _OUTPUT.value
    if output is None:
        raise ConfigError("--output is not given: it names the directory to write")
    if not shared.MODEL.present and not shared.CONFIG.present:
        raise ConfigError("--model is not given: it names what to convert; --list shows some")
    if _TO.value == "hf" and shared.VERIFY.value:
        raise ConfigError("--verify checks the sums of a checkpoint directory: leave it, or --to")
    chosen = shared.settings()
    if _TO.value == "hf" and chosen.weights != AUTO:
        raise ConfigError(
            f"weights is {chosen.weights!r}: --to hf writes them as they are worth, in no scheme; "
            "leave it, or --to orbax"
        )
    with shared.Bars() as progress:
        cache = shared.cache_dir() or default_cache_dir()
        found = find(chosen.model, cache, progress)
        if _TO.value == "hf":
            target = export(found.path, output, chosen.dtype, progress)
            _log.info("%s: %s, safetensors, %s", target, chosen.model, chosen.dtype)
            return
        target = room.convert(
            found.path,
            output,
            chosen.dtype,
            progress,
            sha256=found.sha256,
            weights=chosen.weights,
        )
        if shared.VERIFY.value:
            layout.verify(target, progress)
        manifest = layout.read_manifest(target)
        kinds = Counter(str(scheme) for scheme, _, _ in manifest.schemes.values())
        said = ", ".join([manifest.dtype, *(f"{n} as {kind}" for kind, n in kinds.most_common())])
        _log.info("%s: %s, %s", target, chosen.model, said)


def _catalogue() -> list[tuple[str, ...]]:
    """What is known by name, a row for each model."""
    rows: list[tuple[str, ...]] = [("catalogue", "licence", "description")]
    rows += [(one.name, one.licence, one.description) for one in catalogue.entries().values()]
    return rows


if __name__ == "__main__":
    shared.run(main)
