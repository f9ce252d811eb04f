"""A tiny model that speaks: `tiny_gguf`'s two layers, a vocabulary of characters, a template."""

from pathlib import Path
from typing import Any

from checkpoint.tiny_gguf import V, gguf_bytes, llama_metadata, llama_tensors

from tpuinfer.checkpoint.convert import convert

CONTEXT = 256
_CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_TEXT = ["Ġ", "Ċ", *(chr(ord("!") + index) for index in range(V - 5))]
_TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"


def metadata() -> dict[str, Any]:
    """Ids 0-2 are control, then a space, a newline and ASCII from ! on; nothing merges."""
    tokens = [*_CONTROL, *_TEXT]
    return {
        **llama_metadata(),
        "llama.context_length": CONTEXT,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(_CONTROL) + [1] * (len(tokens) - len(_CONTROL)),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": _TEMPLATE,
    }


def write_gguf(path: Path, seed: int = 0) -> Path:
    """The model as a GGUF file of some 0.3 MB; another seed gives other weights."""
    path.write_bytes(gguf_bytes(metadata(), llama_tensors(seed=seed)))
    return path


def write_checkpoint(path: Path, seed: int = 0) -> Path:
    """The model as a float32 checkpoint directory; its GGUF file lies beside it."""
    return convert(write_gguf(path.with_suffix(".gguf"), seed), path, "float32")
