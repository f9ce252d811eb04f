"""Against counts by hand: Llama-3.1-8B, 64 slots, on 8 chips of a v5e.

D 4096, N x H 4096, K x H 1024, F 14336, V 128256; activations of two bytes.
"""

import dataclasses

import pytest

from tests.planning.asked import ask
from tpuinfer.model_config import Experts
from tpuinfer.planning import work
from tpuinfer.planning.exchanges import Exchange, Lies, Tally
from tpuinfer.planning.question import lay_out
from tpuinfer.sharding.presets import PRESETS, from_data

LAYERS, D, KH, F, V = 32, 4096, 1024, 14336, 128256
ROWS = 32
"""Of a data shard, with two of them."""


def plan(rules, mesh="2x4", **others):
    table = PRESETS[rules] if isinstance(rules, str) else from_data(rules)
    return lay_out(ask(mesh=mesh, rules=table, **others))


def travels(made):
    """(kind, axes) -> (count, bytes) of a decode step."""
    found = work.decode(made).exchanges
    assert len({(one.kind, one.axes) for one in found}) == len(found)
    return {(one.kind, *one.axes): (one.count, one.nbytes) for one in found}


def test_the_default_table_sums_over_model_alone():
    sums = 2 * LAYERS + 1
    each = sums, sums * ROWS * D * 2
    found = travels(plan("1d"))
    assert found == {("reduce-scatter", "model"): each, ("all-gather", "model"): each}
    assert work.decode(plan("1d")).exchanges[0].devices == (4,)


def test_rows_over_all_devices_need_nothing_of_each_other():
    assert travels(plan("data")) == {}


def test_rows_come_together_where_weights_are_cut_along_embed():
    """2D: what a device sums is of 64 rows, and a half of what the weight makes goes home."""
    found = travels(plan("2d"))
    both, x = 2 * ROWS, ROWS * D * 2
    # What does not divide into whole pieces is filled up, and summed for all.
    kv, logits = 2 * LAYERS * 512 * both * 2, 32256 * both * 4
    apart = LAYERS * (D + 2 * F) // 4 * both * 2  # q, gate and up
    assert found["reduce-scatter", "data"] == (5 * LAYERS + 1, apart + kv + logits)
    over_model = (2 * LAYERS + 1) * both * D // 2 * 2  # o, down and the embedding
    assert found["reduce-scatter", "model"] == (2 * LAYERS + 1, over_model)
    assert found["all-gather", "model"] == (2 * LAYERS + 1, over_model)
    # To the weights goes x, twice a layer and to the head; home what was summed apart.
    there, home = (2 * LAYERS + 1) * x, apart // 2 + (2 * LAYERS + 1) * x // 4
    assert found["all-to-all", "data"] == (
        2 * LAYERS + 1 + 3 * LAYERS + 2 * LAYERS + 1,
        there + home,
    )
    to_o_and_down = LAYERS * (D + F) // 4 * both * 2
    assert found["all-gather", "data"] == (4 * LAYERS + 1, kv + logits + to_o_and_down)


def test_weights_are_gathered_once_a_use_and_looked_up_where_they_lie():
    made = plan("fsdp")
    found, weights = travels(made), LAYERS * (2 * D * D + 2 * D * KH + 3 * D * F) + V * D
    assert found["all-gather", "data"] == (7 * LAYERS + 1, weights * 2 // 4)
    assert found["all-to-all", "data"] == (1, ROWS * D * 2 // 4)  # rows of the embedding
    done, whole = work.decode(made), work.decode(plan("1d"))
    assert done.flops == whole.flops
    assert done.weight_bytes == whole.weight_bytes
    read_and_written = weights * 2 // 8 + weights * 2 // 4
    assert done.other_bytes - whole.other_bytes == read_and_written


def test_norms_of_scattered_sums_tell_each_other_a_number_a_token():
    found = travels(plan("sequence"))
    sums, norms = 2 * LAYERS + 1, 2 * LAYERS + 1
    x = ROWS * D * 2
    assert found["reduce-scatter", "model"] == (sums, sums * x)
    # Normalised rows go to attention, to the MLP and to the head, once each.
    assert found["all-gather", "model"] == (norms + norms, norms * x + norms * ROWS * 4 * 4)


def test_of_rings_cut_along_their_length_queries_are_gathered_and_sums_sent_back():
    made = plan("context")
    found, whole = travels(made), travels(plan("1d"))
    seen = LAYERS * ROWS * 32 * (128 + 2) * 4
    assert found["all-to-all", "model"] == (2 * LAYERS, seen)
    count, nbytes = whole["all-gather", "model"]
    assert found["all-gather", "model"] == (count + LAYERS, nbytes + LAYERS * ROWS * D * 2)
    done, plain = work.decode(made), work.decode(plan("1d"))
    assert done.ring_bytes == plain.ring_bytes
    kv_maps = LAYERS * 2 * D * KH
    assert done.weight_bytes - plain.weight_bytes == kv_maps * 2 * 3 // 4  # whole on each device
    assert done.flops["bf16"] - plain.flops["bf16"] == 2 * ROWS * kv_maps * 3 / 4  # no attention


def test_heads_that_are_whole_come_from_those_that_keep_them():
    rules = {"axes": {"heads": "", "kv_heads": "", "length": "model"}}
    found = travels(plan(rules))
    seen = LAYERS * ROWS * 32 * (128 + 2) * 4
    assert found["all-to-all", "model"] == (2 * LAYERS, seen)
    sums, kept = LAYERS + 1, LAYERS  # of down and the embedding: o sums nothing
    assert found["all-gather", "model"] == (sums + kept, (sums + kept) * ROWS * D * 2)


def moe(rules, mesh, embed=4096):
    config = dataclasses.replace(
        ask().config, family="mixtral", experts=Experts(8, 2, 2048), embed=embed
    )
    return lay_out(dataclasses.replace(ask(mesh=mesh, rules=PRESETS[rules]), config=config))


def test_rows_come_to_experts_and_go_home():
    made = moe("expert", "expert=4,model=2")
    found = travels(made)
    own = 16  # rows of each of four shards
    assert found["all-gather", "expert"] == (LAYERS, LAYERS * 64 * D * 2)
    assert found["reduce-scatter", "model", "expert"] == (LAYERS, LAYERS * 64 * D * 2)
    assert found["all-to-all", "expert"] == (LAYERS, LAYERS * 64 * D * 2 // 8)
    assert found["all-gather", "model"] == (2 * LAYERS + 1, (2 * LAYERS + 1) * own * D * 2)
    every = 2 * 64 * 8 * 3 * 2048 * D / 8  # all experts of 64 rows, over 8 devices
    dense = work.decode(moe("1d", "8"))
    assert work.decode(made).flops["bf16"] == pytest.approx(dense.flops["bf16"])
    assert every * LAYERS < dense.flops["bf16"]


def test_prefill_has_its_own_exchanges_and_decode_those_of_the_base():
    rules = {"preset": "2d", "prefill": {"gather": ["embed"]}}
    made, base = plan(rules), plan("2d")
    assert work.decode(made) == work.decode(base)
    gathered, cut = (work.prefill(one, 1, 512) for one in (made, plan("fsdp")))
    assert gathered == cut
    assert work.prefill(base, 1, 512) != gathered
    whole = work.prefill(plan({"prefill": {"axes": {"mlp": ""}}}), 1, 512)
    sent = {(one.kind, *one.axes): one for one in whole.exchanges}
    mlps, sums = LAYERS * 3 * D * F * 2, LAYERS + 1
    assert sent["all-gather", "model"].nbytes == mlps + sums * 512 * D * 2
    assert sent["all-gather", "model"].count == 3 * LAYERS + sums
    assert whole.weight_bytes - work.prefill(plan("1d"), 1, 512).weight_bytes == mlps * 3 // 4


def test_a_weight_that_another_axis_cuts_changes_hands():
    rules = {"prefill": {"axes": {"mlp": "", "embed": "model"}}}
    with pytest.raises(Exception, match="embed"):
        plan(rules)  # heads and embed would share the mesh axis
    rules = {"axes": {"vocab": ""}, "prefill": {"axes": {"vocab": "model"}}}
    assert {one.kind for one in work.prefill(plan(rules), 1, 512).exchanges} == {
        "reduce-scatter",
        "all-gather",
    }  # what is cut further is there already


def tally(mesh="2x4", rules="1d"):
    return Tally(plan(rules, mesh).layout, 2)


@pytest.mark.parametrize(
    ("before", "after", "moved"),
    [
        (Lies(("data",), ("model",)), Lies(("data",), ()), {("all-gather", ("model",)): 16}),
        (Lies(("data",), ()), Lies((), ("data",)), {("all-to-all", ("data",)): 16}),
        (Lies((), ("data",)), Lies(("data",), ()), {("all-to-all", ("data",)): 16}),
        (Lies((), ()), Lies(("data",), ("model",)), {}),
        (Lies(("data",), ()), Lies((), ()), {("all-gather", ("data",)): 32}),
        (
            Lies((), ("data", "model")),
            Lies(("data",), ()),
            {("all-to-all", ("data",)): 4, ("all-gather", ("model",)): 16},
        ),
        # Cut by model first, rows come together in pieces.
        (Lies(("data",), ()), Lies((), ("model",)), {("all-gather", ("data",)): 8}),
    ],
)
def test_what_lies_elsewhere_travels_in_its_smallest_form(before, after, moved):
    """Eight columns of one row a data shard, two of them, four model shards."""
    found = tally()
    found.move(8, before, after)
    assert {(one.kind, one.axes): one.nbytes for one in found.exchanges(1, 0)} == moved


def test_a_tally_adds_up_what_is_for_tokens_rows_and_calls():
    found = tally()
    found.times = 3
    for per, nbytes in (("token", 5), ("row", 7), ("call", 11)):
        found.add("all-gather", ("model",), nbytes, per)
    assert found.exchanges(10, 100) == (
        Exchange("all-gather", ("model",), (4,), 9, 3 * (50 + 700 + 11)),
    )
