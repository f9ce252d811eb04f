"""The goldens on disk: what transformers answers in float32, compact enough to keep in git.

A golden is a JSON file (where it came from, and each prompt with its ids and greedy tokens) beside
an npz file of floats. P prompts, N greedy tokens each. Step s is the row of logits that picks
greedy token s: step 0 is the last prompt position, and step N follows the last token. Of the rows
at `STEPS` the file keeps the TOP largest logits and the logits at PROBES fixed ids, of every row
its scale, its margin and its logsumexp.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEW_TOKENS = 64
STEPS = tuple(range(0, NEW_TOKENS + 1, 8))
TOP = 16
PROBES = 48
SMOLLM2 = Path(__file__).parent / "goldens" / "smollm2-135m-instruct"
GEMMA = Path(__file__).parent / "goldens" / "gemma-3-270m"

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """What is kept of the logits after one prompt, float32.

    Attributes:
      scales: [N + 1] largest |logit| of each row.
      margins: [N + 1] largest logit less the second largest.
      logsumexps: [N + 1] log of the sum of exp(logit).
      top_ids: [len(STEPS), TOP] int32 ids of the largest logits, largest first.
      top_values: [len(STEPS), TOP] their logits.
      probe_values: [len(STEPS), PROBES] logits at the file's probe ids.
    """

    scales: Floats
    margins: Floats
    logsumexps: Floats
    top_ids: NDArray[np.int32]
    top_values: Floats
    probe_values: Floats


@dataclass(frozen=True)
class Golden:
    """One prompt, its ids, the N greedy tokens that follow (end tokens ignored) and the rows."""

    name: str
    text: str
    prompt_ids: list[int]
    tokens: list[int]
    rows: Rows


@dataclass(frozen=True)
class GoldenFile:
    """All prompts of one model, with the SHA-256 of the weights and the versions that made them."""

    model_sha256: str
    made_with: dict[str, str]
    probe_ids: list[int]
    goldens: tuple[Golden, ...]


_SHAPES: dict[str, tuple[int, ...]] = {
    "scales": (NEW_TOKENS + 1,),
    "margins": (NEW_TOKENS + 1,),
    "logsumexps": (NEW_TOKENS + 1,),
    "top_ids": (len(STEPS), TOP),
    "top_values": (len(STEPS), TOP),
    "probe_values": (len(STEPS), PROBES),
}


def probe_ids(vocab: int) -> list[int]:
    """PROBES ids in [0, vocab), the same on every machine: a Weyl sequence, no generator."""
    return sorted((index * 2654435761 + 12345) % 2**32 * vocab >> 32 for index in range(PROBES))


def save(path: Path, file: GoldenFile) -> None:
    """Write `path`.json and `path`.npz."""
    prompts = [
        {"name": g.name, "text": g.text, "prompt_ids": g.prompt_ids, "tokens": g.tokens}
        for g in file.goldens
    ]
    head = {
        "model_sha256": file.model_sha256,
        "made_with": file.made_with,
        "probe_ids": file.probe_ids,
    }
    lines = ",\n  ".join(json.dumps(prompt, ensure_ascii=False) for prompt in prompts)
    text = json.dumps(head, indent=1)[:-2] + f',\n "prompts": [\n  {lines}\n ]\n}}\n'
    path.with_name(path.name + ".json").write_text(text, encoding="utf-8")
    arrays: dict[str, Any] = {
        name: np.stack([getattr(g.rows, name) for g in file.goldens]) for name in _SHAPES
    }
    np.savez_compressed(path.with_name(path.name + ".npz"), **arrays)


def load(path: Path = SMOLLM2) -> GoldenFile:
    """Read `path`.json and `path`.npz.

    Raises:
      ValueError: the two do not belong together, or a row is not what `STEPS` and `TOP` say.
    """
    head = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
    prompts = head["prompts"]
    with np.load(path.with_name(path.name + ".npz"), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in _SHAPES}
    for name, shape in _SHAPES.items():
        if arrays[name].shape != (len(prompts), *shape):
            raise ValueError(
                f"{path}: {name} has shape {arrays[name].shape}, "
                f"{len(prompts)} prompts need {(len(prompts), *shape)}"
            )
    for prompt in prompts:
        if len(prompt["tokens"]) != NEW_TOKENS:
            raise ValueError(
                f"{path}: {prompt['name']} has {len(prompt['tokens'])} tokens, not {NEW_TOKENS}"
            )
    goldens = tuple(
        Golden(rows=Rows(**{name: arrays[name][index] for name in _SHAPES}), **prompt)
        for index, prompt in enumerate(prompts)
    )
    return GoldenFile(head["model_sha256"], head["made_with"], head["probe_ids"], goldens)
