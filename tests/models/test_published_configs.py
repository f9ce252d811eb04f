"""Well-known models as they were published: what is read of their config.json, by hand.

published_configs.json holds entries of config.json files, dated as they are: defaults left out, odd
ones left in. `parameters` counts all of the checkpoint, from the model card or the metadata of its
safetensors; `confirmed` says that the entries that shape the model were compared with a public copy
of the file. The others are as its card and paper have them, and the count bears them out.
"""

import copy
import json
import math
from pathlib import Path

import pytest

from tpuinfer.errors import ConfigError
from tpuinfer.model_config import Experts, Rope
from tpuinfer.models.blueprint import weights
from tpuinfer.models.registry import build, families, read_config

PUBLISHED = json.loads(Path(__file__).with_name("published_configs.json").read_text("utf-8"))
EVERY = pytest.mark.parametrize("name", PUBLISHED)

SIGLIP = 416_866_032
"""Parameters of Gemma 3's vision tower, whose width is 1152."""

UNREAD = {
    "google/gemma-3-4b-it": SIGLIP + 1152 * 2560 + 1152,
    "google/gemma-3-27b-it": SIGLIP + 1152 * 5376 + 1152,
    "sentence-transformers/all-MiniLM-L6-v2": 384 * 384 + 384,
    "BAAI/bge-small-en-v1.5": 384 * 384 + 384,
    "intfloat/multilingual-e5-small": 384 * 384 + 384,
}
"""Parameters that are not part of the model: towers and their projectors, BERT's pooler."""


def hf(name):
    return PUBLISHED[name]["config"]


def llama3(factor):
    return Rope(500_000.0, None, "llama3", factor, 8192, low=1.0, high=4.0)


def local(count, window, period):
    """Windows of all layers but the last of each period."""
    return tuple(window if (layer + 1) % period else 0 for layer in range(count))


GEMMA2 = {"score_cap": 50.0, "logit_cap": 30.0, "tie_embeddings": True, "rope": Rope(1e4)}
GEMMA2 |= {"context": 8192, "activation": "gelu_tanh", "bos_id": 2}
GEMMA3 = {"score_cap": None, "logit_cap": None, "tie_embeddings": True, "local_rope": Rope(1e4)}
GEMMA3 |= {"activation": "gelu_tanh", "bos_id": 2, "norm_eps": 1e-6}
LONGER = Rope(1e6, None, "linear", 8.0)
QWEN = {"bos_id": 151643, "eos_ids": (151645,), "rope": Rope(1e6), "windows": ()}
OSS = {"rope": Rope(150_000.0, None, "yarn", 32.0, 4096, low=1.0, high=32.0, truncate=False)}
OSS |= {"context": 131_072, "eos_ids": (200_002,), "bos_id": None, "mlp_bias": True}

FACTS = {
    "meta-llama/Llama-2-7b-hf": {"rope": Rope(1e4), "context": 4096, "eos_ids": (2,)},
    "meta-llama/Llama-3.1-8B-Instruct": {
        "rope": llama3(8.0),
        "context": 131_072,
        "eos_ids": (128_001, 128_008, 128_009),
        "tie_embeddings": False,
    },
    "meta-llama/Llama-3.2-1B-Instruct": {"rope": llama3(32.0), "tie_embeddings": True},
    "HuggingFaceTB/SmolLM2-135M-Instruct": {"rope": Rope(1e5), "context": 8192, "bos_id": 1},
    "mistralai/Mistral-7B-v0.1": {"windows": (4096,) * 32, "rope": Rope(1e4), "context": 32_768},
    "mistralai/Mistral-7B-Instruct-v0.3": {"windows": (), "rope": Rope(1e6), "vocab": 32_768},
    "mistralai/Mistral-Nemo-Instruct-2407": {"windows": (), "head_dim": 128, "context": 131_072},
    "mistralai/Mixtral-8x7B-Instruct-v0.1": {
        "windows": (),
        "rope": Rope(1e6),
        "experts": Experts(count=8, active=2, mlp=14_336, normalise=True),
    },
    "Qwen/Qwen2.5-0.5B-Instruct": QWEN
    | {"tie_embeddings": True, "qkv_bias": True, "o_bias": False, "context": 32_768},
    "Qwen/Qwen2.5-7B-Instruct": QWEN | {"tie_embeddings": False, "qkv_bias": True},
    "Qwen/Qwen3-0.6B": QWEN | {"tie_embeddings": True, "qkv_bias": False, "head_dim": 128},
    "Qwen/Qwen3-8B": QWEN | {"tie_embeddings": False, "qkv_bias": False, "context": 40_960},
    "Qwen/Qwen3-8B-FP8": QWEN | {"tie_embeddings": False, "context": 40_960},
    "Qwen/Qwen3-30B-A3B-Instruct-2507": {
        "rope": Rope(1e7),
        "context": 262_144,
        "windows": (),
        "experts": Experts(count=128, active=8, mlp=768, normalise=True),
    },
    "google/gemma-2-2b-it": GEMMA2
    | {"eos_ids": (1, 107), "windows": (4096, 0) * 13, "query_scale": 1 / 16},
    "google/gemma-2-9b-it": GEMMA2 | {"eos_ids": (1,), "windows": (4096, 0) * 21},
    "google/gemma-2-27b-it": GEMMA2 | {"query_scale": 1 / 12, "embed_scale": math.sqrt(4608)},
    "google/gemma-3-270m-it": GEMMA3
    | {"windows": local(18, 512, 6), "rope": Rope(1e6), "context": 32_768, "eos_ids": (1,)},
    "google/gemma-3-1b-it": GEMMA3
    | {"windows": local(26, 512, 6), "rope": Rope(1e6), "context": 32_768, "eos_ids": (1, 106)},
    "google/gemma-3-4b-it": GEMMA3
    | {"windows": local(34, 1024, 6), "rope": LONGER, "context": 131_072, "eos_ids": (1, 106)},
    "google/gemma-3-27b-it": GEMMA3
    | {"windows": local(62, 1024, 6), "rope": LONGER, "query_scale": 1 / math.sqrt(168)},
    "microsoft/Phi-3-mini-4k-instruct": {
        "windows": (2047,) * 32,
        "rope": Rope(1e4),
        "context": 4096,
        "eos_ids": (32_000,),
    },
    "microsoft/Phi-3.5-mini-instruct": {"windows": (262_144,) * 32, "context": 131_072},
    "microsoft/phi-4": {
        "windows": (),
        "rope": Rope(250_000.0),
        "context": 16_384,
        "eos_ids": (100_265,),
    },
    "microsoft/Phi-4-mini-instruct": {"tie_embeddings": True, "eos_ids": (199_999,)},
    "HuggingFaceTB/SmolLM3-3B": {
        "unrotated": tuple(range(3, 36, 4)),
        "rope": Rope(5e6),
        "context": 65_536,
        "tie_embeddings": True,
        "eos_ids": (128_012,),
    },
    "HuggingFaceTB/SmolLM3-3B-Base": {"unrotated": tuple(range(3, 36, 4)), "bos_id": None},
    "allenai/OLMo-2-0425-1B-Instruct": {"rope": Rope(5e5), "norm_eps": 1e-6, "bos_id": None},
    "allenai/OLMo-2-1124-7B-Instruct": {"rope": Rope(5e5), "context": 4096, "eos_ids": (100_257,)},
    "ibm-granite/granite-3.3-2b-instruct": {
        "query_scale": 1 / 64,
        "embed_scale": 12.0,
        "residual_scale": 0.22,
        "logit_scale": 1 / 8,
        "rope": Rope(1e7),
    },
    "ibm-granite/granite-3.3-8b-instruct": {"query_scale": 1 / 128, "logit_scale": 1 / 16},
    "openai/gpt-oss-20b": OSS | {"windows": (128, 0) * 12, "experts": Experts(32, 4, 2880)},
    "openai/gpt-oss-120b": OSS | {"windows": (128, 0) * 18, "experts": Experts(128, 4, 2880)},
    "sentence-transformers/all-MiniLM-L6-v2": {"context": 512, "layers": 6, "activation": "gelu"},
    "BAAI/bge-small-en-v1.5": {"context": 512, "layers": 12, "norm_eps": 1e-12},
    "intfloat/multilingual-e5-small": {"context": 512, "first_position": 0, "vocab": 250_037},
}


@EVERY
def test_the_count_is_that_of_the_whole_checkpoint(name):
    found = weights(build(read_config(hf(name)))).values()
    read = sum(math.prod(weight.shape) for weight in found)
    assert read + UNREAD.get(name, 0) == PUBLISHED[name]["parameters"]


@EVERY
def test_the_numbers_are_those_of_the_model_card(name):
    config = read_config(hf(name))
    assert {entry: getattr(config, entry) for entry in FACTS[name]} == FACTS[name]


def test_every_model_that_a_family_names_is_here():
    named = {name for family in families().values() for name in family.examples}
    assert named <= PUBLISHED.keys()
    assert FACTS.keys() == PUBLISHED.keys()


@pytest.mark.parametrize(
    ("name", "turned"),
    [("microsoft/Phi-3.5-mini-instruct", None), ("microsoft/Phi-4-mini-instruct", 96)],
)
def test_longrope_divides_by_what_is_published(name, turned):
    stated = hf(name)["rope_scaling"]
    assert read_config(hf(name)).rope == Rope(
        1e4,
        turned,
        "longrope",
        32.0,
        4096,
        short=tuple(stated["short_factor"]),
        long=tuple(stated["long_factor"]),
    )


def test_stretched_as_the_model_card_of_qwen_says():
    stretched = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    config = read_config(hf("Qwen/Qwen3-8B") | {"rope_scaling": stretched})
    assert config.rope == Rope(1e6, None, "yarn", 4.0, 32_768, low=1.0, high=32.0)
    assert config.context == 131_072


@pytest.mark.parametrize("name", ["google/gemma-2-2b-it", "google/gemma-3-1b-it"])
def test_an_activation_of_null_is_gemmas_own(name):
    assert read_config(hf(name) | {"hidden_activation": None}) == read_config(hf(name))


@pytest.mark.parametrize("name", ["openai/gpt-oss-20b", "google/gemma-3-1b-it", "Qwen/Qwen3-8B"])
def test_a_base_of_null_is_refused_unless_it_stands_elsewhere(name):
    with pytest.raises(ConfigError, match="wrong type: rope_theta is null"):
        read_config(hf(name) | {"rope_theta": None})


def test_a_base_of_null_beside_the_newer_entry():
    newer = {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    assert read_config(hf("Qwen/Qwen3-8B") | newer) == read_config(hf("Qwen/Qwen3-8B"))


@pytest.mark.parity
@EVERY
def test_transformers_reads_the_same(name):
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    entries = copy.deepcopy(hf(name))
    for other in ("auto_map", "quantization_config"):
        entries.pop(other, None)
    config_class = transformers.CONFIG_MAPPING[entries.pop("model_type")]
    assert read_config(config_class(**entries).to_dict()) == read_config(hf(name))
