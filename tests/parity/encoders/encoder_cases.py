"""Tiny encoders, awkward on purpose, that transformers also runs; and texts for the real one.

How to add a case: append it to CASES, then run make_encoder_goldens.py (needs torch).
"""

import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TINY = {
    "vocab_size": 61,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 40,
}
_EVEN = {**_TINY, "vocab_size": 64, "hidden_size": 32, "num_attention_heads": 8}


@dataclass(frozen=True)
class Case:
    """A tiny encoder.

    Attributes:
      model_type: transformers', which names its config class. config: entries for that class.
      pooling: its flag, as sentence-transformers writes it. normalise: a Normalize step follows.
    """

    name: str
    model_type: str
    config: Mapping[str, Any]
    pooling: str
    normalise: bool


CASES = {
    case.name: case
    for case in (
        Case("bert-odd", "bert", _TINY, "mean_tokens", True),
        Case(
            "bert-tanh",
            "bert",
            {**_EVEN, "hidden_act": "gelu_new", "type_vocab_size": 1, "layer_norm_eps": 1e-5},
            "cls_token",
            False,
        ),
        Case(
            "roberta",
            "roberta",
            {**_EVEN, "pad_token_id": 1, "type_vocab_size": 1},
            "weightedmean_tokens",
            False,
        ),
        Case(
            "xlm-roberta",
            "xlm-roberta",
            {**_TINY, "pad_token_id": 3, "hidden_act": "silu"},
            "mean_sqrt_len_tokens",
            True,
        ),
    )
}

LENGTHS = (1, 2, 31, 7, 16, 36, 3, 32)
"""Tokens of each text of a case; 36 is all that the shortest table of positions holds."""


def tokens(vocab: int) -> list[list[int]]:
    """The texts of every case; ids from 5 on, for RoBERTa finds padding by its id."""
    chance = np.random.default_rng(11)
    return [chance.integers(5, vocab, length).tolist() for length in LENGTHS]


def draw(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A tensor's values, float32: the same for the same name and shape; scores are sharp."""
    normal = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if "LayerNorm" in name:
        return np.float32(name.endswith("weight")) + np.float32(0.3) * normal
    gain = 0.5 if len(shape) == 1 else 2 / np.sqrt(shape[-1])
    return normal * np.float32(gain)


_LONG = "The ship left the harbour before dawn, and nobody on the quay said a word. "

TEXTS = (
    "",
    "x",
    "The sky is blue.",
    "Why does the sky look blue?",
    "Der Himmel ist blau; le ciel est bleu; el cielo es azul.",
    "naïve café, Ærøskøbing, İstanbul",
    "東京は日本の首都です。",
    "emoji 🙂🙃 and\ttabs\nand   runs of spaces",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    _LONG,
    _LONG * 8,
    _LONG * 40,
)
"""For the real encoder; the last one is cut at 256 tokens."""

_WORDS = ("water", "under", "the", "old", "stone", "bridge", "ran", "slow", "while", "seven")


def random_texts(count: int, longest: int = 250) -> list[str]:
    """Texts of 1 to `longest` words that are a token each."""
    chance = random.Random(5)
    return [" ".join(chance.choices(_WORDS, k=chance.randint(1, longest))) for _ in range(count)]
