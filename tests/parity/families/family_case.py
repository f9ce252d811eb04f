"""A parity case: a tiny model of one family, awkward on purpose, that transformers also runs.

How to add a case
1. Append a `Case` to CASES in the file of your families: cases_dense.py, cases_experts.py or
   cases_gemma.py. `config` goes to transformers' config class of `model_type`, so write what
   differs from its defaults. Keep it tiny: 2 or 3 layers, D 24-48, V 61-97, at least `CONTEXT`
   positions (max_position_embeddings). Awkward: 1 or 3 KV heads, head_dim not D / N, a window below
   CHUNK, sizes that a mesh of 2x4 does not divide.
2. `.venv/bin/python tests/parity/families/make_family_goldens.py NAME` writes its golden (needs
   torch); without a name it writes all of them.
3. `.venv/bin/python -m pytest tests/parity/families -k NAME` compares: from the golden, without
   torch, and live.

Weights are drawn from a seed that a tensor's name in the checkpoint gives, so a golden holds names,
shapes and logits only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

LENGTH = 52
"""Tokens of a case's text."""

CONTEXT = 64
"""Tokens that a slot holds; texts of `LENGTH` fit, and one prefill takes them whole."""

CHUNK = 16
"""The chunk of a chunked prefill; the last one has four tokens and padding."""


@dataclass(frozen=True)
class Case:
    """A tiny model.

    Attributes:
      name: of the case, and of its golden.
      family: ours, as the registry names it.
      model_type: transformers', which names its config class.
      config: entries for that class.
      norm_centre: what norm weights lie around; 0 where the family adds 1 to them.
      shard_size: as transformers takes it; small = the checkpoint has several files.
      stepwise: the reference reads token by token, as rotary positions that depend on the length
        of the text so far do when they generate.
    """

    name: str
    family: str
    model_type: str
    config: Mapping[str, Any]
    norm_centre: float = 1.0
    shard_size: str = "1GB"
    stepwise: bool = False


def tokens(vocab: int) -> list[int]:
    """The text of every case, [LENGTH] ids below `vocab`."""
    return np.random.default_rng(11).integers(0, vocab, LENGTH).tolist()
