"""Which weight is kept how: words, tables, files, and what is refused in which words."""

from pathlib import Path

import pytest

from tpuinfer.errors import ConfigError
from tpuinfer.models import registry
from tpuinfer.models.blueprint import Weight, weights
from tpuinfer.quant.schemes import WORDS, Scheme, Schemes
from tpuinfer.testing.tiny import ODD, TINY

MIXTRAL = {
    "model_type": "mixtral",
    "vocab_size": 71,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
}


def names_of(config: object = TINY) -> dict[str, Weight]:
    return weights(registry.build(config))


def resolved(text: str, config: object = TINY) -> dict[str, str]:
    found = Schemes.parse(text).resolve(names_of(config))
    return {name: str(scheme) for name, scheme in found.items()}


def parts(found: dict[str, str]) -> dict[str, set[str]]:
    """The last module of each name -> its schemes."""
    kinds: dict[str, set[str]] = {}
    for name, scheme in found.items():
        kinds.setdefault(name.split(".")[-2], set()).add(scheme)
    return kinds


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("text", "layers", "edges"),
    [
        ("int8", "int8", "int8"),
        ("fp8", "fp8", "fp8"),
        ("w8a8", "w8a8", "int8"),
        ("int8:16", "int8:16", "int8:16"),
        ("int4:16", "int4:16", "int8"),
        ("int4z:8", "int4z:8", "int8"),
    ],
)
def test_a_word_is_for_every_matmul_and_edges_keep_eight_bits(text, layers, edges):
    wanted = {key: {layers} for key in (*ATTENTION, *MLP)}
    assert parts(resolved(text)) == wanted | {"embed_tokens": {edges}, "lm_head": {edges}}
    assert parts(resolved(text))["o_proj"] == {layers}  # which contracts two dimensions


def test_none_quantises_nothing():
    assert resolved("none") == {}


def test_groups_are_halved_until_they_divide_each_row():
    # rows of TINY: 32 inputs, 64 of down_proj, 128 of o_proj (16 heads of 8)
    found = parts(resolved("int4:128"))
    assert found["q_proj"] == {"int4:32"}
    assert found["down_proj"] == {"int4:64"}
    assert found["o_proj"] == {"int4:128"}
    assert str(Scheme.parse("int4").fitted(576)) == "int4:64"
    assert str(Scheme.parse("int8:96").fitted(144)) == "int8:48"
    assert Scheme("int8").fitted(7) == Scheme("int8")
    assert str(Scheme.parse("int8:36").fitted(18)) == "int8:18"


@pytest.mark.parametrize(
    ("word", "changed"),
    [
        ("embedding", {"embed_tokens"}),
        ("head", {"lm_head"}),
        ("attention", set(ATTENTION)),
        ("mlp", set(MLP)),
        ("layers", {*ATTENTION, *MLP}),
        ("layers.*.mlp.down_proj", {"down_proj"}),
        ("layers.*.self_attn.[qk]_proj.weight", {"q_proj", "k_proj"}),
        ("*", {*ATTENTION, *MLP, "embed_tokens", "lm_head"}),
    ],
)
def test_a_pattern_names_weights(word, changed):
    found = parts(resolved(f"int8,{word}=fp8"))
    assert {module for module, schemes in found.items() if schemes == {"fp8"}} == changed
    assert {scheme for schemes in found.values() for scheme in schemes} <= {"int8", "fp8"}


def test_the_later_of_two_patterns_wins():
    both = "layers.0=none,layers.0.mlp=fp8"
    found = resolved(f"int8,{both}")
    assert found["layers.0.mlp.up_proj.weight"] == "fp8"
    assert "layers.0.self_attn.q_proj.weight" not in found
    assert found["layers.1.mlp.up_proj.weight"] == "int8"
    turned = resolved("int8,layers.0.mlp=fp8,layers.0=none")
    assert not any(name.startswith("layers.0.") for name in turned)


def test_layer_1_is_not_layer_10():
    able = {f"layers.{n}.mlp.up_proj.weight": Weight((8, 8), (None, None), 1) for n in (1, 10)}
    found = Schemes.parse("none,layers.1=int8").resolve(able)
    assert list(found) == ["layers.1.mlp.up_proj.weight"]


def test_experts_are_quantised_and_their_router_never():
    config = registry.read_config(MIXTRAL)
    found = resolved("int4:16,experts=int8", config)
    assert found["layers.1.mlp.experts.up_proj.weight"] == "int8"
    assert found["layers.1.self_attn.o_proj.weight"] == "int4:16"
    exact = names_of(config).keys() - found.keys()
    assert {name.split(".")[-2] for name in exact} == {
        *("router", "input_layernorm", "post_attention_layernorm", "norm")
    }
    with pytest.raises(ConfigError, match=r"no weight's name is like 'layers\.0\.mlp\.router'"):
        resolved("int8,layers.0.mlp.router=int8", config)


def test_a_tied_head_is_the_embedding():
    assert set(parts(resolved("int8", ODD))) == {*ATTENTION, *MLP, "embed_tokens"}
    with pytest.raises(ConfigError, match=r"this model's head is its embedding.*embedding="):
        resolved("int8,head=none", ODD)


def test_what_is_excepted_need_not_fit():
    """Rows of 36 inputs take no groups: only down_proj's 60 and o_proj's 24 take some."""
    wide = "layers.*.mlp.down_proj"
    found = parts(resolved(f"int4,attention=int8,mlp=none,{wide}=int8:12", ODD))
    assert found == {key: {"int8"} for key in (*ATTENTION, "embed_tokens")} | {
        "down_proj": {"int8:12"}
    }
    with pytest.raises(ConfigError) as caught:
        resolved("int4", ODD)
    assert str(caught.value) == (
        "weights: layers.0.mlp.down_proj.weight: scheme int4:64: rows of 60 inputs cannot be cut "
        "into groups of 64, nor of its halves down to 8; nearest: int8; write "
        "layers.0.mlp.down_proj.weight=int8 after it"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int9", r"scheme 'int9': one of none, int8, .*, or such as int4:64; nearest: int8"),
        ("INT8", r"scheme 'INT8': .*; nearest: int8"),
        ("", r"scheme '': one of none"),
        ("int4:", r"scheme 'int4:': one of"),
        ("fp8:-8", r"scheme 'fp8:-8': .*nearest: fp8"),
        ("int4:4", r"scheme int4:4: a group has at least 8 inputs; nearest: int4:8"),
        ("int8:0", r"at least 8 inputs; nearest: int8:8"),
        ("int4z:25", r"scheme int4z:25: two 4-bit codes share a byte.*; nearest: int4z:24"),
        ("w8a8:64", r"scheme w8a8:64: w8a8 takes no groups; nearest: w8a8"),
        ("none:64", r"none takes no groups; nearest: none"),
        ("int8,", r"weights 'int8,': '' is no PATTERN=SCHEME"),
        ("int8,head", r"weights 'int8,head': 'head' is no PATTERN=SCHEME"),
        ("int8,head=int7", r"scheme 'int7': .*; nearest: int"),
        ("int8,experts=int4", r"no weight's name is like 'experts'; nearest: layers"),
        ("int8,embeding=int4", r"no weight's name is like 'embeding'; nearest: embedding$"),
        ("int8,=int4", r"no weight's name is like ''"),
        ("none.toml", r"none\.toml: cannot be read"),
    ],
)
def test_what_is_no_table_is_refused(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        resolved(text)
    assert "\n" not in str(caught.value)


def test_a_group_is_never_halved_to_an_odd_one_of_packed_codes():
    assert str(Scheme.parse("int8:18").fitted(27)) == "int8:9"
    with pytest.raises(ConfigError, match="nearest: int8"):
        Scheme.parse("int4:18").fitted(27)


@pytest.mark.parametrize("word", WORDS)
def test_a_scheme_reads_what_it_writes(word):
    for group in (None, 64):
        if group is not None and word in ("none", "w8a8"):
            continue
        if group is None and word.startswith("int4"):
            continue
        scheme = Scheme(word, group)
        assert Scheme.parse(f" {scheme} ") == scheme


def test_a_file_holds_patterns_in_order(tmp_path: Path):
    (tmp_path / "w.toml").write_text(
        '[weights]\nlayers = "int4:16"\n"layers.*.mlp.down_proj" = "int8"\nhead = "fp8"\n', "utf-8"
    )
    found = parts(resolved(str(tmp_path / "w.toml")))
    assert found["up_proj"] == {"int4:16"}
    assert found["down_proj"] == {"int8"}
    assert found["lm_head"] == {"fp8"}
    assert "embed_tokens" not in found  # a file says all that it wants


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"w\.toml: write one table, \[weights\]"),
        ("weights = 3", "write one table"),
        ('[weights]\nhead = "int8"\n[other]\n', "write one table"),
        ("[weights]\nhead = 8", "head is 8: it must be a string"),
        ('[weights]\nhead = "int9"', "scheme 'int9'"),
        ('[weights]\nhed = "int8"', "no weight's name is like 'hed'; nearest: head"),
        ("[weights", "not valid TOML"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text, message):
    (tmp_path / "w.toml").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=message):
        resolved(str(tmp_path / "w.toml"))
