"""Sizes that are known by name are those of the published models."""

import math

import pytest

from tpuinfer.errors import ConfigError
from tpuinfer.models import registry, sizes
from tpuinfer.models.blueprint import weights

PARAMETERS = {
    "gemma-3-1b": 999_885_952,
    "gpt-oss-20b": 20_914_757_184,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-0.6b": 596_049_920,
    "qwen3-30b-a3b": 30_532_122_624,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_count_is_that_of_the_model_card(name):
    model = registry.build(registry.read_config(sizes.find(name)))
    assert sum(math.prod(one.shape) for one in weights(model).values()) == PARAMETERS[name]


def test_every_size_is_checked_here():
    assert sizes.sizes().keys() == PARAMETERS.keys()


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ConfigError, match=r"'llama-3-8b': one of .* nearest: llama-3\.1-8b"):
        sizes.find("llama-3-8b")


def test_a_caller_cannot_change_the_catalogue():
    sizes.find("smollm2-135m")["vocab_size"] = 1
    assert sizes.find("smollm2-135m")["vocab_size"] == 49152
