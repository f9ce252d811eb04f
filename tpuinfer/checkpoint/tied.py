"""An output head beside the embedding that config.json ties it to: left out, if it is the same.

Checkpoints written from a model with tied embeddings may hold the one matrix twice. Where the two
differ config.json is wrong, and leaving either out would make another model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpuinfer.checkpoint.coded import Tensor
from tpuinfer.errors import CheckpointError
from tpuinfer.models.names import Names

_HEAD = "lm_head.weight"
_EMBEDDING = "embed_tokens.weight"


@dataclass(frozen=True)
class Tied:
    """An embedding [V, D] that is compared with its head, row by row, whenever it is read.

    Attributes:
      path: of the checkpoint, for what is refused.
    """

    path: Path
    name: str
    embedding: Tensor
    head: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.embedding.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.embedding.dtype

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start:stop], [stop - start, D].

        Raises:
          CheckpointError: a bit of the head's rows differs.
        """
        values = self.embedding.rows(start, stop)
        if self.head.rows(start, stop).tobytes() != values.tobytes():
            raise _differs(self.path, self.name, "their values differ")
        return values


def without_head(path: Path, tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """The tensors without a head that the model takes from its embedding.

    Reads nothing: values are compared when the embedding's are read, so once in a conversion.

    Args:
      names: of the model's parameters, the head's among them if it is not tied.

    Raises:
      CheckpointError: the head is of another shape or type than the embedding.
    """
    out = dict(tensors)
    if _HEAD in names or _HEAD not in out or _EMBEDDING not in names:
        return out
    (part,) = names[_EMBEDDING]
    embedding, head = out.get(part.tensor), out.pop(_HEAD)
    if embedding is None:
        return out
    if (head.shape, head.dtype) != (embedding.shape, embedding.dtype):
        stated = f"{head.dtype} {list(head.shape)} is not {embedding.dtype} {list(embedding.shape)}"
        raise _differs(path, part.tensor, stated)
    out[part.tensor] = Tied(path, part.tensor, embedding, head)
    return out


def _differs(path: Path, name: str, how: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {_HEAD} is not {name} ({how}), though config.json ties them: set "
        "tie_word_embeddings to false in config.json to use both"
    )
