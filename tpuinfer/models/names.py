"""Where a parameter's values lie in a published checkpoint: data that a family states once.

A parameter is filled from one or more `Part`s, each a block of one published tensor. A part is a
plain view (slices, at most one swap of the last two dimensions, a reshape), so the same data says
how to read a checkpoint and how to write one. Knows no files and reads no values.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tpuinfer.models.blueprint import Weight


@dataclass(frozen=True)
class Part:
    """A block of a published tensor, and the block of a parameter that it fills.

        view = tensor[rows]                 along the tensor's dimension `axis`
        view = swap the last two dimensions of view, if `swap`
        (param if at is None else param[at])  =  view + add, reshaped to fit

    Attributes:
      tensor: its full name in the checkpoint.
      shape: the tensor's shape there.
      rows: (start, stop, step) along `axis`, which parts of a fused tensor use; None = all.
      axis: the dimension that `rows` cuts.
      swap: the checkpoint keeps the last two dimensions the other way round.
      at: index along the parameter's first dimension (an expert); None = all of the parameter.
      rotary: rows of each head are in ggml's order of rotary pairs (side by side), not in halves.
      add: what the checkpoint's values lack (ggml keeps Gemma's norm weights as 1 + w: add -1).
    """

    tensor: str
    shape: tuple[int, ...]
    rows: tuple[int, int, int] | None = None
    axis: int = 0
    swap: bool = False
    at: int | None = None
    rotary: bool = False
    add: float = 0.0


Names = Mapping[str, tuple[Part, ...]]
"""For each parameter of a model, by its dotted name: the parts that fill it, all of it, once."""

_HEADS = ("heads", "kv_heads")
_LAYER = re.compile(r"(layers\.\d+\.)(.+)")


def stored_shape(weight: Weight) -> tuple[int, ...]:
    """A parameter's shape in a checkpoint, where heads and what a head holds are one dimension.

    >>> stored_shape(Weight((8, 64, 512), ("heads", "head_dim", "embed")))
    (512, 512)
    """
    shape: list[int] = []
    for index, (size, axis) in enumerate(zip(weight.shape, weight.axes, strict=True)):
        if axis == "head_dim" and index and weight.axes[index - 1] in _HEADS:
            shape[-1] *= size
        else:
            shape.append(size)
    return tuple(shape)


def hugging_face(
    weights: Mapping[str, Weight], rename: Callable[[str], str] = lambda name: name
) -> dict[str, tuple[Part, ...]]:
    """Names of a checkpoint in which every parameter is a tensor of its own.

    Args:
      rename: our name -> Hugging Face's without the leading "model.".
    """
    return {
        name: (Part(_prefixed(rename(name)), stored_shape(weight)),)
        for name, weight in weights.items()
    }


def fused(weights: Mapping[str, Weight], names: tuple[str, ...], into: str) -> Names:
    """Parameters that a checkpoint keeps in one tensor, one after the other along its first axis.

    Args:
      names: ours, in the tensor's order. into: the tensor's full name.
    """
    shapes = [stored_shape(weights[name]) for name in names]
    whole = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    parts, start = {}, 0
    for name, shape in zip(names, shapes, strict=True):
        parts[name] = (Part(into, whole, (start, start + shape[0], 1)),)
        start += shape[0]
    return parts


def stacked(name: str, weight: Weight, tensor: Callable[[int], str]) -> Names:
    """A parameter [E, ...] whose experts are tensors of their own."""
    shape = weight.shape[1:]
    return {name: tuple(Part(tensor(at), shape, at=at) for at in range(weight.shape[0]))}


GGML_TOP = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
}

GGML_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.router": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
"""Our modules -> ggml's names, as most architectures have them."""

GGML_SANDWICH = {
    **GGML_LAYER,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
"""The same for layers that normalise what attention and MLP give."""


def ggml(
    weights: Mapping[str, Weight],
    layer: Mapping[str, str] = GGML_LAYER,
    *,
    rotary: tuple[str, ...] = (),
    norms_add: float = 0.0,
) -> dict[str, tuple[Part, ...]]:
    """Names of a GGUF file in which every parameter is a tensor of its own.

    Args:
      layer: our modules within a layer -> ggml's.
      rotary: modules within a layer whose rows ggml permutes.
      norms_add: what norm weights lack there.

    Raises:
      KeyError: a module that the table does not have: a fault of the family's file.
    """
    names: dict[str, tuple[Part, ...]] = {}
    for name, weight in weights.items():
        module, _, kind = name.rpartition(".")
        match = _LAYER.match(module)
        own = match[2] if match else module
        if match:
            tensor = f"blk.{match[1].split('.')[1]}.{layer[own]}.{kind}"
        else:
            tensor = f"{GGML_TOP[own]}.{kind}"
        part = Part(tensor, stored_shape(weight), rotary=own in rotary)
        if norms_add and own.endswith("norm"):
            part = dataclasses.replace(part, add=norms_add)
        names[name] = (part,)
    return names


def _prefixed(name: str) -> str:
    return name if name.startswith("lm_head.") else f"model.{name}"
