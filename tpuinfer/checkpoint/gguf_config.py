"""Metadata of a GGUF file -> the config.json that Hugging Face would write for the model.

One reader then serves all formats: the family's own. What a key that is missing means follows
llama.cpp, which defines the format: load_hparams in src/llama-model.cpp and load_arch_hparams in
src/models. All that does not fit is shown together.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tpuinfer.checkpoint import layout
from tpuinfer.checkpoint.gguf import GgufFile
from tpuinfer.checkpoint.gguf_keys import Keys
from tpuinfer.checkpoint.gguf_rope import read_rope
from tpuinfer.errors import CheckpointError

Entries = dict[str, Any]


@dataclass(frozen=True)
class Description:
    """What a file's metadata says.

    Attributes:
      architecture: general.architecture.
      config: config.json.
      tensors: those whose values are in `config`.
    """

    architecture: str
    config: Entries
    tensors: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Stated:
    """What an architecture's own reader reads from.

    Attributes:
      D: embed. L: layers. N: query heads. H: head dim. context: tokens.
      dims: how many dimensions of a head turn.
      rope: entries of config.json.
    """

    keys: Keys
    D: int
    L: int
    N: int
    H: int
    context: int
    dims: int
    rope: Entries


def describe(file: GgufFile, dtype: str) -> Description:
    """config.json of a file, whose parameters will be stored as `dtype`.

    Raises:
      CheckpointError: an architecture or a feature that is not supported, or a key that is missing,
        wrong or unknown; all of them in one message.
    """
    architecture = _architecture(file)
    model_type, own = ARCHITECTURES[architecture]
    keys = Keys(file.metadata, architecture)
    stated, tensors = _read_sizes(keys, file)
    config: Entries = {
        "model_type": model_type,
        "hidden_act": "silu",
        "vocab_size": _vocabulary(file, keys),
        "hidden_size": stated.D,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": stated.L,
        "num_attention_heads": stated.N,
        "num_key_value_heads": keys.integer("attention.head_count_kv", stated.N),
        "head_dim": stated.H,
        "max_position_embeddings": stated.context,
        **stated.rope,
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "torch_dtype": dtype,
        **_special_tokens(file.metadata),
        **own(stated),
    }
    if stated.dims != stated.H and "partial_rotary_factor" not in config:
        keys.refuse("rope.dimension_count", f"heads are {stated.H} wide, and all of them turns")
    elif stated.dims > stated.H or stated.dims % 2:
        keys.refuse("rope.dimension_count", f"it must be even, and at most {stated.H}")
    if stated.N % (kv_heads := config["num_key_value_heads"]):
        keys.problems.append(f"{stated.N} query heads are no multiple of {kv_heads} KV heads")
    tokens, rows = file.metadata.get("tokenizer.ggml.tokens"), config["vocab_size"]
    if isinstance(tokens, list) and len(tokens) > rows:
        keys.problems.append(f"{len(tokens)} tokens do not fit an embedding of {rows} rows")
    keys.check_unread()
    layout.raise_all(file.path, keys.problems)
    config["architectures"] = [_CLASSES[config["model_type"]]]
    return Description(architecture, config, tensors)


def _architecture(file: GgufFile) -> str:
    architecture = file.metadata.get("general.architecture")
    if isinstance(architecture, str) and architecture in ARCHITECTURES:
        return architecture
    near = difflib.get_close_matches(str(architecture), ARCHITECTURES, n=1, cutoff=0.0)[0]
    raise CheckpointError(
        f"{file.path}: architecture {str(architecture)[:60]!r} is not supported; nearest: {near}; "
        f"supported are {', '.join(ARCHITECTURES)}"
    )


def _read_sizes(keys: Keys, file: GgufFile) -> tuple[_Stated, set[str]]:
    """The numbers that others depend on, and the tensors that hold some of them."""
    D, N = keys.integer("embedding_length"), keys.integer("attention.head_count")
    H = keys.integer("attention.key_length", D // N or 1)
    L, context = keys.integer("block_count"), keys.integer("context_length")
    if H % 2:
        keys.problems.append(f"heads are {H} wide, which must be even")
    if keys.integer("attention.value_length", H) != H:
        keys.refuse("attention.value_length", f"keys are {H} wide, and values must be too")
    if len(file.tensors) < L:
        keys.refuse("block_count", f"the file has {len(file.tensors)} tensors")
        L = 1
    dims = keys.integer("rope.dimension_count", H)
    rope, tensors = read_rope(keys, file, context, dims)
    return _Stated(keys, D, L, N, H, context, dims, rope), tensors


def _vocabulary(file: GgufFile, keys: Keys) -> int:
    """Rows of the embedding; it may have more of them than there are tokens."""
    embedding = file.tensors.get("token_embd.weight")
    stated = keys.integer("vocab_size", embedding.shape[0] if embedding else None)
    return embedding.shape[0] if embedding else stated


def _special_tokens(metadata: Mapping[str, Any]) -> Entries:
    names = ("bos_token_id", "eos_token_id")
    found = {name: metadata.get(f"tokenizer.ggml.{name}") for name in names}
    return {name: token for name, token in found.items() if type(token) is int}


def _plain(stated: _Stated) -> Entries:
    return {}


def _llama(stated: _Stated) -> Entries:
    """Llama, Mistral (a window) or Mixtral (experts), which are one architecture to llama.cpp."""
    keys = stated.keys
    window = keys.integer("attention.sliding_window", 0, least=0)
    entries: Entries = {"sliding_window": window} if window else {}
    if keys.get("expert_count", 0):
        return entries | {
            "model_type": "mixtral",
            "num_local_experts": keys.integer("expert_count"),
            "num_experts_per_tok": keys.integer("expert_used_count"),
        }
    return entries | {"model_type": "mistral"} if window else {}


def _qwen3moe(stated: _Stated) -> Entries:
    """Without its key, the width of an expert is the layer's divided among the active ones."""
    keys = stated.keys
    active = keys.integer("expert_used_count")
    shared = keys.integer("feed_forward_length") // active
    return {
        "num_experts": keys.integer("expert_count"),
        "num_experts_per_tok": active,
        "moe_intermediate_size": keys.integer("expert_feed_forward_length", shared),
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _gpt_oss(stated: _Stated) -> Entries:
    """The published models keep the ends of YaRN's ramp as they are, which no key can say."""
    keys = stated.keys
    entries: Entries = {}
    if scaling := stated.rope.get("rope_scaling"):
        entries["rope_scaling"] = {**scaling, "truncate": False}
    return entries | {
        "intermediate_size": keys.integer("expert_feed_forward_length"),
        "num_local_experts": keys.integer("expert_count"),
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "sliding_window": keys.integer("attention.sliding_window"),
        "layer_types": _layer_types(stated, period=2),
        "attention_bias": True,
    }


def _gemma2(stated: _Stated) -> Entries:
    keys = stated.keys
    return _GEMMA | {
        "query_pre_attn_scalar": stated.D // stated.N if stated.L == 46 else stated.H,
        "attn_logit_softcapping": keys.real("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.real("final_logit_softcapping", 30.0),
        "sliding_window": keys.integer("attention.sliding_window", 4096),
        "layer_types": _layer_types(stated, period=2),
    }


def _gemma3(stated: _Stated) -> Entries:
    """Layers with a window turn by frequencies of their own, which are never scaled."""
    keys = stated.keys
    windows = "attention.sliding_window" in keys
    entries = _GEMMA | {
        "query_pre_attn_scalar": stated.D // stated.N if stated.L == 62 else stated.H,
        "sliding_window": keys.integer("attention.sliding_window", stated.context),
        "layer_types": _layer_types(stated, period=6 if windows else 1),
        "rope_local_base_freq": keys.real("rope.freq_base_swa", 10_000.0),
    }
    if "final_logit_softcapping" in keys:
        entries["final_logit_softcapping"] = keys.real("final_logit_softcapping")
    return entries


def _phi3(stated: _Stated) -> Entries:
    """Some turn only the first part of each head; a window of 0 is none."""
    keys = stated.keys
    entries: Entries = {
        "sliding_window": keys.integer("attention.sliding_window", 0, least=0) or None,
        "original_max_position_embeddings": keys.integer(
            "rope.scaling.original_context_length", stated.context
        ),
    }
    if stated.dims != stated.H:
        entries["partial_rotary_factor"] = stated.dims / stated.H
    return entries


def _smollm3(stated: _Stated) -> Entries:
    """Every fourth layer has no rotary positions; llama.cpp has that in its code, not in files."""
    return {"no_rope_layer_interval": 4, "use_sliding_window": False}


def _granite(stated: _Stated) -> Entries:
    """A scale of 0 is none; llama.cpp switches rotary positions off where rope is not finetuned."""
    keys = stated.keys
    if not keys.flag("rope.scaling.finetuned", True):
        keys.refuse("rope.scaling.finetuned", "Granite without rotary positions is not supported")
    return {
        "attention_multiplier": keys.factor("attention.scale", stated.H**-0.5),
        "embedding_multiplier": keys.factor("embedding_scale"),
        "residual_multiplier": keys.factor("residual_scale"),
        "logits_scaling": keys.real("logit_scale"),
    }


def _layer_types(stated: _Stated, period: int) -> list[str]:
    """Kinds of the layers: the last of each `period` looks at everything, the others at a window.

    A file may state the period, where 0 says that all have a window, or each layer's own kind.
    """
    name = "attention.sliding_window_pattern"
    pattern = stated.keys.get(name, period)
    if type(pattern) is int and pattern >= 0:
        windows = [pattern == 0 or i % pattern < pattern - 1 for i in range(stated.L)]
    elif isinstance(pattern, list) and len(pattern) == stated.L:
        windows = [bool(value) for value in pattern]
    else:
        stated.keys.refuse(name, f"it must be a period or a truth value for each of {stated.L}")
        windows = [False] * stated.L
    return ["sliding_attention" if window else "full_attention" for window in windows]


_GEMMA: Entries = dict.fromkeys(("hidden_act", "hidden_activation"), "gelu_pytorch_tanh")

ARCHITECTURES: Mapping[str, tuple[str, Callable[[_Stated], Entries]]] = {
    "llama": ("llama", _llama),
    "qwen2": ("qwen2", _plain),
    "qwen3": ("qwen3", _plain),
    "qwen3moe": ("qwen3_moe", _qwen3moe),
    "gemma2": ("gemma2", _gemma2),
    "gemma3": ("gemma3_text", _gemma3),
    "phi3": ("phi3", _phi3),
    "smollm3": ("smollm3", _smollm3),
    "olmo2": ("olmo2", _plain),
    "granite": ("granite", _granite),
    "gpt-oss": ("gpt_oss", _gpt_oss),
}
"""By general.architecture: config.json's model_type, and what adds the entries of its own."""

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "granite": "GraniteForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
}
