"""`python -m tpuinfer.plan` from the outside."""

import json

import doors
import pytest

EIGHT_B = ("--model", "llama-3.1-8b", "--topology", "v5e:2x4", "--slots", "64x2048")


def test_a_plan_that_fits_is_a_table():
    made = doors.run("plan", *EIGHT_B, "--mesh", "8")
    assert (made.code, made.err) == (0, "")
    assert made.out.splitlines()[0].endswith("ring bfloat16: fits")
    assert "headroom" in made.out


def test_without_a_mesh_all_devices_lie_along_the_model_axis():
    made = doors.run("plan", *EIGHT_B, "--json")
    found = json.loads(made.out)
    assert found["mesh"] == {"data": 1, "model": 8}
    assert found["programs"]["decode"]["ideal_bytes"] == pytest.approx(4.026e9, rel=1e-3)


def test_a_plan_that_does_not_fit_exits_so_and_names_what_would():
    flags = ("--model", "llama-3.3-70b", "--topology", "v5e:2x4", "--mesh", "8", "--json")
    made = doors.run("plan", *flags, "--slots", "16x2048")
    found = json.loads(made.out)
    assert made.code == 3
    assert found["fits"] is False
    assert any(one["flags"] == "--weights int8 --ring int8" for one in found["remedies"])
    made = doors.run("plan", *flags, "--fit")
    assert made.code == 3
    assert "no slot fits: weights take 17.6" in made.err
    found = json.loads(made.out)
    assert (found["version"], found["fits"]) == (1, False)
    assert found["why"].startswith("no slot fits: weights take 17.6")
    assert any(one["flags"] == "--weights int8 --ring int8" for one in found["remedies"])
    assert "--weights int8 --ring int8" in made.err


def test_fit_chooses_and_compare_ranks():
    made = doors.run("plan", *EIGHT_B[:4], "--fit", "--json")
    assert json.loads(made.out)["fits"]
    made = doors.run("plan", *EIGHT_B, "--compare", "--price-per-chip-hour", "1.2")
    assert [line.split()[1] for line in made.out.splitlines()[1:4]] == ["8", "2x4", "4x2"]
    assert "$/Mtok" in made.out


def test_a_mesh_of_its_own_choice_is_told_with_the_reason():
    made = doors.run("plan", *EIGHT_B, "--mesh", "auto", "--json")
    assert json.loads(made.out)["mesh"] == {"data": 1, "model": 8}
    assert made.err.startswith("mesh auto is 8: of 4 meshes of v5e:2x4 ")
    assert made.err.count("\n") == 1
    big = ("--model", "llama-3.3-70b", "--topology", "v5e:2x4", "--slots", "16x2048")
    made = doors.run("plan", *big, "--mesh", "auto")
    assert made.code == 3
    assert "does NOT fit" in made.out
    assert "--weights int8 --ring int8" in made.out
    assert made.err.startswith("mesh is auto, and llama-3.3-70b runs on no mesh of v5e:2x4")


def test_presets_and_meshes_of_three_axes():
    made = doors.run("plan", *EIGHT_B, "--mesh", "2x4", "--rules", "2d")
    assert made.code == 0
    assert "embed on data; expert_mlp on data+model." in made.out
    shape = "data=2,expert=4,model=2"
    flags = ("--topology", "v5e:4x4", "--mesh", shape, "--rules", "expert", "--json")
    made = doors.run("plan", "--model", "qwen3-30b-a3b", *flags)
    found = json.loads(made.out)
    assert found["mesh"] == {"data": 2, "expert": 4, "model": 2}
    over = {tuple(one["axes"]) for one in found["programs"]["decode"]["exchanges"]}
    assert over == {("model",), ("expert",), ("model", "expert")}
    made = doors.run("plan", *EIGHT_B, "--mesh", shape)
    assert made.code == 3
    assert "is of 16 devices, v5e:2x4 has 8; nearest: expert=4,model=2; legal: " in made.err
    made = doors.run("plan", *EIGHT_B, "--rules", "3d")
    assert (made.code, made.err.count("\n")) == (3, 1)
    assert "'3d', which is no file and no preset; nearest: '2d'" in made.err


def test_steps_and_quantised_rings_reach_the_plan():
    made = doors.run(
        "plan", *EIGHT_B, "--steps", "3", "--ring", "int8", "--weights", "int8", "--json"
    )
    found = json.loads(made.out)
    assert (found["steps"], found["ring"], found["weights"]) == (3, "int8", "int8")


def test_any_config_json_will_do(tmp_path):
    config = {
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": 1024,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = doors.run("plan", "--model", str(tmp_path), "--topology", "v5e-8", "--json")
    found = json.loads(made.out)
    assert (found["model"], found["topology"], found["fits"]) == (tmp_path.name, "v5e:2x4", True)


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--topology", "v5x:2x4"), 3, "chip is 'v5x': one of v4, v5e, "),
        (("--topology", "v5e:3x4"), 3, "no slice of TPU v5e; nearest: v5e:"),
        ((), 2, "topology is given neither by a flag nor"),
        (("--topology", "v5e-8", "--mesh", "4x4"), 3, "has 8; nearest: "),
        (("--topology", "v5e-8", "--verify"), 2, "--verify means nothing to the planner"),
        (("--topology", "v5e-8,v6e-8"), 2, "several go with --compare"),
        (("--topology", "h100:8", "--compile"), 2, "nearest: leave out --compile"),
        (("--topology", "v5e-8", "--compile", "--compare"), 2, "--compile goes not with --compare"),
        (
            ("--topology", "v5e-8", "--mesh", "8", "--compare"),
            2,
            "--mesh=8 goes not with --compare",
        ),
        (("--topology", "v5e-8", "--slots", "4", "--fit"), 2, "--slots=4 goes not with --fit"),
        (("--topology", "v5e-8", "--context", "4", "--fit"), 2, "--context=4 goes not with --fit"),
        (("--topology", "v5e-8", "--slots", "9", "--mesh", "2x4"), 3, "data=2 does not divide"),
        (("--topology", "v5e-8", "--model", "lama-3"), 2, "nearest: llama-3"),
        (("--topology", "v5e-8", "--model", "/nowhere/config.json"), 2, "cannot be read"),
    ],
)
def test_wrong_input_is_one_line_with_the_nearest_that_works(flags, code, says):
    model = () if "--model" in flags else ("--model", "llama-3.1-8b")
    made = doors.run("plan", *model, *flags)
    assert (made.code, made.out, made.err.count("\n")) == (code, "", 1)
    assert says in made.err


def test_a_comparison_in_which_nothing_fits_exits_so():
    made = doors.run("plan", "--model", "llama-3.3-70b", "--topology", "v5e-8", "--compare")
    assert made.code == 3
    assert len(made.out.splitlines()) == 5


def test_a_mesh_that_rules_forbid_is_told_with_what_would_work(tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text('[fallback]\nkv_heads = "error"\n')
    flags = (*EIGHT_B[:2], "--topology", "v5e-16", "--mesh", "16", "--rules", str(rules), "--json")
    made = doors.run("plan", *flags)
    assert made.code == 3
    assert "kv_heads is 8, which model=16 does not divide" in made.err
    assert json.loads(made.out)["remedies"][0]["flags"] == "--mesh 2x8"
    assert "--mesh 2x8" in made.err


def test_rules_that_name_an_unknown_axis_are_refused(tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text('[axes]\nhead = "model"\n')
    made = doors.run("plan", *EIGHT_B, "--rules", str(rules))
    assert (made.code, made.err.count("\n")) == (3, 1)
    assert "'head', which is no logical axis; nearest: 'heads'" in made.err
