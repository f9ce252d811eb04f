import pytest

from tpuinfer.errors import ConfigError, MeshError
from tpuinfer.sharding.presets import PRESETS, load_rules
from tpuinfer.sharding.rules import ShardingRules


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"axes": {"head": "model"}}, "'head', which is no logical axis; nearest: 'heads'"),
        ({"fallback": {"vocabulary": "error"}}, "'vocabulary', .* nearest: 'vocab'"),
        ({"axes": {"mlp": "modle"}}, "'mlp' on 'modle'; the mesh axes are .*; nearest: 'model'"),
        ({"axes": {"mlp": ("data", "modle")}}, "'mlp' on 'modle'; .*; nearest: 'model'"),
        ({"axes": {"mlp": ("model", "model")}}, "'mlp' on 'model' twice; nearest: 'model'$"),
        ({"axes": {"mlp": 3}}, "'mlp' on 3: write a mesh axis or a list of them"),
        (
            {"axes": {"embed": "model", "mlp": "model"}},
            "'mlp' and 'embed' on 'model', and weights of an MLP have both: a mesh axis cuts an "
            "array once; nearest: embed on 'data'",
        ),
        (
            {"axes": {"batch": "model", "heads": "model", "kv_heads": "model"}},
            "and rings have both",
        ),
        ({"axes": {"batch": "data", "residual": "data"}}, "nearest: residual on 'expert'"),
        ({"axes": {"batch": "data", "length": "data"}}, "'batch' and 'length' on 'data'"),
        ({"axes": {"head_dim": "data"}}, "'head_dim' on 'data'; it can lie on no axis only"),
        (
            {"axes": {"heads": "data", "kv_heads": "model"}},
            "'heads' on 'data' and 'kv_heads' on 'model'; heads can lie .*; nearest: heads on "
            "'model'",
        ),
        (
            {"axes": {"heads": "seq", "kv_heads": "model", "length": "seq"}},
            r"nearest: heads on \('model', 'seq'\)",
        ),
        ({"fallback": {"mlp": "pad"}}, "fallback of 'mlp' is 'pad': replicate or error"),
        ({"fallback": {"mlp": "repeat"}}, "fallback of 'mlp' is 'repeat': replicate or error"),
        ({"fallback": {"kv_heads": "pad"}}, "is 'pad': replicate or error or repeat"),
        ({"gather": "embed"}, "gather is 'embed': write a list of axes"),
        ({"gather": [1]}, "rules name 1, which is no logical axis; nearest: "),
        ({"prefill": "2d"}, "prefill is '2d': give a ShardingRules"),
        (
            {"axes": {"expert": "data", "expert_mlp": "model", "expert_embed": "model"}},
            "'expert_mlp' and 'expert_embed' on 'model', .*; nearest: expert_embed on 'expert'",
        ),
        (
            {"prefill": ShardingRules(fallback={"batch": "error", "kv_heads": "replicate"})},
            "fallback of 'kv_heads' is 'replicate' for prefill and 'repeat' for decode",
        ),
        ({"gather": ["heads"]}, "gather names 'heads'; .*; nearest: "),
        ({"gather": ["embd"]}, "'embd', which is no logical axis; nearest: 'embed'"),
        (
            {"axes": {"expert_embed": "data"}},
            r"'expert_embed' on 'data' and do not gather it: .*; nearest: gather = \[",
        ),
        (
            {"prefill": ShardingRules(axes={"batch": "model"})},
            "'batch' on 'model' for prefill and on 'data' for decode, which share the rings; "
            "nearest: batch on 'data'",
        ),
        ({"prefill": ShardingRules(prefill=ShardingRules())}, "rules for prefill of their own"),
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
    assert rules.fallback == {**default.fallback, "mlp": "error"}
    assert rules.reduce == "exact"
    assert load_rules(toml("")) == default


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[axis]\nheads = 'model'", r"'axis' is not known; nearest: 'axes'; write preset, reduce"),
        ("axes = 3", r"axes is 3: write a table, \[axes\]"),
        ("fallback = 'error'", r"fallback is 'error': write a table, \[fallback\]"),
        ("[axes]\nheads = false", "'heads' on False"),
        ("[axes]\nheads = ['modle']", "nearest: 'model'"),
        ("[axes]\nheads = ['model', 1]", "'heads' on 1; the mesh axes are"),
        ("preset = ['1d']", "preset is \\['1d'\\]; nearest: "),
        ("gather = [1]", "rules.toml: rules name 1, which is no logical axis"),
        ("preset = '3d'", "rules.toml: preset is '3d'; nearest: '2d'"),
        ("gather = 'embed'", "gather is 'embed': write a list of axes"),
        ("prefill = 1", r"prefill is 1: write a table, \[prefill\]"),
        ("[prefill]\npreset = '2d'", r"\[prefill\] has 'preset': it says what differs"),
        ("[prefill.axis]\nmlp = ''", r"rules.toml: \[prefill\]: 'axis' is not known"),
        ("[prefill.axes]\nbatch = ''", "'batch' on no axis for prefill"),
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


def test_a_file_changes_a_preset_and_prefill_changes_that(toml):
    rules = load_rules(
        toml('preset = "2d"\n[prefill]\ngather = ["embed"]\n[prefill.axes]\nvocab = ""\n')
    )
    two_d = PRESETS["2d"]
    assert (rules.axes, rules.gather) == (two_d.axes, ())
    assert rules.prefill is not None
    assert rules.prefill.axes == {**two_d.axes, "vocab": None}
    assert rules.prefill.gather == ("embed",)


def test_presets_are_loaded_by_name():
    assert all(load_rules(name) is table for name, table in PRESETS.items())
    assert load_rules("1d") == load_rules(None) == load_rules("") == ShardingRules()
    assert load_rules(PRESETS["2d"]) is PRESETS["2d"]
    with pytest.raises(MeshError, match="'fdsp', which is no file and no preset; nearest: 'fsdp'"):
        load_rules("fdsp")


def test_lists_and_tuples_of_one_are_that_one():
    rules = ShardingRules(axes={"mlp": ["model"], "vocab": []})
    assert rules.axes == {"mlp": "model", "vocab": None}


def test_rows_are_cut_by_every_mesh_axis_that_they_lie_on():
    mesh = {"data": 2, "expert": 3, "model": 4}
    cut = {name: table.data_shards(mesh) for name, table in PRESETS.items()}
    assert cut == {**dict.fromkeys(PRESETS, 2), "data": 24, "expert": 6}
