"""The check of a family's names: data that reads and writes checkpoints must cover them exactly."""

import math

import numpy as np


def covered(part):
    """Which elements of its tensor a part takes, as flat numbers, in the order taken."""
    index = np.arange(math.prod(part.shape)).reshape(part.shape)
    if part.rows is not None:
        index = np.moveaxis(np.moveaxis(index, part.axis, 0)[slice(*part.rows)], 0, part.axis)
    return (index.swapaxes(-1, -2) if part.swap else index).ravel()


def check(found, wanted):
    """Each parameter is filled whole, and every element of each tensor is taken once.

    Args:
      found: a family's Names. wanted: the weights of its blueprint.
    """
    taken: dict[str, list[int]] = {}
    assert found.keys() == wanted.keys()
    for name, parts in found.items():
        whole = math.prod(wanted[name].shape)
        blocks = [part.at for part in parts]
        assert blocks == ([None] if blocks == [None] else list(range(wanted[name].shape[0])))
        assert sum(covered(part).size for part in parts) == whole, name
        for part in parts:
            taken.setdefault(part.tensor, []).extend(covered(part).tolist())
    for part in (part for parts in found.values() for part in parts):
        assert sorted(taken[part.tensor]) == list(range(math.prod(part.shape))), part.tensor
