"""`python -m tpuinfer.convert`: a GGUF file or a catalogue name to a checkpoint directory."""

import logging
from typing import Literal

from absl import flags

from tpuinfer import flags as shared
from tpuinfer.checkpoint import catalogue, layout
from tpuinfer.checkpoint import convert as room
from tpuinfer.checkpoint.fetch import fetch
from tpuinfer.checkpoint.load import default_cache_dir
from tpuinfer.checkpoint.paths import locate
from tpuinfer.errors import CheckpointError, ConfigError

for _flag in (shared.CONFIG, shared.MODEL, shared.DTYPE, shared.CACHE_DIR, shared.VERIFY):
    flags.declare_key_flag(_flag.name)

_NOT_HERE = (shared.MESH, shared.RULES, shared.SLOTS, shared.CONTEXT, shared.SHOW_SHARDING)

_OUTPUT = flags.DEFINE_string("output", None, "Directory to write; must not exist or be empty.")

_log = logging.getLogger("tpuinfer.convert")


def main() -> None:
    """Convert --model into --output; --dtype float32 rounds nothing, auto stores bfloat16."""
    for flag in _NOT_HERE:
        if flag.present:
            raise ConfigError(
                f"--{flag.name} is given, but a checkpoint is the same for every mesh and size: "
                "give it to serve or generate"
            )
    chosen = shared.settings()
    dtype: Literal["bfloat16", "float32"] = "float32" if chosen.dtype == "float32" else "bfloat16"
    output = _OUTPUT.value
    assert output is not None  # the flag is marked as required
    with shared.Bars() as progress:
        source = locate(chosen.model)
        if source.is_dir():
            raise CheckpointError(f"{chosen.model}: is a directory; convert reads a GGUF file")
        if not source.exists():
            entry = catalogue.find(chosen.model)
            cache = shared.cache_dir() or default_cache_dir()
            source = fetch(entry, cache / "downloads", progress)
        target = room.convert(source, output, dtype, progress)
        if shared.VERIFY.value:
            layout.verify(target, progress)
    _log.info("%s: %s, %s", target, chosen.model, dtype)


if __name__ == "__main__":
    flags.mark_flag_as_required("output")
    shared.run(main)
