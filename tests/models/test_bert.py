"""The BERT blueprint against the numpy reference, alone and on a mesh; its config reader."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_encoder import EVEN, ODD, hidden, random_weights

from tpuinfer.errors import ConfigError
from tpuinfer.models import bert, registry
from tpuinfer.models.blueprint import abstract_params, bind
from tpuinfer.sharding.layout import resolve
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.presets import PRESETS
from tpuinfer.sharding.rules import ShardingRules

IDS = [[2, 90, 17, 5, 61, 3], [2, 3], [2, 8, 8, 8, 50, 44, 31, 20, 63, 3], [7]]
WIDTH = 12

HF = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
}


def run(config, mesh, dtype="float32", rules=None):
    """The blueprint's output for IDS, [4, WIDTH, D]."""
    sizes = registry.axis_sizes(config, slots=4)
    layout = resolve(rules or ShardingRules(), build_mesh(parse_mesh(mesh)), sizes)
    blueprint = registry.build(config)
    host = random_weights(config)
    params = {
        name: jax.device_put(host[name].astype(one.dtype), one.sharding)
        for name, one in abstract_params(blueprint, layout, dtype).items()
    }
    tokens = np.full((len(IDS), WIDTH), config.vocab - 1, np.int32)
    for row, ids in enumerate(IDS):
        tokens[row, : len(ids)] = np.asarray(ids) % config.vocab
    length = np.array([len(ids) for ids in IDS], np.int32)

    @jax.jit
    def program(params, tokens, length):
        return bind(blueprint, params).hidden(tokens, length, layout, jnp.dtype(dtype))

    return np.asarray(program(params, tokens, length))


def largest_error(config, out):
    errors = []
    for row, ids in enumerate(IDS):
        wanted = hidden(config, random_weights(config), [one % config.vocab for one in ids])
        errors.append(np.abs(out[row, : len(ids)] - wanted).max() / np.abs(wanted).max())
    return max(errors)


@pytest.mark.parametrize("mesh", ["1", "2x4"])
@pytest.mark.parametrize("config", [ODD, EVEN], ids=["odd", "even"])
def test_hidden_states_are_the_references(config, mesh):
    assert largest_error(config, run(config, mesh)) < 1e-5


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_the_references(preset):
    mesh = {"expert": "data=2,expert=2,model=2", "data": "2x2"}.get(preset, "2x4")
    assert largest_error(EVEN, run(EVEN, mesh, rules=PRESETS[preset])) < 1e-5


def test_bfloat16_is_near():
    assert 1e-4 < largest_error(ODD, run(ODD, "1", "bfloat16")) < 5e-2


def test_the_mesh_cuts_what_divides_and_only_that():
    cut = {}
    for name, config in (("odd", ODD), ("even", EVEN)):
        layout = resolve(
            ShardingRules(), build_mesh(parse_mesh("2x4")), registry.axis_sizes(config, slots=4)
        )
        axes = ("batch", "heads", "kv_heads", "mlp", "vocab")
        cut[name] = [axis for axis in axes if layout.shards(axis) > 1]
    assert cut == {"odd": ["batch"], "even": ["batch", "heads", "kv_heads", "mlp", "vocab"]}


def test_config_of_a_published_bert():
    config = bert.read_config(HF)
    assert (config.head_dim, config.context, config.types) == (32, 512, 2)
    assert (config.norm_eps, config.activation) == (1e-12, "gelu")


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta"])
def test_roberta_leaves_positions_up_to_its_padding_id_unused(kind):
    config = registry.read_config({**HF, "model_type": kind, "max_position_embeddings": 514})
    assert (config.family, config.first_position, config.context) == ("bert", 2, 512)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"is_decoder": True}, "is_decoder True: not supported for bert"),
        ({"add_cross_attention": True}, "add_cross_attention True"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"num_attention_heads": 7}, "embed is 384 with 7 heads"),
        ({"hidden_size": None}, "hidden_size is null"),
        ({"vocab_size": 0}, "vocab is 0: it must be at least 1"),
        (
            {"model_type": "roberta", "pad_token_id": 600},
            r"first_position is 601: it must be in \[0, 511\]",
        ),
    ],
)
def test_what_is_not_done_here_is_refused_by_name(entries, message):
    with pytest.raises(ConfigError, match=message):
        registry.read_config({**HF, **entries})


def test_names_are_those_of_published_checkpoints():
    names = {name: parts[0] for name, parts in bert.hf_names(ODD).items()}
    assert all(len(parts) == 1 for parts in bert.hf_names(ODD).values())
    assert names["layers.2.self_attn.o_proj.weight"].tensor == (
        "encoder.layer.2.attention.output.dense.weight"
    )
    assert names["layers.2.self_attn.o_proj.weight"].shape == (24, 24)
    assert names["layers.0.self_attn.q_proj.bias"].shape == (24,)
    assert names["embed_norm.bias"].tensor == "embeddings.LayerNorm.bias"
