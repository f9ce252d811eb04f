"""A head beside the embedding that it is tied to: the same to the bit, or refused."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tpuinfer.checkpoint import assemble
from tpuinfer.checkpoint.tied import without_head
from tpuinfer.errors import CheckpointError
from tpuinfer.models.names import Part

V, D = 9, 4
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NAMES = {"embed_tokens.weight": (Part(EMBEDDING, (V, D)),)}


@dataclass
class Held:
    """A tensor in memory that counts the most rows anybody asked for."""

    values: np.ndarray
    most: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def rows(self, start: int, stop: int) -> np.ndarray:
        self.most = max(self.most, stop - start)
        return self.values[start:stop]


def matrix() -> np.ndarray:
    values = np.arange(V * D, dtype=np.float32).reshape(V, D)
    values[3, 1] = np.nan
    return values


def read(tensors: dict[str, Held]) -> np.ndarray:
    found = without_head(Path("m"), tensors, NAMES)
    assert found.keys() == tensors.keys() - {HEAD}
    assemble.check(Path("m"), found, NAMES)
    parts = NAMES["embed_tokens.weight"]
    return assemble.read_param(found, parts, (V, D), np.dtype(np.float32))


def test_one_matrix_twice_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "PIECE_BYTES", 2 * 4 * D)
    head = Held(matrix())
    np.testing.assert_array_equal(read({EMBEDDING: Held(matrix()), HEAD: head}), matrix())
    assert head.most == 2


@pytest.mark.parametrize("row", [0, 4, V - 1])
def test_one_bit_is_enough(row: int) -> None:
    head = matrix()
    head[row, 2] = np.nextafter(head[row, 2], np.float32(np.inf))
    with pytest.raises(CheckpointError, match=r"m: lm_head\.weight is not .*their values differ"):
        read({EMBEDDING: Held(matrix()), HEAD: Held(head)})


@pytest.mark.parametrize(
    ("head", "stated"),
    [
        (matrix()[1:], r"float32 \[8, 4\] is not float32 \[9, 4\]"),
        (matrix().astype(np.float16), r"float16 \[9, 4\] is not float32 \[9, 4\]"),
    ],
)
def test_another_shape_or_type_is_refused_unread(head: np.ndarray, stated: str) -> None:
    held = Held(head)
    with pytest.raises(CheckpointError, match=stated + r".*set tie_word_embeddings to false"):
        without_head(Path("m"), {EMBEDDING: Held(matrix()), HEAD: held}, NAMES)
    assert held.most == 0


def test_a_head_of_the_model_stays() -> None:
    tensors = {EMBEDDING: Held(matrix()), HEAD: Held(matrix() + 1)}
    names = NAMES | {HEAD: (Part(HEAD, (V, D)),)}
    assert without_head(Path("m"), tensors, names) == tensors


def test_what_is_missing_is_left_to_the_check() -> None:
    found = without_head(Path("m"), {HEAD: Held(matrix())}, NAMES)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight is missing"):
        assemble.check(Path("m"), found, NAMES)


def test_an_encoder_has_no_head() -> None:
    tensors = {HEAD: Held(matrix())}
    assert without_head(Path("m"), tensors, {"word_embeddings.weight": ()}) == tensors
