import pytest

from tpuinfer.sharding.layout import resolve
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.report import Placement, Sized, render, table
from tpuinfer.sharding.report import place as place_sized
from tpuinfer.sharding.rules import ShardingRules

SIZES = {"batch": 4, "heads": 9, "kv_heads": 3, "mlp": 256, "vocab": 1000}


def place(layout, arrays, size):
    """Rows of arrays that are kept in one piece each, of `size` bytes an element."""
    sized = {
        name: Sized(shape, axes, f"f{8 * size}", [(shape, axes, 8 * size)])
        for name, (shape, axes) in arrays.items()
    }
    return place_sized(layout, sized)


@pytest.fixture(scope="module")
def layout():
    return resolve(ShardingRules(), build_mesh(parse_mesh("2x4")), SIZES)


def test_bytes_are_those_of_one_device(layout):
    """By hand: 256 x 64 in 4 pieces of 2 bytes, 4 x 3 x 128 x 16 in 2 pieces."""
    arrays = {
        "layers.0.mlp.up_proj.weight": ((256, 64), ("mlp", "embed")),
        "layers.0.ring.keys": ((4, 3, 128, 16), ("batch", "kv_heads", "length", "head_dim")),
        "norm.weight": ((64,), ("embed",)),
    }
    sizes = {row.name: row.bytes_per_device for row in place(layout, arrays, 2)}
    assert sizes == {
        "layers.*.mlp.up_proj.weight": 256 * 64 * 2 // 4,
        "layers.*.ring.keys": 4 * 3 * 128 * 16 * 2 // 2,
        "norm.weight": 128,
    }


def test_layers_share_a_row(layout):
    weight = ((256, 64), ("mlp", "embed"))
    arrays = {f"layers.{layer}.up_proj.weight": weight for layer in range(12)}
    assert place(layout, arrays, 4) == [
        Placement(
            name="layers.*.up_proj.weight",
            count=12,
            shape=(256, 64),
            axes=("mlp", "embed"),
            spec="(model, -)",
            bytes_per_device=12 * 256 * 64 * 4 // 4,
            why="mlp: 256 over model=4",
            kept="f32",
        )
    ]


def test_bytes_are_those_of_all_pieces_and_what_is_kept_otherwise_has_a_row_of_its_own(layout):
    """By hand: 4-bit codes of 256 x 64 and a float32 for each 32 of them, cut into 4."""
    axes = ("mlp", "embed")
    codes = [((256, 2, 32), ("mlp", "embed", None), 4), ((256, 2), axes, 32)]
    arrays = {
        "layers.0.up_proj.weight": Sized((256, 64), axes, "int4:32", codes),
        "layers.1.up_proj.weight": Sized((256, 64), axes, "f16", [((256, 64), axes, 16)]),
        "layers.2.up_proj.weight": Sized((256, 64), axes, "int4:32", codes),
    }
    first, second = place_sized(layout, arrays)
    assert (first.count, first.kept) == (2, "int4:32")
    assert first.bytes_per_device == 2 * (256 * 64 // 2 + 256 * 2 * 4) // 4
    assert (second.count, second.kept, second.name) == (1, "f16", first.name)
    assert second.bytes_per_device == 256 * 64 * 2 // 4


def test_only_whole_numbers_between_dots_are_layers(layout):
    arrays = dict.fromkeys(("layers.0", "layers.1x", "my_layers.1.b", "a.0"), ((8,), (None,)))
    names = [row.name for row in place(layout, arrays, 1)]
    assert names == ["layers.*", "layers.1x", "my_layers.1.b", "a.0"]


def test_a_refused_cut_says_why(layout):
    arrays = {"q_proj.weight": ((9, 64, 64), ("heads", None, "embed")), "norm": ((64,), ("embed",))}
    q_proj, norm = place(layout, arrays, 2)
    assert q_proj.spec == "(-, -, -)"
    assert q_proj.why == "heads: 9 does not divide by model=4: replicated"
    assert q_proj.bytes_per_device == 9 * 64 * 64 * 2
    assert norm.why == "no rule cuts it"


def test_the_table_ends_with_the_sum(layout):
    arrays = {
        "embed.weight": ((1000, 500), ("vocab", "embed")),
        "ring": ((4, 3, 100, 50), ("batch", "kv_heads", "length", "head_dim")),
    }
    assert table(place(layout, arrays, 4)) == [
        ("array", "count", "shape", "kept", "spec", "MB/device", "why"),
        ("embed.weight", "1", "1000x500", "f32", "(model, -)", "0.50", "vocab: 1000 over model=4"),
        (
            "ring",
            "1",
            "4x3x100x50",
            "f32",
            "(data, -, -, -)",
            "0.12",
            "batch: 4 over data=2; kv_heads: 3 does not divide by model=4: replicated",
        ),
        ("total", "", "", "", "", "0.62", ""),
    ]


def test_columns_are_aligned():
    assert render([("a", "bb"), ("ccc", "d"), ("e", "")]) == "a    bb\nccc  d\ne"
