"""What a family says of published tensors fills every parameter, once and whole."""

import pytest
from whole_names import check

from tpuinfer.models import llama
from tpuinfer.models.blueprint import Weight, weights
from tpuinfer.models.names import Part, fused, ggml, hugging_face, stacked, stored_shape
from tpuinfer.testing.tiny import ODD

LAYER = {
    "layers.0.self_attn.q_proj.weight": Weight((3, 8, 36), ("heads", "head_dim", "embed")),
    "layers.0.self_attn.o_proj.weight": Weight((36, 3, 8), ("embed", "heads", "head_dim")),
    "layers.0.self_attn.q_proj.bias": Weight((3, 8), ("heads", "head_dim")),
    "layers.0.input_layernorm.weight": Weight((36,), ("embed",)),
    "embed_tokens.weight": Weight((97, 36), ("vocab", "embed")),
    "lm_head.weight": Weight((97, 36), ("vocab", "embed")),
}


def test_heads_and_what_they_hold_are_one_dimension_there():
    shapes = [stored_shape(weight) for weight in LAYER.values()]
    assert shapes == [(24, 36), (36, 24), (24,), (36,), (97, 36), (97, 36)]
    assert stored_shape(Weight((8,), ("head_dim",))) == (8,)


def test_hugging_face_names_have_a_prefix_but_the_head():
    found = hugging_face(LAYER, lambda name: name.replace("self_attn", "attn"))
    assert found["layers.0.self_attn.q_proj.bias"] == (
        Part("model.layers.0.attn.q_proj.bias", (24,)),
    )
    assert found["lm_head.weight"] == (Part("lm_head.weight", (97, 36)),)
    assert found.keys() == LAYER.keys()


def test_ggml_names_by_its_table():
    found = ggml(LAYER, rotary=("self_attn.q_proj",), norms_add=-1.0)
    assert found["layers.0.self_attn.q_proj.weight"] == (
        Part("blk.0.attn_q.weight", (24, 36), rotary=True),
    )
    assert found["layers.0.self_attn.q_proj.bias"][0].rotary
    assert found["layers.0.input_layernorm.weight"] == (
        Part("blk.0.attn_norm.weight", (36,), add=-1.0),
    )
    assert found["lm_head.weight"] == (Part("output.weight", (97, 36)),)
    assert not found["layers.0.self_attn.o_proj.weight"][0].rotary


def test_fused_tensors_are_cut_in_order():
    two = {
        "gate": Weight((60, 36), ("mlp", "embed")),
        "up": Weight((20, 36), ("mlp", "embed")),
    }
    assert fused(two, ("gate", "up"), "both") == {
        "gate": (Part("both", (80, 36), (0, 60, 1)),),
        "up": (Part("both", (80, 36), (60, 80, 1)),),
    }


def test_experts_are_stacked():
    weight = Weight((3, 60, 36), ("expert", "expert_mlp", "embed"))
    found = stacked("gate", weight, lambda at: f"experts.{at}.w1")
    assert found == {"gate": tuple(Part(f"experts.{at}.w1", (60, 36), at=at) for at in range(3))}


def test_llama_takes_every_element_once():
    wanted = weights(llama.blueprint(ODD))
    check(llama.hf_names(ODD), wanted)
    check(llama.gguf_names(ODD, "llama"), wanted)


def test_the_check_sees_a_gap_and_a_repetition():
    weight = {"a": Weight((4, 2), ("mlp", "embed"))}
    check({"a": (Part("t", (4, 2)),)}, weight)
    for parts in (
        (Part("t", (8, 2), (0, 4, 1)),),
        (Part("t", (4, 2), (0, 2, 1)),),
    ):
        with pytest.raises(AssertionError):
            check({"a": parts}, weight)
