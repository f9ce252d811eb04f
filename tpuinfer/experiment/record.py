"""What became of a cell: a line of JSON, version 1.

    version          1; a field that is there keeps its meaning within a version, others may come
    key              16 hexadecimal digits of the cell, all of it but `rules`; of lines with one key
                     the last holds
    cell             what was tried: model, topology (null = the devices here), mesh {axis: size},
                     rules (the table's name when this was done), table (what it says), slots,
                     context (tokens of the longest slots; null = by the model and the platform, or
                     by the memory), fit (what the memory was to decide: "nothing", "slots",
                     "context" or "both"), ring, weights, dtype, steps, attention, context_policy,
                     sinks, compile
    where            how: "ran", "compiled" (by the TPU compiler, nothing ran) or "reckoned" (from
                     shapes alone); platform, device_kind, devices (of the mesh), simulated (devices
                     of a CPU that is one machine), weights ("checkpoint", "random" or null), and
                     the versions of jax and libtpu
    status           "ok"; "does not fit": too much for the memory; "refused": the mesh, the rules
                     or the slots cannot be; "failed": anything else
    why              one line; null where the status is ok
    seconds          that the cell took, compiling and all
    compile_seconds  by program; null = read from a cache of compiled programs
    hbm              bytes of one device: weights, rings, state, temporaries (what the most
                     demanding program needs beside them), headroom, capacity, and `estimated`:
                     which of these are
    programs         by name, "decode" first; of decode all is for one step:
      ideal_bytes, traffic_bytes, traffic_ratio     moved through a device's memory, at least and by
                     the compiled program; null where that is not compiled, or is for a CPU
      collectives    {kind: {count, bytes}} of one device, bytes of the larger side; null = unknown
      counted        where they were counted: "compiled", or "reckoned" from shapes
      bound_ms, bound, limit      the least time, its parts (weights, flops, rings, links) in ms,
                     and which of them decides
      bound_from     "chip": its vendor's figures; "measured": what this machine did just before
      measured_ms    {median, p10, p90, samples}, every slot live and every ring full, or of a full
                     chunk for each data shard at the end of a full ring; null = nothing ran
      temp_bytes, flops     scratch of the compiled program; operations by their operands' kind
    logits           log-probabilities of the next token, in nats, after 48 tokens of a prefill and
                     16 that were decoded one by one; null = nothing ran:
      tokens, file   how many tokens; where they lie, in the folder OUT.logits
      reference      the file of those on one device under the default rules, with the rotary
                     factors of this cell's context; why: why there is none
      max, mean      absolute differences from it, over tokens and the whole vocabulary
      top1, equal    share of tokens whose most likely next one is the same; whether every bit is
      same_layout, same_bits      key of the first cell whose arrays lie as this one's do and whose
                     file is there, and whether both have the same bits, as they must; null = none
    replicated       [{axis, why}]: what the rules would cut and this mesh does not
    repeats          how often each KV head is kept
    resharding_bytes    of weights that each call of a prefill with rules of its own sends a device;
                     0 where it has none
    layout           digits of where everything lies; equal where nothing lies elsewhere

Unknown is null. All bytes and times are of one device.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tpuinfer.errors import ConfigError

VERSION = 1

Status = Literal["ok", "does not fit", "refused", "failed"]

_DECODE = "decode"

_OF_PROGRAM = ("bound_ms", "limit", "measured_ms")

_ENTRIES = {
    "cell": ("model", "topology", "mesh", "rules", "slots", "ring", "weights", "dtype"),
    "where": ("how", "platform", "device_kind", "simulated"),
    "hbm": ("weights", "rings", "state", "temporaries", "headroom", "capacity"),
    "logits": ("file", "max", "mean", "top1", "equal", "same_bits", "why"),
}
"""What tables and plots read of a line; the last two may be null."""


@dataclass(frozen=True)
class Record:
    """One line, as the module says.

    Attributes:
      folder: where the logits lie; not in the file.
    """

    key: str
    cell: Mapping[str, Any]
    where: Mapping[str, Any]
    status: Status
    why: str | None = None
    seconds: float = 0.0
    compile_seconds: Mapping[str, float | None] = field(default_factory=dict)
    hbm: Mapping[str, Any] | None = None
    programs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    logits: Mapping[str, Any] | None = None
    replicated: Sequence[Mapping[str, str]] = field(default_factory=list)
    repeats: int | None = None
    resharding_bytes: int | None = None
    layout: str | None = None
    folder: Path | None = field(default=None, compare=False)

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def decode(self) -> Mapping[str, Any]:
        """Figures of a decode step; empty if there are none."""
        return self.programs.get(_DECODE, {})

    @property
    def chunk(self) -> Mapping[str, Any]:
        """Figures of the prefill of one chunk for each data shard; empty if there are none."""
        return next((one for name, one in self.programs.items() if name != _DECODE), {})

    @property
    def context(self) -> int | str | None:
        """What was asked beside slots auto: tokens or auto; None = nothing, or the slots say it."""
        if self.cell["slots"] != "auto":
            return None
        tokens: int | None = self.cell.get("context")
        return "auto" if self.cell.get("fit") == "both" else tokens

    @property
    def step_ms(self) -> float | None:
        """Measured milliseconds of a decode step; where nothing ran, its bound."""
        measured = self.decode.get("measured_ms")
        return measured["median"] if measured else self.decode.get("bound_ms")

    @property
    def mesh(self) -> str:
        """The mesh in short, as `--mesh` takes it."""
        sizes = self.cell["mesh"]
        if set(sizes) - {"data", "model"}:
            return ",".join(f"{axis}={size}" for axis, size in sizes.items())
        data, model = sizes.get("data", 1), sizes.get("model", 1)
        return str(model) if data == 1 else f"{data}x{model}"

    def as_json(self) -> dict[str, Any]:
        found = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        del found["folder"]
        return {"version": VERSION, **found}

    @classmethod
    def from_json(cls, found: Any, where: str, folder: Path | None = None) -> "Record":
        """A record of a line that was read.

        Args:
          where: file and line, for the message.

        Raises:
          ConfigError: it is no record, of another version, or lacks something; names what.
        """
        if not isinstance(found, Mapping) or "version" not in found or "cell" not in found:
            raise ConfigError(f"{where}: is no record of a sweep; give another --out")
        if found["version"] != VERSION:
            raise ConfigError(
                f"{where}: is a record of version {found['version']}, and this one writes "
                f"{VERSION}; give another --out"
            )
        names = {one.name for one in dataclasses.fields(cls)} - {"folder"}
        if lacking := _lacking(found):
            raise ConfigError(
                f"{where}: a record lacks {', '.join(lacking)}; take the line out, and its cell "
                "runs again, or give another --out"
            )
        return cls(**{name: value for name, value in found.items() if name in names}, folder=folder)


def _lacking(found: Mapping[str, Any]) -> list[str]:
    """Names of what a line must have and has not."""
    lacking = [name for name in ("key", "where", "status") if not found.get(name)]
    for part, names in _ENTRIES.items():
        if part in ("cell", "where") or found.get(part) is not None:
            lacking += _absent(part, found.get(part), names)
    if not lacking and not isinstance(found["cell"]["mesh"], Mapping):
        lacking.append("cell.mesh")
    programs = found.get("programs", {})
    if not isinstance(programs, Mapping):
        return [*lacking, "programs"]
    if found.get("status") == "ok" and _DECODE not in programs:
        lacking.append(f"programs.{_DECODE}")
    for name, program in programs.items():
        lacking += _absent(f"programs.{name}", program, _OF_PROGRAM)
    return lacking


def _absent(part: str, found: Any, names: Sequence[str]) -> list[str]:
    if not isinstance(found, Mapping):
        return [part]
    return [f"{part}.{name}" for name in names if name not in found]
