"""What transformers answered for the cases and for the real encoder: goldens, and directories.

`NAME.json` has config.json and names and shapes of the tensors as transformers saved them, and the
versions it was made with; `NAME.npz` the vectors, [texts, D] float32. Weights of cases are not
kept: `draw` makes them again from names.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from encoder_cases import Case, draw
from numpy.typing import NDArray
from safetensors.numpy import save_file

GOLDENS = Path(__file__).parents[1] / "goldens" / "encoders"
MINILM = "all-minilm-l6-v2"

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Golden:
    """What is kept of a case.

    Attributes:
      config: config.json; of the real encoder, the SHA-256 that the catalogue states.
      tensors: of the checkpoint. versions: of what made it.
      vectors: [texts, D] float32.
    """

    config: Mapping[str, Any]
    tensors: Shapes
    versions: Mapping[str, str]
    vectors: NDArray[np.float32]


def write_directory(case: Case, golden: Golden, folder: Path) -> Path:
    """The directory that sentence-transformers would publish, without a tokenizer."""
    (folder / "1_Pooling").mkdir(parents=True)
    tensors = {name: draw(name, shape) for name, shape in golden.tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    steps = {"Transformer": "", "Pooling": "1_Pooling"}
    steps |= {"Normalize": "2_Normalize"} if case.normalise else {}
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": path}
        for kind, path in steps.items()
    ]
    pooling = {f"pooling_mode_{case.pooling}": True}
    for name, content in (
        ("config", golden.config),
        ("modules", modules),
        ("1_Pooling/config", pooling),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return folder


def save(name: str, golden: Golden) -> None:
    GOLDENS.mkdir(parents=True, exist_ok=True)
    kept = {
        "versions": golden.versions,
        "config": golden.config,
        "tensors": {key: " x ".join(map(str, shape)) for key, shape in golden.tensors.items()},
    }
    (GOLDENS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    np.savez_compressed(GOLDENS / f"{name}.npz", vectors=golden.vectors)


def load(name: str) -> Golden:
    """Read a golden.

    Raises:
      FileNotFoundError: the case has none.
    """
    kept = json.loads((GOLDENS / f"{name}.json").read_text("utf-8"))
    tensors = {key: tuple(map(int, shape.split(" x "))) for key, shape in kept["tensors"].items()}
    with np.load(GOLDENS / f"{name}.npz") as arrays:
        return Golden(kept["config"], tensors, kept["versions"], arrays["vectors"])


def largest_error(ours: NDArray[Any], reference: NDArray[Any]) -> float:
    """max|ours - reference| / max|reference| of the worst row."""
    assert ours.shape == reference.shape, f"shapes differ: {ours.shape} and {reference.shape}"
    errors = np.abs(ours - reference).max(-1) / np.abs(reference).max(-1)
    return float(np.where(np.isfinite(errors), errors, np.inf).max())
