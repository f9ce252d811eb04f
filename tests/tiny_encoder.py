"""Tiny encoders with random weights, their reference in numpy, and as a directory on disk.

`ODD` has nothing that a model axis of 4 divides; `EVEN` has what it does, and RoBERTa's positions.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tpuinfer.model_config import EncoderConfig, Pooling
from tpuinfer.models import bert
from tpuinfer.models.blueprint import weights

ODD = EncoderConfig(
    family="bert", vocab=97, embed=24, mlp=42, layers=3, heads=3, positions=40, norm_eps=1e-6
)

EVEN = EncoderConfig(
    family="bert",
    vocab=64,
    embed=32,
    mlp=64,
    layers=2,
    heads=8,
    positions=42,
    first_position=2,
    types=1,
    norm_eps=1e-6,
    activation="gelu_tanh",
)

Weights = dict[str, NDArray[np.float32]]
Array = NDArray[np.float64]

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_PIECES = [*_LETTERS, *(f"##{letter}" for letter in _LETTERS), ":"]
VOCABULARY = {piece: index for index, piece in enumerate([*_SPECIAL, *_PIECES])}


def random_weights(config: EncoderConfig, seed: int = 0) -> Weights:
    """Weights by the blueprint's names; large enough that attention is far from even."""
    random = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        normal = random.standard_normal(shape).astype(np.float32)
        if "norm" in name:
            return np.float32(name.endswith("weight")) + 0.1 * normal
        return normal * np.float32(0.3 if len(shape) < 2 else 2 / math.sqrt(shape[-1]))

    return {name: draw(name, w.shape) for name, w in weights(bert.Bert(config)).items()}


def hidden(config: EncoderConfig, params: Weights, ids: list[int]) -> Array:
    """The last layer's output [T, D] for one text, float64 (arXiv:1810.04805)."""
    p = {name: value.astype(np.float64) for name, value in params.items()}
    first = config.first_position
    x = p["embed_tokens.weight"][ids] + p["embed_types.weight"][0]
    x = _norm(
        x + p["embed_positions.weight"][first : first + len(ids)], p, "embed_norm", config.norm_eps
    )
    for index in range(config.layers):
        at = f"layers.{index}."
        q, k, v = (
            np.einsum("td,nhd->nth", x, p[f"{at}self_attn.{one}_proj.weight"])
            + p[f"{at}self_attn.{one}_proj.bias"][:, None]
            for one in "qkv"
        )
        scores = np.einsum("nth,nsh->nts", q, k) / math.sqrt(config.head_dim)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        seen = np.einsum("nts,nsh->tnh", scores / scores.sum(-1, keepdims=True), v)
        out = np.einsum("tnh,dnh->td", seen, p[f"{at}self_attn.o_proj.weight"])
        out += p[f"{at}self_attn.o_proj.bias"]
        x = _norm(x + out, p, f"{at}attention_norm", config.norm_eps)
        up = x @ p[f"{at}mlp.up_proj.weight"].T + p[f"{at}mlp.up_proj.bias"]
        down = _gelu(up, config.activation) @ p[f"{at}mlp.down_proj.weight"].T
        x = _norm(x + down + p[f"{at}mlp.down_proj.bias"], p, f"{at}output_norm", config.norm_eps)
    return x


def vector(config: EncoderConfig, params: Weights, ids: list[int], pooling: Pooling) -> Array:
    """What a text of these ids becomes: [D] float64."""
    x = hidden(config, params, ids)
    pooled = {
        "cls": x[0],
        "last": x[-1],
        "mean": x.mean(0),
        "mean_sqrt_len": x.sum(0) / math.sqrt(len(ids)),
        "weighted_mean": np.average(x, 0, weights=1 + np.arange(len(ids))),
    }[pooling.mode]
    return pooled / np.linalg.norm(pooled) if pooling.normalise else pooled


def tokenizer() -> Tokenizer:
    """WordPiece over lower-case letters, with [CLS] and [SEP] around each text."""
    made = Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=False)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(_SPECIAL)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", VOCABULARY["[CLS]"]), ("[SEP]", VOCABULARY["[SEP]"])],
    )
    return made


def write_directory(path: Path, config: EncoderConfig = ODD, **files: Any) -> Path:
    """A directory as sentence-transformers publishes it; mean pooling, normalised.

    Args:
      files: contents of JSON files by name without the suffix; None leaves one out.
    """
    names = bert.hf_names(config)
    tensors = {
        names[name][0].tensor: value.reshape(names[name][0].shape)
        for name, value in random_weights(config).items()
    }
    tensors["pooler.dense.weight"] = np.zeros((config.embed, config.embed), np.float32)
    (path / "1_Pooling").mkdir(parents=True)
    save_file(tensors, path / "model.safetensors")
    tokenizer().save(str(path / "tokenizer.json"))
    step = "sentence_transformers.models."
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    contents = {
        "config": _published_config(config),
        "tokenizer_config": {"cls_token": "[CLS]", "sep_token": "[SEP]"},
        "modules": [{"type": step + kind, "path": folder} for kind, folder in kinds.items()],
        "1_Pooling/config": {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True},
        "sentence_bert_config": {"max_seq_length": 32, "do_lower_case": False},
        **files,
    }
    for name, content in contents.items():
        if content is not None:
            (path / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return path


def _published_config(config: EncoderConfig) -> dict[str, Any]:
    return {
        "model_type": "roberta" if config.first_position else "bert",
        "pad_token_id": max(config.first_position - 1, 0),
        "vocab_size": config.vocab,
        "hidden_size": config.embed,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.positions,
        "type_vocab_size": config.types,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": "gelu_new" if config.activation == "gelu_tanh" else config.activation,
    }


def _norm(x: Array, p: dict[str, Array], name: str, eps: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return centred / scale * p[f"{name}.weight"] + p[f"{name}.bias"]


def _gelu(x: Array, kind: str) -> Array:
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
