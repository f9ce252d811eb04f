import dataclasses
import math
import time

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tpuinfer.errors import MeshError
from tpuinfer.sharding import moves, report
from tpuinfer.sharding.layout import resolve
from tpuinfer.sharding.mesh import abstract_mesh, build_mesh, parse_mesh
from tpuinfer.sharding.presets import PRESETS, from_data
from tpuinfer.sharding.report import Sized

SIZES = {
    "batch": 8,
    "residual": 512,
    "embed": 512,
    "heads": 16,
    "kv_heads": 8,
    "head_dim": 64,
    "mlp": 2048,
    "vocab": 1024,
    "length": 0,
}


def layout(rules, mesh="2x4"):
    table = PRESETS[rules] if isinstance(rules, str) else rules
    return resolve(table, abstract_mesh(parse_mesh(mesh)), SIZES)


def array(shape, axes, bits=16, kept="bfloat16"):
    return Sized(shape, axes, kept, [(shape, axes, bits)])


ARRAYS = {
    "embed_tokens.weight": array((1024, 512), ("vocab", "embed")),
    "layers.0.mlp.up_proj.weight": array((2048, 512), ("mlp", "embed")),
    "layers.1.mlp.up_proj.weight": array((2048, 512), ("mlp", "embed")),
    "norm.weight": array((512,), ("residual",)),
}


def test_what_is_cut_further_does_not_travel_and_what_is_gathered_does():
    there = moves.moves(layout("1d"), layout("2d"), ARRAYS)
    assert [(row.name, row.count, row.bytes) for row in there] == [
        ("embed_tokens.weight", 1, 0),
        ("layers.*.mlp.up_proj.weight", 2, 0),
    ]
    back = {row.name: row for row in moves.moves(layout("2d"), layout("1d"), ARRAYS)}
    row = back["layers.*.mlp.up_proj.weight"]
    assert row.bytes == 2 * (2048 * 512 // 4 - 2048 * 512 // 8) * 2  # two layers, of two bytes
    assert (row.before, row.after) == ("(model, data)", "(model, -)")
    assert moves.moves(layout("1d"), layout("1d"), ARRAYS) == []


def test_an_axis_that_goes_to_another_dimension_keeps_what_it_has_of_both():
    mesh = abstract_mesh(parse_mesh("8"))
    assert moves.received((64, 64), P("model"), P(None, "model"), mesh) == 64 * 8 - 8 * 8
    mesh = abstract_mesh(parse_mesh("2x2"))
    assert moves.received((8, 1), P("model", None), P("data", None), mesh) == 4
    assert moves.received((8,), P("data"), P(("data", "model")), mesh) == 0
    assert moves.received((8,), P("data"), P(("model", "data")), mesh) == 2
    assert moves.received((), P(), P(), mesh) == 0


SPECS = [
    (P("data", "model"), P("model", "data")),
    (P(("data", "model"), None), P("model", "data")),
    (P(None, ("model", "data")), P(None, ("data", "model"))),
    (P("model", None), P(None, None)),
]


@pytest.mark.parametrize(("before", "after"), SPECS)
def test_against_what_devices_hold(before, after):
    """Maps that jax makes of devices to indices, element by element."""
    mesh, shape = build_mesh(parse_mesh("2x4")), (16, 24)

    def held(spec):
        found = {}
        for device, index in NamedSharding(mesh, spec).devices_indices_map(shape).items():
            mask = np.zeros(shape, bool)
            mask[index] = True
            found[device] = mask
        return found

    has, needs = held(before), held(after)
    most = max((needs[device] & ~has[device]).sum() for device in jax.devices()[:8])
    assert moves.received(shape, before, after, mesh) == most


def test_meshes_of_other_shapes_are_matched_device_by_device():
    one, other = (build_mesh(parse_mesh(text)) for text in ("2x4", "4x2"))
    apart = moves.received((8,), P("data"), P("data"), one, other)
    assert apart == 0  # four rows each, of which two are wanted
    assert moves.received((8,), P("data"), P("data"), other, one) == 2
    flat = [abstract_mesh(parse_mesh(text)) for text in ("2x4", "4x2")]
    assert moves.received((8,), P("data"), P("data"), *reversed(flat)) == 2
    assert moves.moves(layout("1d"), layout("1d", "4x2"), ARRAYS)
    larger = dataclasses.replace(layout("1d"), mesh=abstract_mesh(parse_mesh("4x4")))
    with pytest.raises(MeshError, match=r"8 devices and one of 16.*nearest: a mesh of 8"):
        moves.moves(layout("1d"), larger, {})


def test_devices_are_known_by_themselves_and_not_by_their_order():
    devices = np.array(jax.devices()[:4])
    one = jax.sharding.Mesh(devices, ("model",))
    turned = jax.sharding.Mesh(devices[::-1], ("model",))
    assert moves.received((8,), P("model"), P("model"), one, turned) == 2
    assert moves.received((8,), P("model"), P("model"), one, one) == 0
    elsewhere = jax.sharding.Mesh(np.array(jax.devices()[4:8]), ("model",))
    with pytest.raises(MeshError, match="other devices"):
        moves.received((8,), P("model"), P("model"), one, elsewhere)


def test_each_prefill_is_sent_what_it_gathers_or_wants_elsewhere():
    gathers = from_data({"preset": "2d", "prefill": {"gather": ["embed"]}})
    rows = {row.name: row.bytes for row in moves.resharding(layout(gathers), ARRAYS)}
    each = 2048 * 512 * 2 // 8
    assert rows == {"layers.*.mlp.up_proj.weight": 2 * each, "embed_tokens.weight": each // 2}
    assert moves.resharding(layout("fsdp"), ARRAYS) == []  # it has no rules for prefill
    whole = from_data({"prefill": {"axes": {"mlp": ""}}})
    (row,) = moves.resharding(layout(whole), ARRAYS)
    assert row.bytes == 2 * 2048 * 512 * 2 * 3 // 4
    assert row.after == "(-, -)"


def test_all_pieces_of_a_quantised_weight_count():
    coded = Sized(
        (2048, 512),
        ("mlp", "embed"),
        "int8",
        [((2048, 512), ("mlp", "embed"), 8), ((2048,), ("mlp",), 32)],
    )
    whole = from_data({"axes": {"mlp": ""}})
    (row,) = moves.moves(layout("1d"), layout(whole), {"mlp.weight": coded})
    assert row.bytes == (2048 * 512 + 2048 * 4) * 3 // 4
    assert row.kept == "int8"


def test_a_table_has_the_most_first_and_the_sum_last():
    rows = moves.moves(layout("2d"), layout("1d"), ARRAYS)
    lines = report.render(moves.table(rows)).splitlines()
    assert lines[1].startswith("layers.*.mlp.up_proj.weight  2      2048x512  bfloat16  (model, da")
    assert lines[-1].split() == ["total", f"{moves.total(rows) / 1e6:.2f}"]


def test_512_devices_and_a_thousand_arrays_take_no_time():
    rules = from_data({"axes": {"embed": "data"}})
    many = {f"layers.{n}.mlp.weight": array((2048, 512), ("mlp", "embed")) for n in range(1000)}
    start = time.perf_counter()
    (row,) = moves.moves(layout(rules, "4x128"), layout("1d", "4x128"), many)
    assert time.perf_counter() - start < 2
    assert row.count == 1000
    assert row.bytes == 1000 * 2 * (math.prod((2048, 512)) // 128) * 3 // 4
