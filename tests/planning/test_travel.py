import json

import pytest

from tests.planning.asked import ask
from tpuinfer.planning import as_json, as_text, travel
from tpuinfer.planning.answer import answer
from tpuinfer.planning.question import lay_out
from tpuinfer.sharding.presets import PRESETS, from_data
from tpuinfer.sharding.rules import ShardingRules

GATHERING = from_data({"preset": "2d", "prefill": {"gather": ["embed"]}})


def plan(rules, mesh="2x4", **others):
    return lay_out(ask(mesh=mesh, rules=rules, **others))


def test_what_prefill_gathers_is_every_map_and_not_the_embedding():
    rows = travel.resharding(plan(GATHERING))
    assert {row.name for row in rows} == {
        "lm_head.weight",
        *(f"layers.*.self_attn.{part}_proj.weight" for part in "qkvo"),
        *(f"layers.*.mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    }
    first = rows[0]
    assert first.count == 32
    assert first.bytes == 32 * 4096 * 14336 * 2 // 8  # a quarter is needed, an eighth is there
    assert travel.resharding(plan(PRESETS["fsdp"])) == []
    tied = travel.resharding(plan(GATHERING, model="llama-3.2-1b", topology="v5e:2x4"))
    assert "embed_tokens.weight" in {row.name for row in tied}  # as the head


def test_the_plan_says_what_travels_in_each_prefill():
    found = answer(ask(mesh="2x4", rules=GATHERING))
    total = sum(row.bytes for row in found.resharding)
    text = as_text.as_text(found).splitlines()
    (line,) = [one for one in text if one.startswith("Prefill has rules of its own")]
    assert f"each call sends a device {total / 1e6:,.1f} MB of weights (layers.*.mlp." in line
    assert line.endswith("and 5 more).")
    data = json.loads(json.dumps(as_json.as_json(found)))["resharding"]
    assert data["bytes"] == total
    assert data["arrays"][0] == {
        "name": "layers.*.mlp.down_proj.weight",
        "count": 32,
        "bytes": 32 * 4096 * 14336 * 2 // 8,
        "before": "(data, model)",
        "after": "(-, model)",
    }
    sent = [one for one in found.chunk.work.exchanges if one.kind == "all-gather"]
    assert sum(one.nbytes for one in sent) > total


def test_where_nothing_travels_the_plan_says_so():
    text = as_text.as_text(answer(ask(rules=GATHERING)))
    assert "on this mesh no weights travel for them" in text
    plain = answer(ask())
    assert "Prefill has rules" not in as_text.as_text(plain)
    assert as_json.as_json(plain)["resharding"] is None
    assert as_json.as_json(answer(ask(rules=GATHERING)))["resharding"]["bytes"] == 0


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (ShardingRules(), ""),
        (PRESETS["2d"], "embed on data; expert_mlp on data+model."),
        (
            PRESETS["fsdp"],
            "embed on data; expert_embed on data; gathered where used: embed, expert_embed.",
        ),
        (PRESETS["context"], "kv_heads on no axis; length on model."),
        (GATHERING, "expert_mlp on data+model; prefill: gathered where used: embed."),
        (from_data({"prefill": {}}), "prefill: the same."),
        (
            ShardingRules(reduce="exact", fallback={"mlp": "error"}),
            "sums exact; what does not divide: mlp error.",
        ),
    ],
)
def test_a_table_in_words_is_what_it_has_otherwise(rules, says):
    said = travel.rules_in_words(rules)
    assert said.endswith(says)
    assert bool(said) == bool(says)
    assert "\n" not in said


def test_the_plan_names_a_table_that_is_not_the_default():
    text = as_text.as_text(answer(ask(mesh="2x4", rules=PRESETS["sequence"])))
    line = "Rules, where they are not the default ones: residual on model."
    assert line in text.splitlines()
    assert "Rules" not in as_text.as_text(answer(ask(mesh="2x4", rules=ShardingRules())))


def test_json_has_collectives_by_their_axes():
    found = as_json.as_json(answer(ask(mesh="2x4", rules=PRESETS["2d"])))["programs"]["decode"]
    by_axes = {(one["kind"], *one["axes"]): one for one in found["exchanges"]}
    assert by_axes["reduce-scatter", "data"]["axes"] == {"data": 2}
    kinds = found["collectives"]
    for name in ("count", "bytes"):
        both = sum(by_axes["reduce-scatter", axis][name] for axis in ("data", "model"))
        assert kinds["reduce-scatter"][name] == both
