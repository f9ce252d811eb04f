"""Encoders as transformers runs them: float32, eager, texts of all lengths in one padded batch.

Pooling and normalisation follow sentence-transformers' rules, written here in torch.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder_cases import TEXTS, Case, draw, tokens
from encoder_golden import Golden
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import CONFIG_MAPPING, AutoModel, AutoTokenizer

_VERSIONS = {"torch": torch.__version__, "transformers": version("transformers")}


def publish(case: Case, folder: Path) -> Golden:
    """Let transformers save the case's model, give every tensor its values, and run it."""
    config = CONFIG_MAPPING[case.model_type](**case.config)
    AutoModel.from_config(config, dtype=torch.float32).save_pretrained(folder)
    path = folder / "model.safetensors"
    with safe_open(path, "numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    save_file({name: draw(name, shape) for name, shape in shapes.items()}, path, {"format": "pt"})
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    saved = json.loads((folder / "config.json").read_text("utf-8"))
    del saved["transformers_version"]
    ids = tokens(config.vocab_size)
    padded = torch.full((len(ids), max(map(len, ids))), config.pad_token_id)
    for row, one in enumerate(ids):
        padded[row, : len(one)] = torch.tensor(one)
    mask = (torch.arange(padded.shape[1])[None] < torch.tensor([*map(len, ids)])[:, None]).long()
    vectors = embed(model, padded, mask, case.pooling, case.normalise)
    return Golden(saved, dict(sorted(shapes.items())), _VERSIONS, vectors)


def minilm(folder: Path, texts: tuple[str, ...] | list[str] = TEXTS) -> Golden:
    """The real encoder's vectors, in batches of 8, texts cut at 256 tokens."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts = []
    for start in range(0, len(texts), 8):
        batch = tokenizer(
            list(texts[start : start + 8]),
            padding=True,
            truncation=True,
            max_length=256,
            return_tensors="pt",
        )
        parts.append(embed(model, batch.input_ids, batch.attention_mask, "mean_tokens", True))
    return Golden({}, {}, _VERSIONS, np.concatenate(parts))


@torch.no_grad()
def embed(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, pooling: str, normalise: bool
) -> NDArray[np.float32]:
    """[R, T] ids and mask -> [R, D]."""
    x = model.eval()(input_ids=ids, attention_mask=mask).last_hidden_state
    real = mask[..., None].to(x.dtype)
    count = torch.clamp(real.sum(1), min=1e-9)
    if pooling == "cls_token":
        out = x[:, 0]
    elif pooling == "weightedmean_tokens":
        shares = real * torch.arange(1, x.shape[1] + 1)[None, :, None]
        out = (x * shares).sum(1) / torch.clamp(shares.sum(1), min=1e-9)
    elif pooling == "mean_sqrt_len_tokens":
        out = (x * real).sum(1) / torch.sqrt(count)
    else:
        out = (x * real).sum(1) / count
    return (torch.nn.functional.normalize(out, p=2, dim=1) if normalise else out).numpy()
