"""GGUF files as transformers reads them, and as tpuinfer does: the same logits.

transformers undoes what llama.cpp's conversion does to tensors by code of its own. It ignores most
of the metadata, so its models are built from our config.json.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint import arch_gguf
from checkpoint.arch_gguf import CASES, Case
from family_case import CONTEXT, LENGTH, tokens

from tpuinfer.checkpoint import load
from tpuinfer.checkpoint.convert import convert
from tpuinfer.checkpoint.sources import open_source
from tpuinfer.models import registry

torch = pytest.importorskip("torch", reason="needs the parity extra (torch)")
pytest.importorskip("transformers", reason="needs the parity extra (transformers)")

pytestmark = pytest.mark.parity

READ_THERE = {
    *("llama", "llama biased", "llama 3.1", "llama linear", "qwen2", "qwen2 yarn", "qwen3"),
    *("qwen3moe", "gemma2", "gemma3", "phi3"),
}
"""Cases that transformers reads; it has no Granite, OLMo 2 or SmolLM3, nor Mixtral as "llama", and
looks for GPT-OSS's experts under names that llama.cpp does not write."""

LIMIT = 1e-4


def read_there(path: Path, config: dict[str, Any]) -> Any:
    """A model as transformers reads it from a file."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[config["model_type"]](**config, pad_token_id=None),
        dtype=torch.float32,
        attn_implementation="eager",
    )
    found = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    result = model.load_state_dict(found, strict=False)
    assert result.unexpected_keys == []
    assert result.missing_keys == (["lm_head.weight"] if config["tie_word_embeddings"] else [])
    model.tie_weights()
    return model.eval()


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in READ_THERE], ids=lambda case: case.name
)
def test_tensors_are_those_of_transformers(case: Case, tmp_path: Path) -> None:
    path = arch_gguf.write_case(tmp_path / "model.gguf", case, arch_gguf.draw(case.hf))
    source = open_source(path, "float32")
    config = registry.read_config(source.config)
    named = dict(read_there(path, dict(source.config)).named_parameters())
    for name, parts in registry.family_of(config).hf_names(config).items():
        if (part := parts[0]).tensor in named:
            theirs = named[part.tensor].detach().numpy()
            cut = theirs if part.rows is None else theirs[slice(*part.rows)]
            ours = source.params[name].read()
            np.testing.assert_array_equal(ours.reshape(cut.shape), cut, err_msg=name)
        else:
            assert ".mlp.experts." in name


@pytest.mark.parametrize("name", ["llama 3.1", "qwen2 yarn", "qwen3moe", "gemma3", "phi3"])
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    from family_ours import Model
    from family_torch import logits

    case = next(case for case in CASES if case.name == name)
    path = arch_gguf.write_case(tmp_path / "model.gguf", case, arch_gguf.draw(case.hf))
    checkpoint = convert(path, tmp_path / "out", "float32")
    theirs = read_there(path, load.read_config(checkpoint))
    wanted = logits(theirs, tokens(case.hf["vocab_size"]), stepwise=False)
    found = Model(checkpoint, "1").run(LENGTH, CONTEXT)
    far = np.abs(found - wanted).max(axis=-1) / np.abs(wanted).max(axis=-1)
    assert far.max() < LIMIT
