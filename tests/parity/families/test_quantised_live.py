"""transformers, given what our codes stand for, answers as we do with the codes.

The checkpoint is quantised as it is converted, and written back as Hugging Face publishes it.
"""

import pytest
from family_golden import row_errors
from family_ours import CHUNK, LENGTH, Model
from family_quantised import checkpoint_of, config_of

pytest.importorskip("torch", reason="needs the parity extra (torch)")
pytest.importorskip("transformers", reason="needs the parity extra (transformers)")

import torch
from family_torch import logits
from transformers import AutoModelForCausalLM

from tpuinfer.checkpoint.convert import convert
from tpuinfer.checkpoint.export import export
from tpuinfer.checkpoint.load import stored_schemes

pytestmark = pytest.mark.parity

LIMIT = 1e-3

TABLES = {
    "llama-tied": "int4:12,layers.*.mlp.down_proj=int4z:26,layers.1=fp8",
    "mixtral-window": "int8,layers.1.mlp.experts=int4:12",
    "gemma3-text": "fp8,layers.*.mlp=int8",
}


@pytest.mark.parametrize("name", TABLES)
def test_logits_are_those_of_transformers_with_the_same_weights(name, tmp_path):
    with checkpoint_of(name) as checkpoint:
        ours = convert(checkpoint, tmp_path / "quantised", "float32", weights=TABLES[name])
    schemes = stored_schemes(ours)
    assert len({scheme.word for scheme in schemes.values()}) > 1
    model = Model(ours, "1", schemes)
    published = export(ours, tmp_path / "published", "float32")
    theirs = AutoModelForCausalLM.from_pretrained(
        published, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    wanted = logits(theirs, model.tokens, stepwise=False)
    assert row_errors(model.run(LENGTH, CHUNK), wanted).max() < LIMIT
    assert config_of(name).layers == model.plan.config.layers
