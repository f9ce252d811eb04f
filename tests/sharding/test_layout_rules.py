import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from tpuinfer.errors import MeshError
from tpuinfer.sharding.layout import resolve
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.presets import PRESETS
from tpuinfer.sharding.rules import LOGICAL_AXES, ShardingRules

EVEN = {
    "batch": 8,
    "embed": 64,
    "heads": 8,
    "kv_heads": 4,
    "head_dim": 16,
    "mlp": 256,
    "vocab": 512,
}
SMOLLM = {**EVEN, "heads": 9, "kv_heads": 3, "mlp": 1536, "vocab": 49152}


def layout(mesh="2x4", sizes=EVEN, **rules):
    return resolve(ShardingRules(**rules), build_mesh(parse_mesh(mesh)), sizes)


def test_the_default_table_cuts_what_divides():
    made = layout()
    placed = {axis: (made.mesh_axis(axis), made.shards(axis)) for axis in LOGICAL_AXES}
    assert placed == {
        "batch": ("data", 2),
        "residual": (None, 1),
        "embed": (None, 1),
        "expert_embed": (None, 1),
        "heads": ("model", 4),
        "kv_heads": ("model", 4),
        "head_dim": (None, 1),
        "mlp": ("model", 4),
        "vocab": ("model", 4),
        "expert": (None, 1),
        "expert_mlp": (None, 1),
        "length": (None, 1),
    }
    assert made.decisions["expert"].why == "not an axis of this model"


def test_what_does_not_divide_is_replicated_and_says_so():
    made = layout(sizes=SMOLLM)
    why = {axis: decision.why for axis, decision in made.decisions.items()}
    assert why["heads"] == "9 does not divide by model=4: replicated"
    assert why["kv_heads"] == "3 does not divide by model=4: replicated"
    assert why["mlp"] == "1536 over model=4"
    assert why["embed"] == "replicated by the rules"
    assert (made.shards("heads"), made.shards("kv_heads"), made.shards("mlp")) == (1, 1, 4)


def test_heads_and_their_kv_heads_stay_together():
    made = layout(sizes={**EVEN, "heads": 8, "kv_heads": 2}, fallback={})
    assert made.shards("heads") == made.shards("kv_heads") == 1
    wanted = "8 would divide, but kv_heads is replicated: kept together"
    assert made.decisions["heads"].why == wanted


def test_a_table_that_replicates_one_of_them_replicates_both():
    made = layout(axes={"heads": None, "kv_heads": "model"}, fallback={})
    assert made.shards("kv_heads") == 1
    assert "heads is replicated: kept together" in made.decisions["kv_heads"].why


@pytest.mark.parametrize(
    ("sizes", "cut", "why"),
    [
        ((8, 96), ("expert",), ("8 over model=4", "whole: model cuts expert")),
        ((6, 96), ("expert_mlp",), ("6 does not divide by model=4: replicated", "96 over model=4")),
        ((6, 30), (), tuple(f"{n} does not divide by model=4: replicated" for n in (6, 30))),
    ],
)
def test_experts_are_cut_by_number_or_within_or_not_at_all(sizes, cut, why):
    made = layout(sizes={**EVEN, "expert": sizes[0], "expert_mlp": sizes[1]})
    axes = ("expert", "expert_mlp")
    assert tuple(axis for axis in axes if made.shards(axis) == 4) == cut
    assert tuple(made.decisions[axis].why for axis in axes) == why
    expected = P(*("model" if axis in cut else None for axis in axes), None)
    assert made.spec((*axes, "embed")) == expected


def test_a_table_may_leave_experts_whole_and_cut_what_is_in_them():
    sizes = {**EVEN, "expert": 8, "expert_mlp": 96}
    made = layout(sizes=sizes, axes={"expert": None, "expert_mlp": "model"})
    assert made.spec(("expert", "expert_mlp", "embed")) == P(None, "model", None)
    whole = layout(sizes=sizes, axes={"expert": None, "expert_mlp": None})
    assert whole.spec(("expert", "expert_mlp", "embed")) == P(None, None, None)


def test_an_axis_of_one_device_cuts_nothing():
    made = layout("1x4")
    assert made.decisions["batch"].why == "data=1"
    assert made.spec(("batch", "embed")) == P(None, None)


def test_an_axis_that_the_model_lacks_is_left_alone():
    made = layout(sizes={"batch": 8, "mlp": 256})
    assert made.decisions["vocab"].why == "not an axis of this model"
    assert made.shards("vocab") == 1


@pytest.mark.parametrize(
    ("mesh", "slots", "message"),
    [
        ("4x2", 6, "slots is 6, which data=4 does not divide; .*: slots 8, or data=2$"),
        ("8x1", 3, "slots is 3, which data=8 does not divide; .*: slots 8, or data=1$"),
        ("4x2", 13, "slots is 13, .*: slots 12, or data=1$"),
    ],
)
def test_slots_that_do_not_divide_name_the_nearest(mesh, slots, message):
    with pytest.raises(MeshError, match=message):
        layout(mesh, {**EVEN, "batch": slots})


def test_a_fallback_may_refuse():
    with pytest.raises(MeshError, match="heads is 9, which model=4 does not divide"):
        layout(sizes=SMOLLM, fallback={"heads": "error"})


def test_a_spec_puts_each_dimension_in_its_place():
    made = layout()
    assert made.spec(("mlp", "embed")) == P("model", None)
    assert made.spec(("batch", None, "vocab")) == P("data", None, "model")
    assert made.spec(()) == P()
    assert made.sharding(("batch",)).mesh == made.mesh


def test_a_collision_is_refused():
    with pytest.raises(MeshError, match=r"\('mlp', 'vocab'\) would lie twice on mesh axis 'model'"):
        layout().spec(("mlp", "vocab"))


def test_constrain_places_an_activation():
    made = layout()
    x = jax.jit(lambda x: made.constrain(x, ("batch", "mlp")))(jnp.zeros((8, 256)))
    assert x.sharding.is_equivalent_to(made.sharding(("batch", "mlp")), 2)
    assert {shard.data.shape for shard in x.addressable_shards} == {(4, 64)}


def test_kv_heads_are_repeated_until_they_fill_the_axis():
    made = layout(sizes={**EVEN, "heads": 8, "kv_heads": 2})
    assert (made.mesh_axis("kv_heads"), made.shards("heads"), made.repeats) == ("model", 4, 2)
    assert made.decisions["kv_heads"].why == "2, each kept 2 times: 4 over model=4"
    six = layout(sizes={**EVEN, "heads": 24, "kv_heads": 6})
    assert (six.shards("kv_heads"), six.repeats) == (4, 2)
    assert six.decisions["kv_heads"].why == "6, each kept 2 times: 12 over model=4"


@pytest.mark.parametrize(("heads", "kv_heads"), [(9, 3), (20, 10), (6, 2)])
def test_kv_heads_are_left_alone_where_query_heads_would_not_fit_them(heads, kv_heads):
    """20 query heads are 4 times 5, and lcm(10, 4) = 20 divides them; 9 and 6 are no multiples."""
    made = layout(sizes={**EVEN, "heads": heads, "kv_heads": kv_heads})
    expected = (4, 2) if heads == 20 else (1, 1)
    assert (made.shards("kv_heads"), made.repeats) == expected
    assert made.shards("heads") == made.shards("kv_heads")


THREE = "data=2,expert=2,model=2"


def test_an_axis_may_lie_on_several_mesh_axes_and_on_those_that_there_are():
    axes = {"batch": ("data", "expert", "seq"), "mlp": ["expert", "model"]}
    made = layout(THREE, axes=axes)
    assert made.spec(("batch", None)) == P(("data", "expert"), None)
    assert (made.shards("batch"), made.shards("mlp"), made.axes_of("mlp")) == (
        4,
        4,
        ("expert", "model"),
    )
    assert made.decisions["mlp"].why == "256 over expert=2 x model=2"
    assert layout("2x4", axes=axes).spec(("batch",)) == P("data")


def test_rows_are_whole_over_a_mesh_axis_that_cuts_what_they_hold():
    made = layout(THREE, axes={"batch": ("data", "expert"), "mlp": ("expert", "model")})
    assert made.spec(("batch", None, "mlp")) == P("data", None, ("expert", "model"))
    assert made.spec(("batch", None, "residual")) == P(("data", "expert"), None, None)


def test_what_is_gathered_is_kept_cut_and_used_whole():
    made = layout(axes={"embed": "data", "mlp": "model"}, gather=["embed"])
    assert made.stored(("mlp", "embed")) == P("model", "data")
    assert made.spec(("mlp", "embed")) == P("model", None)
    assert (made.stored_shards("embed"), made.shards("embed")) == (2, 1)
    assert (made.stored_axes_of("embed"), made.axes_of("embed")) == (("data",), ())
    assert made.decisions["embed"].why == "64 over data=2, gathered where they are used"


def test_prefill_computes_by_its_own_table_and_weights_lie_by_the_first():
    two_d, gathered = PRESETS["2d"], PRESETS["fsdp"]
    rules = ShardingRules(axes=two_d.axes, prefill=gathered)
    made = resolve(rules, build_mesh(parse_mesh("2x4")), EVEN)
    assert made.shards("embed") == 2
    assert made.prefill.shards("embed") == 1
    for one in (made, made.prefill):
        assert one.stored(("mlp", "embed")) == P("model", "data")
    assert made.prefill.kept.decisions is made.decisions
    alone = layout()
    assert alone.prefill is alone
    assert alone.kept is alone


def test_rings_may_be_cut_along_their_length_with_heads_whole_or_cut():
    sizes = {**EVEN, "length": 0}
    made = resolve(PRESETS["context"], build_mesh(parse_mesh("2x4")), sizes)
    assert made.spec(("batch", "kv_heads", "length", "head_dim")) == P("data", None, "model", None)
    assert made.shards("heads") == 4
    assert made.decisions["length"].why == "columns over model=4"
    axes = {"heads": ("model", "seq"), "kv_heads": "model", "length": "seq"}
    both = layout("data=2,seq=2,model=2", sizes, axes=axes)
    assert (both.shards("heads"), both.shards("kv_heads"), both.shards("length")) == (4, 2, 2)


def test_slots_over_several_axes_name_the_nearest_that_divides():
    with pytest.raises(MeshError, match=r"slots is 6, which data=2 x model=4 does not .* slots 8,"):
        layout(
            sizes={**EVEN, "batch": 6},
            axes={"batch": ("data", "model")},
            fallback={"batch": "error"},
        )
