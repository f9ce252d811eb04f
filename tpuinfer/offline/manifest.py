"""What an output was made with, so that no answers of another model or input mix with it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from tpuinfer.offline.disk import place, put, reason
from tpuinfer.offline.parts import holds_lines
from tpuinfer.offline.task import BatchError, PassingError

VERSION = 1
_DIGITS = 12  # of a digest that a reader is shown
_LETTERS = 80  # of another value
_OF_CHANGES = "give --accept-changes to go on all the same, or another --output"
_OF_PLACES = (
    "its rows are known by their places (row-1, row-2, ...), where other rows may stand now: give "
    "another --output, and --id-field for answers that stay with their rows"
)


class MixUpError(BatchError):
    """An output that was begun with something else.

    Attributes:
      differences: each in one phrase.
    """

    def __init__(self, message: str, differences: Sequence[str]) -> None:
        super().__init__(message)
        self.differences = differences


class Digest(Protocol):
    """What of an input file is kept: its name, its size and what is in it."""

    @property
    def name(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def sha256(self) -> str: ...


@dataclass(frozen=True)
class Manifest:
    """What a batch is made of. All values are JSON's.

    Attributes:
      created: when it was begun, seconds since the epoch; answers bear it.
      inputs: {"name", "bytes", "sha256"} of each file, in order.
      lines: of all inputs together.
      model: {"name", "fingerprint", ...}: what identifies the weights and what changes bits.
      settings: what requests are made with where their lines do not say.
      versions: of the software.
      accepted: the differences that were accepted on the way, oldest first.
    """

    created: int
    inputs: Sequence[Mapping[str, Any]]
    lines: int
    model: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    accepted: Sequence[str] = ()

    @classmethod
    def make(
        cls,
        *,
        created: int,
        inputs: Sequence[Digest],
        lines: int,
        model: Mapping[str, Any],
        settings: Mapping[str, Any],
        versions: Mapping[str, Any],
    ) -> "Manifest":
        """Of a batch to begin; its files are known by their last names, wherever they lie."""
        described = [
            {"name": Path(one.name).name, "bytes": one.bytes, "sha256": one.sha256}
            for one in inputs
        ]
        return cls(created, described, lines, model, settings, versions)


def check(
    path: str | Path,
    wanted: Manifest,
    *,
    journals: Sequence[str] = (),
    accept: bool = False,
    by_place: bool = False,
) -> Manifest:
    """Writes the manifest of a new batch, or holds an old one's against what is wanted now.

    Args:
      path: of the manifest, "out.jsonl.manifest.json".
      journals: the files that it speaks of. While none holds a line, any manifest may be replaced.
      accept: whether differences are taken; then `wanted` is kept under the old `created`, with
        the differences in `accepted`.
      by_place: whether answers belong to places in the input (row-1, row-2, ...). Another input
        would have other rows there, so it is never accepted.

    Returns:
      The manifest that is in force, which stands on disk: its `created` is the batch's.

    Raises:
      MixUpError: what was wanted differs.
      BatchError: the manifest cannot be read, or a journal has lines and no manifest.
      PassingError: the manifest cannot be written.
    """
    file = place(path)
    begun = [journal for journal in journals if holds_lines(journal)]
    kept = _read(file)
    if kept is None:
        if begun:
            raise BatchError(
                f"{begun[0]}: is there, and {file.name} is not, so it is no output of a batch; "
                "move it away or give another --output"
            )
        return _write(file, wanted)
    differences = _differences(kept, wanted)
    if not differences:
        return kept
    if journals and not begun:
        return _write(file, wanted)
    moved = by_place and _digests(kept) != _digests(wanted)
    if moved or not accept:
        remedy = _OF_PLACES if moved else _OF_CHANGES
        message = (
            f"{file}: this output was begun with something else: {'; '.join(differences)}; {remedy}"
        )
        raise MixUpError(message, differences)
    accepted = (*kept.accepted, *differences)
    return _write(file, replace(wanted, created=kept.created, accepted=accepted))


def _read(file: Path) -> Manifest | None:
    """The manifest on disk; None if there is none."""
    try:
        data = json.loads(file.read_bytes())
        version = data.pop("version")
        if version == VERSION:
            return _manifest(data)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BatchError(
            f"{file}: is no manifest of a batch; give another --output, or put back the file that "
            "was there"
        ) from None
    except Exception as error:
        raise BatchError(f"{file}: cannot be read ({reason(error)})") from None
    raise BatchError(
        f"{file}: a manifest of version {version}; this tpuinfer reads version {VERSION}: go on "
        "with the tpuinfer that began it, or give another --output"
    )


def _manifest(data: dict[str, Any]) -> Manifest:
    """The manifest that JSON holds.

    Raises:
      ValueError, TypeError: it holds something else.
    """
    found = Manifest(**{**data, "accepted": tuple(data["accepted"])})
    mappings = (*found.inputs, found.model, found.settings, found.versions)
    whole = all(one.keys() >= {"name", "bytes", "sha256"} for one in found.inputs)
    if not whole or not all(isinstance(one, dict) for one in mappings):
        raise ValueError("not what a manifest holds")
    return found


def _write(file: Path, manifest: Manifest) -> Manifest:
    """Puts it on disk, whole, and gives it back as it reads there."""
    data = {"version": VERSION, **vars(manifest)}
    try:
        put(file, json.dumps(data, indent=1).encode() + b"\n")
    except Exception as error:
        raise PassingError(
            f"{file}: cannot be written ({reason(error)}); give an --output in a folder that "
            "exists and may be written to"
        ) from None
    read = _read(file)
    assert read is not None
    return read


def _differences(kept: Manifest, wanted: Manifest) -> list[str]:
    """Each difference in one phrase; none between two that may be mixed."""
    new = _manifest(json.loads(json.dumps(vars(wanted))))  # as JSON keeps it
    found = _input_differences(kept, new)
    for word, old_values, new_values in (
        ("model", kept.model, new.model),
        ("setting", kept.settings, new.settings),
        ("version of", kept.versions, new.versions),
    ):
        flat_old, flat_new = dict(_flat(old_values)), dict(_flat(new_values))
        for name in sorted(flat_old.keys() | flat_new.keys()):
            old, now = flat_old.get(name), flat_new.get(name)
            if old != now:
                found.append(f"{word} {name}: was {_short(old)}, is {_short(now)}")
    return found


def _digests(manifest: Manifest) -> list[str]:
    return [one["sha256"] for one in manifest.inputs]


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """{"defaults": {"seed": 1}} -> ("defaults.seed", 1): what is in mappings by its whole name."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _input_differences(kept: Manifest, new: Manifest) -> list[str]:
    found = []
    if len(kept.inputs) != len(new.inputs):
        found.append(f"inputs: {len(kept.inputs)} files before, {len(new.inputs)} now")
    for old, now in zip(kept.inputs, new.inputs, strict=False):
        if old["sha256"] == now["sha256"]:
            continue  # whatever it is called now
        if old["name"] != now["name"]:
            found.append(f"input {now['name']}: stands where {old['name']} stood")
        found.append(
            f"input {now['name']}: sha256 was {_short(old['sha256'])} "
            f"({old['bytes']:,} bytes), is {_short(now['sha256'])} ({now['bytes']:,} bytes)"
        )
    if kept.lines != new.lines:
        found.append(f"lines: {kept.lines:,} before, {new.lines:,} now")
    return found


def _short(value: Any) -> str:
    """A value for a reader: digests and long texts by their beginnings."""
    if value is None:
        return "absent"
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) >= 32 and all(digit in "0123456789abcdef" for digit in text):
        return f"{text[:_DIGITS]}.."
    return text if len(text) <= _LETTERS else f"{text[:_LETTERS]}.. ({len(text):,} letters)"
