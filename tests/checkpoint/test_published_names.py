"""Tensors of well-known checkpoints by their published names and shapes, written out by hand.

Not a byte is read: what is tested is that a checkpoint of such names is taken, in full size. The
numbers of the models are those of tests/models/published_configs.json, and each list is checked
against the published count of parameters first.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tpuinfer.checkpoint import assemble, published, tied, wrapped
from tpuinfer.checkpoint.safetensors import DTYPES, StoredTensor
from tpuinfer.errors import CheckpointError
from tpuinfer.models import registry

Shapes = dict[str, tuple[int, ...]]

_CONFIGS = Path(__file__).parents[1] / "models" / "published_configs.json"
PUBLISHED = json.loads(_CONFIGS.read_text("utf-8"))


def decoder(
    name: str, layer: Shapes, *, norm: bool = True, head: bool = False, base: str = "model."
) -> Shapes:
    """The tensors of a decoder: `layer` in each layer, the embedding and what is around them.

    Args:
      base: what stands before every name but the head's.
    """
    config = PUBLISHED[name]["config"]
    config = config.get("text_config", config)
    vocab, embed = config.get("vocab_size", 262_208), config["hidden_size"]
    shapes = {f"{base}embed_tokens.weight": (vocab, embed), f"{base}norm.weight": (embed,)}
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"{base}layers.{index}.{own}": shape for own, shape in layer.items()}
    return shapes | ({"lm_head.weight": (vocab, embed)} if head else {})


def weights_of(**shapes: tuple[int, ...]) -> Shapes:
    """a__b=(2, 3) -> {"a.b.weight": (2, 3)}."""
    return {f"{name.replace('__', '.')}.weight": shape for name, shape in shapes.items()}


def norms(embed: int, *names: str) -> Shapes:
    return {f"{name}.weight": (embed,) for name in names}


def attention(embed: int, queries: int, keys: int) -> Shapes:
    return weights_of(
        self_attn__q_proj=(queries, embed),
        self_attn__k_proj=(keys, embed),
        self_attn__v_proj=(keys, embed),
        self_attn__o_proj=(embed, queries),
    )


def mlp(embed: int, inner: int, at: str = "mlp") -> Shapes:
    return {
        f"{at}.gate_proj.weight": (inner, embed),
        f"{at}.up_proj.weight": (inner, embed),
        f"{at}.down_proj.weight": (embed, inner),
    }


PRE = ("input_layernorm", "post_attention_layernorm")
SANDWICH = (*PRE, "pre_feedforward_layernorm", "post_feedforward_layernorm")
POST = ("post_attention_layernorm", "post_feedforward_layernorm")
HEADS = ("self_attn.q_norm", "self_attn.k_norm")


def llama2() -> Shapes:
    """Its first files keep the table of frequencies in each layer."""
    layer = attention(4096, 4096, 4096) | mlp(4096, 11_008) | norms(4096, *PRE)
    layer["self_attn.rotary_emb.inv_freq"] = (64,)
    return decoder("meta-llama/Llama-2-7b-hf", layer, head=True)


def mixtral() -> Shapes:
    layer = attention(4096, 4096, 1024) | norms(4096, *PRE)
    layer["block_sparse_moe.gate.weight"] = (8, 4096)
    for expert in range(8):
        at = f"block_sparse_moe.experts.{expert}"
        layer |= {f"{at}.w1.weight": (14_336, 4096), f"{at}.w3.weight": (14_336, 4096)}
        layer[f"{at}.w2.weight"] = (4096, 14_336)
    return decoder("mistralai/Mixtral-8x7B-Instruct-v0.1", layer, head=True)


def qwen25() -> Shapes:
    layer = attention(896, 896, 128) | mlp(896, 4864) | norms(896, *PRE)
    layer |= {"self_attn.q_proj.bias": (896,), "self_attn.k_proj.bias": (128,)}
    layer["self_attn.v_proj.bias"] = (128,)
    return decoder("Qwen/Qwen2.5-0.5B-Instruct", layer)


def qwen3() -> Shapes:
    """The head is tied, and stored all the same."""
    layer = attention(1024, 2048, 1024) | mlp(1024, 3072) | norms(1024, *PRE) | norms(128, *HEADS)
    return decoder("Qwen/Qwen3-0.6B", layer, head=True)


def qwen3_moe() -> Shapes:
    layer = attention(2048, 4096, 512) | norms(2048, *PRE) | norms(128, *HEADS)
    layer["mlp.gate.weight"] = (128, 2048)
    for expert in range(128):
        layer |= mlp(2048, 768, f"mlp.experts.{expert}")
    return decoder("Qwen/Qwen3-30B-A3B-Instruct-2507", layer, head=True)


def gemma2() -> Shapes:
    layer = attention(2304, 2048, 1024) | mlp(2304, 9216) | norms(2304, *SANDWICH)
    return decoder("google/gemma-2-2b-it", layer)


def gemma3() -> Shapes:
    """The text model lies beside a vision tower and what projects its output."""
    layer = attention(2560, 2048, 1024) | mlp(2560, 10_240)
    layer |= norms(2560, *SANDWICH) | norms(256, *HEADS)
    text = decoder("google/gemma-3-4b-it", layer, base="language_model.model.")
    projector = {
        "multi_modal_projector.mm_input_projection_weight": (1152, 2560),
        "multi_modal_projector.mm_soft_emb_norm.weight": (1152,),
    }
    return text | projector | dict(siglip())


def siglip() -> Iterator[tuple[str, tuple[int, ...]]]:
    at, width, inner = "vision_tower.vision_model", 1152, 4304
    yield f"{at}.embeddings.patch_embedding.weight", (width, 3, 14, 14)
    yield f"{at}.embeddings.patch_embedding.bias", (width,)
    yield f"{at}.embeddings.position_embedding.weight", (4096, width)
    modules = {f"self_attn.{one}_proj": (width, width) for one in ("q", "k", "v", "out")}
    modules |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    modules |= {"layer_norm1": (width,), "layer_norm2": (width,)}
    for index in range(27):
        for module, shape in modules.items():
            yield f"{at}.encoder.layers.{index}.{module}.weight", shape
            yield f"{at}.encoder.layers.{index}.{module}.bias", shape[:1]
    yield f"{at}.post_layernorm.weight", (width,)
    yield f"{at}.post_layernorm.bias", (width,)


def phi3() -> Shapes:
    layer = norms(3072, *PRE) | weights_of(
        self_attn__qkv_proj=(9216, 3072),
        self_attn__o_proj=(3072, 3072),
        mlp__gate_up_proj=(16_384, 3072),
        mlp__down_proj=(3072, 8192),
    )
    return decoder("microsoft/Phi-3-mini-4k-instruct", layer, head=True)


def smollm3() -> Shapes:
    layer = attention(2048, 2048, 512) | mlp(2048, 11_008) | norms(2048, *PRE)
    return decoder("HuggingFaceTB/SmolLM3-3B", layer)


def olmo2() -> Shapes:
    layer = attention(2048, 2048, 2048) | mlp(2048, 8192) | norms(2048, *POST, *HEADS)
    return decoder("allenai/OLMo-2-0425-1B-Instruct", layer, head=True)


def granite() -> Shapes:
    layer = attention(2048, 2048, 512) | mlp(2048, 8192) | norms(2048, *PRE)
    return decoder("ibm-granite/granite-3.3-2b-instruct", layer)


def gpt_oss() -> Shapes:
    """As the experts are before they are packed."""
    layer = attention(2880, 4096, 512) | norms(2880, *PRE)
    layer |= {f"self_attn.{one}_proj.bias": (512,) for one in "kv"}
    layer |= {"self_attn.q_proj.bias": (4096,), "self_attn.o_proj.bias": (2880,)}
    layer |= {"self_attn.sinks": (64,), "mlp.router.weight": (32, 2880), "mlp.router.bias": (32,)}
    layer |= {
        "mlp.experts.gate_up_proj": (32, 2880, 5760),
        "mlp.experts.gate_up_proj_bias": (32, 5760),
        "mlp.experts.down_proj": (32, 2880, 2880),
        "mlp.experts.down_proj_bias": (32, 2880),
    }
    return decoder("openai/gpt-oss-20b", layer, head=True)


def mini_lm() -> Shapes:
    at, shapes = "encoder.layer", {"embeddings.word_embeddings.weight": (30_522, 384)}
    shapes["embeddings.position_embeddings.weight"] = (512, 384)
    shapes["embeddings.token_type_embeddings.weight"] = (2, 384)
    maps = {f"attention.self.{one}": (384, 384) for one in ("query", "key", "value")}
    maps |= {"attention.output.dense": (384, 384), "attention.output.LayerNorm": (384,)}
    maps |= {"intermediate.dense": (1536, 384), "output.dense": (384, 1536)}
    maps |= {"output.LayerNorm": (384,)}
    modules = {f"{at}.{index}.{own}": shape for index in range(6) for own, shape in maps.items()}
    modules |= {"embeddings.LayerNorm": (384,), "pooler.dense": (384, 384)}
    for module, shape in modules.items():
        shapes |= {f"{module}.weight": shape, f"{module}.bias": shape[:1]}
    return shapes


CASES: dict[str, tuple[Callable[[], Shapes], int]] = {
    "meta-llama/Llama-2-7b-hf": (llama2, 32 * 64),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": (mixtral, 0),
    "Qwen/Qwen2.5-0.5B-Instruct": (qwen25, 0),
    "Qwen/Qwen3-0.6B": (qwen3, 151_936 * 1024),
    "Qwen/Qwen3-30B-A3B-Instruct-2507": (qwen3_moe, 0),
    "google/gemma-2-2b-it": (gemma2, 0),
    "google/gemma-3-4b-it": (gemma3, 0),
    "microsoft/Phi-3-mini-4k-instruct": (phi3, 0),
    "HuggingFaceTB/SmolLM3-3B": (smollm3, 0),
    "allenai/OLMo-2-0425-1B-Instruct": (olmo2, 0),
    "ibm-granite/granite-3.3-2b-instruct": (granite, 0),
    "openai/gpt-oss-20b": (gpt_oss, 0),
    "sentence-transformers/all-MiniLM-L6-v2": (mini_lm, 0),
}
"""What writes the names out, and how many numbers are stored that are no parameters."""


def stored(shapes: Shapes, **kinds: str) -> dict[str, StoredTensor]:
    """Tensors of which there are no bytes; `kinds`: end of the name -> type, BF16 otherwise."""

    def dtype(name: str) -> np.dtype[Any]:
        return next((DTYPES[kind] for end, kind in kinds.items() if name.endswith(end)), BF16)

    return {
        name: StoredTensor(Path("m"), name, dtype(name), shape, 0) for name, shape in shapes.items()
    }


BF16 = DTYPES["BF16"]


def check(config: dict[str, Any], tensors: dict[str, StoredTensor]) -> set[str]:
    """Take a checkpoint as `sources` does, but for its bytes; returns the names it wants."""
    model = registry.read_config(config)
    family = registry.family_of(model)
    if (outer := wrapped.around(family, config)) is not None:
        tensors, config = wrapped.unwrap(Path("m"), tensors, outer), outer.config(config)
    published.check_method(Path("m"), config)
    names = family.hf_names(model)
    meant = published.logical(Path("m"), config, tensors)
    assemble.check(Path("m"), tied.without_head(Path("m"), meant, names), names, family.ignored)
    return {part.tensor for parts in names.values() for part in parts}


@pytest.mark.parametrize("name", CASES)
def test_what_is_published_is_taken(name: str) -> None:
    write, more = CASES[name]
    shapes = write()
    assert sum(map(math.prod, shapes.values())) == PUBLISHED[name]["parameters"] + more
    check(PUBLISHED[name]["config"], stored(shapes, inv_freq="F32"))


def test_positions_are_taken_as_integers() -> None:
    """Sentence encoders were saved with the numbers of their positions beside the weights."""
    shapes = mini_lm() | {"embeddings.position_ids": (1, 512)}
    config = PUBLISHED["sentence-transformers/all-MiniLM-L6-v2"]["config"]
    wanted = check(config, stored(shapes, position_ids="I64"))
    assert shapes.keys() - wanted == {
        "embeddings.position_ids",
        "pooler.dense.weight",
        "pooler.dense.bias",
    }


def qwen3_8b() -> Shapes:
    layer = attention(4096, 4096, 1024) | mlp(4096, 12_288) | norms(4096, *PRE) | norms(128, *HEADS)
    return decoder("Qwen/Qwen3-8B-FP8", layer, head=True)


def test_fp8_as_qwen_publishes_it() -> None:
    """Linear maps but the head are FP8, in blocks of 128 by 128; their scales are BF16."""
    config = PUBLISHED["Qwen/Qwen3-8B-FP8"]["config"]
    shapes = qwen3_8b()
    maps = {name: shape for name, shape in shapes.items() if "_proj." in name}
    scales = {
        f"{name}_scale_inv": (rows // 128, columns // 128) for name, (rows, columns) in maps.items()
    }
    tensors = stored(shapes | scales, **{"_proj.weight": "F8_E4M3"})
    assert check(config, tensors) == shapes.keys()
    named = config["quantization_config"] | {"modules_to_not_convert": ["lm_head", "model.norm"]}
    check(config | {"quantization_config": named}, tensors)
    del tensors["model.layers.7.mlp.up_proj.weight_scale_inv"]
    with pytest.raises(CheckpointError, match=r"layers\.7\.mlp\.up_proj\.weight is FP8, which nee"):
        check(config, tensors)


def test_mxfp4_as_gpt_oss_publishes_it() -> None:
    """Experts alone are packed: two values a byte, 32 values to a scale, outputs before inputs."""
    shapes, packed = gpt_oss(), ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    whole = {name: shape for name, shape in shapes.items() if name.endswith(packed)}
    blocks = {f"{name}_blocks": (32, out, 90, 16) for name, (_, _, out) in whole.items()}
    scales = {f"{name}_scales": (32, out, 90) for name, (_, _, out) in whole.items()}
    rest = {name: shape for name, shape in shapes.items() if name not in whole}
    tensors = stored(rest | blocks | scales, _blocks="U8", _scales="U8")
    assert len(tensors) == 459
    assert check(PUBLISHED["openai/gpt-oss-20b"]["config"], tensors) == shapes.keys()


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_four_bits_as_qwen_publishes_them(method: str) -> None:
    """Linear maps of the layers but not the head, in groups of 128; biases stay as they are."""
    found = {"quant_method": method, "bits": 4, "group_size": 128}
    config = PUBLISHED["Qwen/Qwen2.5-0.5B-Instruct"]["config"] | {"quantization_config": found}
    shapes = qwen25()
    stated: Shapes = {}
    for name, shape in shapes.items():
        if not name.endswith("_proj.weight"):
            stated[name] = shape
            continue
        rows, columns = shape
        words = (columns, rows // 8) if method == "awq" else (columns // 8, rows)
        module = name.removesuffix("weight")
        stated |= {f"{module}qweight": words, f"{module}qzeros": (-(-columns // 128), rows // 8)}
        stated |= {f"{module}scales": (-(-columns // 128), rows)}
        stated |= {f"{module}g_idx": (columns,)} if method == "gptq" else {}
    kinds = dict.fromkeys(("qweight", "qzeros", "g_idx"), "I32") | {"scales": "F16"}
    assert check(config, stored(stated, **kinds)) == shapes.keys()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bert.pooler.dense.bias": (384,)}, r"bert\.pooler\.dense\.bias \[384\] is not part"),
        ({"embeddings.LayerNorm.gamma": (384,)}, r"embeddings\.LayerNorm\.gamma \[384\] is not"),
        ({"embeddings.LayerNorm.bias": (383,)}, r"LayerNorm\.bias is \[383\] and .* needs \[384\]"),
    ],
)
def test_other_names_of_a_sentence_encoder_are_refused(change: Shapes, says: str) -> None:
    config = PUBLISHED["sentence-transformers/all-MiniLM-L6-v2"]["config"]
    with pytest.raises(CheckpointError, match=says):
        check(config, stored(mini_lm() | change))


def test_a_head_that_is_not_tied_is_needed() -> None:
    shapes = olmo2()
    del shapes["lm_head.weight"]
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        check(PUBLISHED["allenai/OLMo-2-0425-1B-Instruct"]["config"], stored(shapes))


def test_scales_of_a_cache_are_refused_by_name() -> None:
    shapes = granite() | {"model.layers.0.self_attn.k_proj.k_scale": ()}
    with pytest.raises(CheckpointError, match=r"k_proj\.k_scale \[\] is not part of the model"):
        check(PUBLISHED["ibm-granite/granite-3.3-2b-instruct"]["config"], stored(shapes))
