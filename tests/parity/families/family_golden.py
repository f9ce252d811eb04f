"""A case's golden: config.json, what the checkpoint holds, and the logits that transformers gives.

`NAME.json` has the config as transformers saved it, names and shapes of the tensors in each file,
and the versions it was made with; `NAME.npz` the logits, [LENGTH, V] float32. Values are not kept:
`draw` makes them again from names, so a checkpoint can be written without torch.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from family_case import Case
from numpy.typing import NDArray
from safetensors.numpy import save_file

GOLDENS = Path(__file__).parents[1] / "goldens" / "families"
_INDEX = "model.safetensors.index.json"

Files = Mapping[str, Mapping[str, tuple[int, ...]]]
"""File name -> tensor name -> shape."""


@dataclass(frozen=True)
class Golden:
    """What is kept of a case.

    Attributes:
      entries: the case's own, so that a changed case is seen.
      config: config.json. files: of the checkpoint. versions: of what made it.
      logits: [LENGTH, V] float32.
    """

    entries: Mapping[str, Any]
    config: Mapping[str, Any]
    files: Files
    versions: Mapping[str, str]
    logits: NDArray[np.float32]


def draw(name: str, shape: tuple[int, ...], norm_centre: float) -> NDArray[np.float32]:
    """A tensor's values, float32: the same for the same name and shape.

    Layers outweigh the embedding and scores are sharp, so that a wrong mask or angle shows.
    """
    normal = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if "norm" in name:
        return np.float32(norm_centre) + np.float32(0.3) * normal
    if len(shape) == 1 or name.endswith("bias"):
        return np.float32(0.5) * normal
    gain = 2 if ".layers." in name else 1
    return normal * np.float32(gain / np.sqrt(shape[-1]))


def write_checkpoint(case: Case, golden: Golden, folder: Path) -> Path:
    """The Hugging Face directory that transformers saved, without transformers."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(golden.config), "utf-8")
    for file, shapes in golden.files.items():
        tensors = {name: draw(name, shape, case.norm_centre) for name, shape in shapes.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(golden.files) > 1:
        places = {name: file for file, shapes in golden.files.items() for name in shapes}
        (folder / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}), "utf-8")
    return folder


def save(name: str, golden: Golden) -> None:
    """Write a golden, one tensor a line."""
    GOLDENS.mkdir(parents=True, exist_ok=True)
    kept = {
        "entries": golden.entries,
        "versions": golden.versions,
        "config": golden.config,
        "files": {
            file: {name: " x ".join(map(str, shape)) for name, shape in shapes.items()}
            for file, shapes in golden.files.items()
        },
    }
    (GOLDENS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    np.savez_compressed(GOLDENS / f"{name}.npz", logits=golden.logits)


def load(name: str) -> Golden:
    """Read a golden.

    Raises:
      FileNotFoundError: the case has none.
    """
    kept = json.loads((GOLDENS / f"{name}.json").read_text("utf-8"))
    files = {
        file: {name: tuple(map(int, shape.split(" x "))) for name, shape in shapes.items()}
        for file, shapes in kept["files"].items()
    }
    with np.load(GOLDENS / f"{name}.npz") as arrays:
        logits = arrays["logits"]
    return Golden(kept["entries"], kept["config"], files, kept["versions"], logits)


def row_errors(ours: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.float64]:
    """max|ours - reference| / max|reference| of each row; infinite where a row is not finite."""
    a, b = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert a.shape == b.shape, f"shapes differ: {a.shape} and {b.shape}"
    errors = np.abs(a - b).max(axis=-1) / np.abs(b).max(axis=-1)
    return np.where(np.isfinite(errors), errors, np.inf)
