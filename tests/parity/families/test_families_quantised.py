"""Every family with quantised weights: the logits are those of what the codes stand for.

Weights are quantised as they are read, on the mesh, from the checkpoints that the goldens describe.
"""

import jax
import numpy as np
import pytest
from all_cases import CASES
from family_golden import row_errors
from family_ours import CHUNK, CONTEXT, LENGTH, Model
from family_quantised import both, by_kind, checkpoint_of, config_of, in_turn, rounded_both

from tpuinfer.quant.qarray import QArray

LIMIT = 1e-4
"""Of a row's largest logit; seen: 1e-5."""

SEEN = 1e-2
"""What quantising these tiny models costs at least: were it left out, it would be missed."""

ONE_OF_EACH = (
    "llama-dynamic",
    "mistral-windows",
    "qwen2-late-windows",
    "qwen3-biased",
    "smollm3-windows",
    "olmo2-one-kv-head",
    "granite-tied",
    "phi3-short",
    "gemma2-capped",
    "gemma3-text",
    "mixtral-window",
    "qwen3-moe-with-a-plain-layer",
    "gpt-oss-within",
)
"""Of like sizes: what quantises a weight is compiled once for all that are shaped alike."""

EVERY_SCHEME = ("llama-tied", "mixtral-window", "gemma2-capped")
"""A plain one, a mixture, and a head that is the embedding and is capped."""


def test_every_family_is_here():
    assert {CASES[name].family for name in ONE_OF_EACH} == {case.family for case in CASES.values()}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_layers_in_int8_and_in_int4(name):
    """By turns, so that every kind of weight is seen in both; in chunks, the last one padded."""
    schemes = in_turn(config_of(name), ("int4", "int8"))
    assert {scheme.word for scheme in schemes.values()} == {"int4", "int8"}
    with checkpoint_of(name) as checkpoint:
        ours, wanted, exact = both(checkpoint, "1", schemes, LENGTH, CHUNK)
    assert row_errors(ours, wanted).max() < LIMIT
    assert row_errors(ours, exact).max() > SEEN


@pytest.mark.parametrize("name", EVERY_SCHEME)
def test_layers_in_fp8_and_in_4_bits_with_zeros(name):
    schemes = in_turn(config_of(name), ("fp8", "int4z"), edges="fp8")
    assert {scheme.word for scheme in schemes.values()} == {"fp8", "int4z"}
    with checkpoint_of(name) as checkpoint:
        ours, wanted, exact = both(checkpoint, "1", schemes, LENGTH, CHUNK)
    assert row_errors(ours, wanted).max() < LIMIT
    assert row_errors(ours, exact).max() > SEEN


@pytest.mark.parametrize("name", EVERY_SCHEME)
def test_activations_in_8_bits_by_the_definition(name):
    """Each token's are rounded alone; embedding and head are in int8, multiplied exactly."""
    schemes = in_turn(config_of(name), ("w8a8",))
    with checkpoint_of(name) as checkpoint:
        ours, wanted = rounded_both(checkpoint, schemes, CHUNK)
    assert row_errors(ours, wanted).max() < LIMIT


@pytest.mark.parametrize(
    ("prompt", "width"), [(LENGTH, CONTEXT), (5, CHUNK)], ids=["whole", "steps"]
)
def test_wide_and_narrow_calls_agree(prompt, width):
    """A CPU multiplies a few tokens by whole numbers, and widens the weights for many."""
    schemes = in_turn(config_of("llama-tied"), ("int8", "int4", "fp8"))
    with checkpoint_of("llama-tied") as checkpoint:
        ours, wanted, _ = both(checkpoint, "1", schemes, prompt, width)
    assert row_errors(ours, wanted).max() < LIMIT


ON_MESHES = {"olmo2-cut": ("2x4", 4), "gpt-oss-within": ("2x4", 4), "mixtral-tied": ("8", 1)}
"""Heads that are cut; experts cut within; experts cut by number. The mesh, and how it cuts rows."""


@pytest.mark.parametrize("name", ON_MESHES)
def test_a_mesh_has_the_schemes_and_codes_of_one_device(name):
    """To the bit: a row's codes depend on that row alone."""
    words = {"o_proj": "int4z", "down_proj": "int4", "q_proj": "fp8", "embed_tokens": "fp8"}
    mesh, shards = ON_MESHES[name]
    schemes = by_kind(config_of(name), words, shards)
    with checkpoint_of(name) as checkpoint:
        alone, on_mesh = (Model(checkpoint, one, schemes) for one in ("1", mesh))
        logits = [model.run(LENGTH, CHUNK) for model in (alone, on_mesh)]
    assert alone.plan.schemes == on_mesh.plan.schemes == schemes
    cut = 0
    for one, value in alone.params.items():
        other = on_mesh.params[one]
        assert jax.tree.structure(value) == jax.tree.structure(other), one
        for part, same in zip(jax.tree.leaves(value), jax.tree.leaves(other), strict=True):
            assert part.dtype == same.dtype
            np.testing.assert_array_equal(np.asarray(part), np.asarray(same), one)
        cut += isinstance(other, QArray) and not other.values.sharding.is_fully_replicated
    assert cut > 0, "some codes are cut over the mesh"
    assert row_errors(*logits).max() < LIMIT
