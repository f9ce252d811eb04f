"""Parts read a checkpoint and write it back: every kind of part, and both directions."""

import dataclasses
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tpuinfer.checkpoint import assemble
from tpuinfer.errors import CheckpointError
from tpuinfer.models.blueprint import Weight
from tpuinfer.models.names import Part, fused, stacked

E, F, D = 3, 5, 4


@dataclasses.dataclass
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
        assert 0 <= start <= stop <= len(self.values)
        self.most = max(self.most, stop - start)
        return self.values[start:stop]


def count(*shape: int) -> np.ndarray:
    """Every element another number."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


QKV = fused(
    {
        "q": Weight((2, 3, D), ("heads", "head_dim", "embed")),
        "k": Weight((1, 3, D), ("kv_heads", "head_dim", "embed")),
    },
    ("q", "k"),
    "qkv",
)
GATE_UP = {
    name: (Part("gate_up", (E, D, 2 * F), rows=(at, 2 * F, 2), axis=2, swap=True),)
    for at, name in enumerate(("gate", "up"))
}
BIAS = {
    name: (Part("bias", (E, 2 * F), rows=(at, 2 * F, 2), axis=1),)
    for at, name in enumerate(("gate", "up"))
}
CASES: dict[str, Any] = {
    "plain": ({"w": (Part("t", (6, D)),)}, {"w": (6, D)}, lambda t: {"w": t["t"]}),
    "heads": (
        {"w": (Part("t", (6, D)),)},
        {"w": (2, 3, D)},
        lambda t: {"w": t["t"].reshape(2, 3, D)},
    ),
    "fused": (
        QKV,
        {"q": (2, 3, D), "k": (1, 3, D)},
        lambda t: {"q": t["qkv"][:6].reshape(2, 3, D), "k": t["qkv"][6:].reshape(1, 3, D)},
    ),
    "stacked": (
        stacked("w", Weight((E, F, D), (None, None, None)), lambda at: f"t{at}"),
        {"w": (E, F, D)},
        lambda t: {"w": np.stack([t[f"t{at}"] for at in range(E)])},
    ),
    "swapped": (
        {"w": (Part("t", (E, D, F), swap=True),)},
        {"w": (E, F, D)},
        lambda t: {"w": t["t"].transpose(0, 2, 1)},
    ),
    "swapped matrix": (
        {"w": (Part("t", (D, 6), swap=True),)},
        {"w": (2, 3, D)},
        lambda t: {"w": t["t"].T.reshape(2, 3, D)},
    ),
    "strided and swapped": (
        GATE_UP,
        {"gate": (E, F, D), "up": (E, F, D)},
        lambda t: {
            "gate": t["gate_up"][:, :, 0::2].transpose(0, 2, 1),
            "up": t["gate_up"][:, :, 1::2].transpose(0, 2, 1),
        },
    ),
    "strided": (
        BIAS,
        {"gate": (E, F), "up": (E, F)},
        lambda t: {"gate": t["bias"][:, 0::2], "up": t["bias"][:, 1::2]},
    ),
    "strided rows": (
        {name: (Part("t", (6, D), rows=(at, 6, 2)),) for at, name in enumerate("ab")},
        {"a": (3, D), "b": (3, D)},
        lambda t: {"a": t["t"][0::2], "b": t["t"][1::2]},
    ),
}


@pytest.mark.parametrize("piece", [1, 100, 2**24])
@pytest.mark.parametrize(("names", "shapes", "wanted"), CASES.values(), ids=CASES)
def test_parts_are_read_and_written_back(
    monkeypatch: pytest.MonkeyPatch, piece: int, names: Any, shapes: Any, wanted: Any
) -> None:
    monkeypatch.setattr(assemble, "PIECE_BYTES", piece)
    parts = [part for some in names.values() for part in some]
    tensors = {part.tensor: Held(count(*part.shape)) for part in parts}
    for number, held in enumerate(tensors.values()):
        held.values += 1000 * number
    assemble.check(Path("m"), tensors, names)
    params = {
        name: assemble.read_param(tensors, names[name], shape, np.dtype(np.float32))
        for name, shape in shapes.items()
    }
    expected = wanted({name: held.values for name, held in tensors.items()})
    for name, values in params.items():
        np.testing.assert_array_equal(values, expected[name])
    if piece == 1:
        assert max(held.most for held in tensors.values()) == 1
    for name, held in tensors.items():
        own = [(n, part) for n, some in names.items() for part in some if part.tensor == name]
        written = assemble.read_tensor(own, params.__getitem__, np.dtype(np.float32))
        np.testing.assert_array_equal(written, held.values)


def test_rotary_rows_come_back_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part("t", (2 * 6, D), rotary=True)
    held = Held(count(12, D))
    out = assemble.read_param({"t": held}, (part,), (2, 6, D), np.dtype(np.float32))
    for head in range(2):
        for pair in range(3):
            row = 6 * head + 2 * pair
            np.testing.assert_array_equal(out[head, pair], held.values[row])
            np.testing.assert_array_equal(out[head, pair + 3], held.values[row + 1])
    bias = assemble.read_param(
        {"t": Held(count(12))}, (Part("t", (12,), rotary=True),), (2, 6), np.dtype(np.float32)
    )
    assert bias[0].tolist() == [0, 2, 4, 1, 3, 5]


def test_what_a_norm_lacks_is_added_before_rounding() -> None:
    held = Held(np.array([1.001, 2], np.float32))
    part = Part("t", (2,), add=-1.0)
    out = assemble.read_param({"t": held}, (part,), (2,), np.dtype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(out, (held.values - 1).astype(ml_dtypes.bfloat16))


def test_all_that_is_wrong_is_said_at_once() -> None:
    names = {name: (Part(name, (2, 2)),) for name in ("a", "b", "c", "d")}
    tensors = {
        "a": Held(count(2, 3)),
        "b": Held(np.ones((2, 2), np.int64)),
        "c": Held(count(2, 2)),
        "extra": Held(count(7)),
    }
    with pytest.raises(CheckpointError) as caught:
        assemble.check(Path("m"), tensors, names)
    assert str(caught.value) == (
        "m: d is missing; a is [2, 3] and the model needs [2, 2]; "
        "b holds int64 and the model needs floating point; extra [7] is not part of the model"
    )


def test_many_problems_are_counted() -> None:
    names = {f"p{at}": (Part(f"t{at}", (1,)),) for at in range(11)}
    with pytest.raises(CheckpointError, match=r"t7 is missing; and 3 more$"):
        assemble.check(Path("m"), {}, names)


def test_harmless_extras_are_known_by_name() -> None:
    names = {"w": (Part("w", (1,)),)}
    extras = ("model.layers.3.self_attn.rotary_emb.inv_freq", "e.position_ids")
    tensors = {name: Held(count(1)) for name in ("w", *extras)}
    assemble.check(Path("m"), tensors, names)
    tensors["lm_head.weight"] = Held(count(1))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight \[1\] is not part"):
        assemble.check(Path("m"), tensors, names)
    tensors["vision_tower.x"] = tensors.pop("lm_head.weight")
    with pytest.raises(CheckpointError, match=r"vision_tower\.x \[1\] is not part"):
        assemble.check(Path("m"), tensors, names)
    assemble.check(Path("m"), tensors, names, (r"vision_tower\..*",))


def test_parts_that_leave_a_hole_cannot_be_written() -> None:
    part = Part("t", (6, D), rows=(0, 4, 1))
    with pytest.raises(ValueError, match="t cannot be written"):
        assemble.read_tensor([("w", part)], lambda name: count(4, D), np.dtype(np.float32))


def test_parts_of_two_types_become_the_wider() -> None:
    parts = (Part("a", (1,), at=0), Part("b", (1,), at=1))
    low, high = Held(np.ones(1, ml_dtypes.bfloat16)), Held(np.ones(1, np.float32))
    assert assemble.dtype_of({"a": low, "b": low}, parts) == ml_dtypes.bfloat16
    assert assemble.dtype_of({"a": low, "b": high}, parts) == np.float32
