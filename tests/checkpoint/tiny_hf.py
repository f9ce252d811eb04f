"""A tiny llama model as a Hugging Face directory, written by the safetensors library."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

V, D, F, L, N, K, H = 48, 32, 40, 2, 4, 2, 8

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": N,
    "num_key_value_heads": K,
    "head_dim": H,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "dtype": "bfloat16",
}

TEXTS = {
    "tokenizer.json": "{}",
    "tokenizer_config.json": "{}",
    "generation_config.json": '{"eos_token_id": 2}',
    "chat_template.jinja": "{{ messages }}",
    "vocab.txt": "a\n",
    "LICENSE": "MIT",
    "1_Pooling/config.json": "{}",
}
DANGEROUS = {"modeling_llama.py": "raise SystemExit", "pytorch_model.bin": "\x80", "x.pkl": "\x80"}


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the model, by Hugging Face's name."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D)}
    for i in range(L):
        at = f"model.layers.{i}."
        found |= {
            f"{at}input_layernorm.weight": (D,),
            f"{at}self_attn.q_proj.weight": (N * H, D),
            f"{at}self_attn.k_proj.weight": (K * H, D),
            f"{at}self_attn.v_proj.weight": (K * H, D),
            f"{at}self_attn.o_proj.weight": (D, N * H),
            f"{at}post_attention_layernorm.weight": (D,),
            f"{at}mlp.gate_proj.weight": (F, D),
            f"{at}mlp.up_proj.weight": (F, D),
            f"{at}mlp.down_proj.weight": (D, F),
        }
    return found | {"model.norm.weight": (D,), "lm_head.weight": (V, D)}


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Random values: bfloat16 as published, but for the norms, which are float32."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape).astype(
            np.float32 if "norm" in name else ml_dtypes.bfloat16
        )
        for name, shape in shapes().items()
    }


def write_texts(path: Path, config: Mapping[str, Any] = CONFIG) -> None:
    """config.json, the tokenizer's files, and files that are never to be copied."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    for name, text in {**TEXTS, **DANGEROUS}.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text, "latin-1")


def write(
    path: Path,
    values: Mapping[str, np.ndarray] | None = None,
    config: Mapping[str, Any] = CONFIG,
    shards: int = 1,
) -> Path:
    """The directory; `shards` files and their index when more than one."""
    write_texts(path, config)
    values = tensors() if values is None else values
    if shards == 1:
        save_file(dict(values), path / "model.safetensors", {"format": "pt"})
        return path
    index = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(values.items())[number::shards])
        save_file(part, path / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (path / "model.safetensors.index.json").write_text(text)
    return path
