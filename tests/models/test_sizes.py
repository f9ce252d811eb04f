"""Sizes that are known by name are those of the published models."""

import math

import pytest

from tpuinfer.checkpoint import catalogue
from tpuinfer.errors import ConfigError
from tpuinfer.models import registry, sizes
from tpuinfer.models.blueprint import weights

PARAMETERS = {
    "gemma-2-27b": 27_227_128_320,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-12b": 11_766_034_176,
    "gemma-3-1b": 999_885_952,
    "gemma-3-270m": 268_098_176,
    "gemma-3-27b": 27_009_346_304,
    "gemma-3-4b": 3_880_263_168,
    "gpt-oss-120b": 116_829_156_672,
    "gpt-oss-20b": 20_914_757_184,
    "granite-3.3-8b": 8_170_864_640,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    "mistral-small-24b": 23_572_403_200,
    "mixtral-8x22b": 140_620_634_112,
    "mixtral-8x7b": 46_702_792_704,
    "olmo-2-32b": 32_234_279_936,
    "olmo-2-7b": 7_298_617_344,
    "phi-4": 14_659_507_200,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-14b": 14_768_307_200,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-32b": 32_762_123_264,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "smollm2-135m": 134_515_008,
    "smollm3-3b": 3_075_098_624,
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


def test_the_hub_calls_no_two_of_them_the_same():
    paths = {name: one["_name_or_path"] for name, one in sizes.sizes().items()}
    assert all(path.count("/") == 1 for path in paths.values())
    assert {sizes.by_path(path): path for path in paths.values()} == paths


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("qwen/qwen3-30b-a3b", "qwen3-30b-a3b"),
        ("gemma-3-27b-it", "gemma-3-27b"),
        ("meta-llama/Llama-3.1-8B", None),
        ("llama-3.1-8b", None),
    ],
)
def test_the_hub_names_a_model_too(path, name):
    assert sizes.by_path(path) == name
    if name:
        assert sizes.find(path) == sizes.find(name)


def test_every_decoder_of_the_checkpoint_catalogue_has_a_size():
    encoders = {"all-minilm-l6-v2"}
    assert encoders < catalogue.entries().keys()
    assert all(sizes.find(name) for name in catalogue.entries().keys() - encoders)


def test_the_nearest_may_be_a_name_of_the_hub():
    with pytest.raises(ConfigError, match=r"nearest: meta-llama/Llama-3\.3-70B-Instruct$"):
        sizes.find("meta-llama/Llama-3-70B-Instruct")


def test_a_caller_says_what_its_user_calls_it():
    with pytest.raises(ConfigError, match=r"^model is 'gpt-oss': .* nearest: gpt-oss-20b$"):
        sizes.find("gpt-oss", said="model")


def test_a_caller_cannot_change_the_catalogue():
    sizes.find("smollm2-135m")["vocab_size"] = 1
    assert sizes.find("smollm2-135m")["vocab_size"] == 49152
