"""A case as transformers runs it: float32, eager attention, on the CPU."""

import copy
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from family_case import Case, tokens
from family_golden import Golden, draw
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache

_NOT_OF_THE_MODEL = ("transformers_version",)


def publish(case: Case, folder: Path) -> Golden:
    """Let transformers save the case's model, give every saved tensor its values, and run it.

    Returns:
      What transformers saved and answers.
    """
    config = CONFIG_MAPPING[case.model_type](**copy.deepcopy(dict(case.config)))
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.save_pretrained(folder, max_shard_size=case.shard_size)
    files = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        drawn = {name: draw(name, shape, case.norm_centre) for name, shape in shapes.items()}
        save_file(drawn, path, metadata={"format": "pt"})
        files[path.name] = dict(sorted(shapes.items()))
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    saved = config_json(folder)
    return Golden(
        entries=dict(case.config),
        config={key: value for key, value in saved.items() if key not in _NOT_OF_THE_MODEL},
        files=files,
        versions={"torch": torch.__version__, "transformers": version("transformers")},
        logits=logits(model, tokens(model.config.get_text_config().vocab_size), case.stepwise),
    )


def config_json(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text("utf-8"))


@torch.no_grad()
def logits(model: Any, ids: list[int], stepwise: bool) -> NDArray[np.float32]:
    """[len(ids), V] of the whole text at once, or token by token over a cache."""
    if not stepwise:
        return model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    cache, rows = DynamicCache(config=model.config), []
    for token in ids:
        out = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
        rows.append(out.logits[0].numpy())
    return np.concatenate(rows)
