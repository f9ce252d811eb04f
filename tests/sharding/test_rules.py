import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from tpuinfer.errors import ConfigError, MeshError
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.rules import LOGICAL_AXES, ShardingRules, load_rules, resolve

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
        "embed": (None, 1),
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
    made = layout(sizes={**EVEN, "heads": 8, "kv_heads": 2})
    assert made.shards("heads") == made.shards("kv_heads") == 1
    wanted = "8 would divide, but kv_heads is replicated: kept together"
    assert made.decisions["heads"].why == wanted


def test_a_table_that_replicates_one_of_them_replicates_both():
    made = layout(axes={"heads": None, "kv_heads": "model"})
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


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"axes": {"head": "model"}}, "'head', which is no logical axis; nearest: 'heads'"),
        ({"fallback": {"vocabulary": "error"}}, "'vocabulary', .* nearest: 'vocab'"),
        ({"axes": {"mlp": "expert"}}, "'mlp' on 'expert'; the mesh axes are data and model"),
        ({"axes": {"batch": "model"}}, "'batch' on 'model'; it can lie on data only"),
        ({"axes": {"expert": "data"}}, "'expert' on 'data'; it can lie on model only"),
        ({"axes": {"embed": "model"}}, "'embed' on 'model'; it can lie on no axis only"),
        ({"axes": {"head_dim": "data"}}, "'head_dim' on 'data'; it can lie on no axis only"),
        (
            {"axes": {"heads": "data", "kv_heads": "model"}},
            "'heads' on 'data' and 'kv_heads' on 'model'; they can lie on the same axis only",
        ),
        ({"fallback": {"mlp": "pad"}}, "fallback of 'mlp' is 'pad': replicate or error"),
        ({"reduce": "psum"}, "reduce is 'psum': scatter or exact"),
    ],
)
def test_a_table_that_cannot_be_is_refused(rules, message):
    with pytest.raises(MeshError, match=message):
        ShardingRules(**rules)


@pytest.fixture
def toml(tmp_path):
    """Write a TOML text, and return its path."""

    def write(text: str):
        path = tmp_path / "rules.toml"
        path.write_text(text, "utf-8")
        return path

    return write


def test_rules_are_read_and_absent_ones_keep_their_defaults(toml):
    rules = load_rules(
        toml('reduce = "exact"\n[axes]\nvocab = ""\n[fallback]\nmlp = "error"\n'),
    )
    default = ShardingRules()
    assert rules.axes == {**default.axes, "vocab": None}
    assert rules.fallback == {"batch": "error", "mlp": "error"}
    assert rules.reduce == "exact"
    assert load_rules(toml("")) == default


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[axis]\nheads = 'model'", r"'axis' is not known; write \[axes\], \[fallback\], reduce"),
        ("axes = 3", r"axes is 3: write a table, \[axes\]"),
        ("fallback = 'error'", r"fallback is 'error': write a table, \[fallback\]"),
        ("[axes]\nheads = false", "'heads' on False"),
        ("[axes]\nheads = ['model']", r"'heads' on \['model'\]"),
        ("[axes]\nhedas = 'model'", "nearest: 'heads'"),
        ("[fallback]\nheads = 1", "fallback of 'heads' is 1"),
        ("reduce = 'sum'", "reduce is 'sum'"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(toml, text, message):
    with pytest.raises(MeshError, match=message):
        load_rules(toml(text))


def test_a_file_that_cannot_be_read_is_named(toml, tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        load_rules(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"rules\.toml: not valid TOML"):
        load_rules(toml("[axes"))
