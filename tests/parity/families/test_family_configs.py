"""No config.json, however wrong, gets more out of a reader than numbers or one line of refusal."""

import json

import family_golden
import pytest
from all_cases import CASES

from tpuinfer.errors import TpuinferError
from tpuinfer.models import registry

ROPES = [
    {"rope_type": []},
    {"rope_type": "linear"},
    {"rope_type": "linear", "factor": 0},
    {"rope_type": "dynamic", "factor": 1e30},
    {"rope_type": "yarn", "factor": 0, "beta_fast": -1},
    {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 1},
    {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]},
    {"rope_type": "longrope", "original_max_position_embeddings": 0},
    {"rope_type": "default", "partial_rotary_factor": -1},
    {"rope_type": "default", "partial_rotary_factor": 3},
    {"rope_type": "default", "attn_factor": 2},
    {"rope_theta": 0},
]
WRONG = [
    *(None, -1, 0, 1.5, 10**6, 10**400, float("inf"), float("nan"), True),
    *("x", "", [], [None], [[]], {}, {"a": 1}, [1] * 3),
    *ROPES,
]
CONFIGS = {}
for _name in CASES:
    _config = family_golden.load(_name).config
    CONFIGS.setdefault(_config["model_type"], {"rope_scaling": None} | _config)


def outcome(config):
    """What a reader makes of a config: None for numbers, a string for a refusal."""
    try:
        registry.read_config(config)
    except TpuinferError as error:
        return str(error)
    return None


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_wrong_entry_is_refused_in_one_line_or_means_something(model_type):
    config, odd = CONFIGS[model_type], []
    for name in config:
        for value in WRONG:
            try:
                said = outcome({**config, name: value}) or ""
            except Exception as error:
                said = f"\n{type(error).__name__}: {error}"
            if "\n" in said or len(said) > 700:
                odd.append(f"{name} = {str(value)[:60]}: {said[:90]}")
    assert odd == []


@pytest.mark.parametrize("name", ["rms_norm_eps", "vocab_size", "num_hidden_layers"])
@pytest.mark.parametrize("value", ["Infinity", "NaN", "-5", "0"])
def test_numbers_that_mean_nothing_are_refused(name, value):
    text = json.dumps(CONFIGS["llama"] | {name: "HERE"}).replace('"HERE"', value)
    with pytest.raises(TpuinferError):
        registry.read_config(json.loads(text))


def test_rotary_entries_that_are_not_known_are_refused():
    rope = {"rope_type": "yarn", "factor": 4.0, "attn_factor": 2.0}
    config = CONFIGS["llama"] | {"rope_parameters": rope}
    with pytest.raises(TpuinferError, match="'attn_factor' within its rotary positions"):
        registry.read_config(config)


def test_a_part_of_each_head_turns_in_families_that_know_it_only():
    half = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}
    for model_type, config in CONFIGS.items():
        if model_type in ("phi3", "gemma3", "gemma3_text"):
            continue
        with pytest.raises(TpuinferError, match=r"partial_rotary_factor 0\.5: not supported"):
            registry.read_config(config | {"rope_parameters": half, "rope_scaling": None})
