"""Reading config.json: what becomes of each entry, and what is refused in one line."""

import pytest

from tpuinfer.errors import ConfigError
from tpuinfer.model_config import ModelConfig, Rope
from tpuinfer.models.decoder import Decoder
from tpuinfer.models.registry import axis_sizes, build, read_config
from tpuinfer.testing.tiny import ODD

SMALL = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100000,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
    "bos_token_id": 1,
}


def test_every_entry_arrives():
    assert read_config(SMALL) == ModelConfig(
        family="llama",
        vocab=49152,
        embed=576,
        mlp=1536,
        layers=30,
        heads=9,
        kv_heads=3,
        head_dim=64,
        context=8192,
        rope=Rope(100000.0),
        norm_eps=1e-5,
        tie_embeddings=True,
        eos_ids=(2,),
        bos_id=1,
    )


def test_defaults_are_those_of_hugging_face():
    optional = (
        "num_key_value_heads",
        "rope_theta",
        "tie_word_embeddings",
        "eos_token_id",
        "bos_token_id",
    )
    config = read_config({name: SMALL[name] for name in SMALL if name not in optional})
    assert config.kv_heads == config.heads == 9
    assert config.rope.theta == 10_000
    assert config.tie_embeddings is False
    assert (config.eos_ids, config.bos_id) == ((), None)


def test_null_counts_as_absent():
    config = read_config({**SMALL, "head_dim": None, "num_key_value_heads": None})
    assert (config.head_dim, config.kv_heads) == (64, 9)


def test_the_theta_of_newer_configs_is_found():
    newer = {name: value for name, value in SMALL.items() if name != "rope_theta"}
    newer["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    assert read_config(newer).rope.theta == 5e5


def test_a_head_dim_of_its_own_and_several_end_tokens():
    config = read_config({**SMALL, "head_dim": 128, "eos_token_id": [2, 7]})
    assert (config.head_dim, config.eos_ids) == (128, (2, 7))


@pytest.mark.parametrize(
    "entry",
    [
        {"rope_scaling": None},
        {"rope_scaling": {"rope_type": "default"}},
        {"hidden_act": "silu"},
        {"attention_bias": False},
    ],
)
def test_what_changes_nothing_is_taken(entry):
    assert read_config({**SMALL, **entry}) == read_config(SMALL)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba', which is not supported; nearest: "),
        ({"model_type": None}, "model_type None"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_scaling 'spiral': supported are"),
        ({"rope_scaling": {"type": "linear"}}, "no 'factor', which llama needs"),
        ({"hidden_act": "relu6"}, "hidden_act 'relu6': supported are silu"),
        ({"vocab_size": "many"}, "an entry of the wrong type"),
        ({"vocab_size": None}, "an entry of the wrong type"),
        ({"eos_token_id": "two"}, "an entry of the wrong type"),
        ({"num_key_value_heads": 4}, "9 query heads and 4 KV heads"),
        ({"num_hidden_layers": 0}, "layers is 0"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(entry, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read_config({**SMALL, **entry})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hidden_size", "num_attention_heads", "rms_norm_eps"])
def test_a_missing_entry_is_named(name):
    with pytest.raises(ConfigError, match=f"no '{name}', which llama needs"):
        read_config({key: value for key, value in SMALL.items() if key != name})


def test_build_and_axis_sizes():
    assert isinstance(build(ODD), Decoder)
    assert axis_sizes(ODD, slots=6) == {
        "batch": 6,
        "embed": 36,
        "heads": 3,
        "kv_heads": 1,
        "head_dim": 8,
        "mlp": 60,
        "vocab": 97,
        "residual": 36,
        "length": 0,
    }
