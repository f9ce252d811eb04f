import pytest

from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.report import Placement, place, render, table
from tpuinfer.sharding.rules import ShardingRules, resolve

SIZES = {"batch": 4, "heads": 9, "kv_heads": 3, "mlp": 256, "vocab": 1000}


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
        )
    ]


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
        ("array", "count", "shape", "spec", "MB/device", "why"),
        ("embed.weight", "1", "1000x500", "(model, -)", "0.50", "vocab: 1000 over model=4"),
        (
            "ring",
            "1",
            "4x3x100x50",
            "(data, -, -, -)",
            "0.12",
            "batch: 4 over data=2; kv_heads: 3 does not divide by model=4: replicated",
        ),
        ("total", "", "", "", "0.62", ""),
    ]


def test_columns_are_aligned():
    assert render([("a", "bb"), ("ccc", "d"), ("e", "")]) == "a    bb\nccc  d\ne"
