"""The reference: a causal language model in transformers, float32, CPU, no cache for the rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_file import STEPS, TOP, Rows
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


class Reference:
    """Greedy tokens and rows of logits from a transformers model, float32 and eager attention."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()

    @classmethod
    def from_gguf(cls, path: Path, dtype: torch.dtype = torch.float32) -> "Reference":
        """Load the weights of a GGUF file; needs `accelerate` and `gguf`."""
        return cls(
            AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=dtype, attn_implementation="eager"
            )
        )

    @classmethod
    def random_llama(cls, seed: int = 0, **config: Any) -> "Reference":
        """A Llama of random weights; `config` as LlamaConfig's, norms and biases random as well."""
        torch.manual_seed(seed)
        settings = LlamaConfig(attn_implementation="eager", **config)
        model = LlamaForCausalLM(settings).float()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 1:
                    weight.uniform_(0.5, 1.5)
        return cls(model)

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Weights by Hugging Face's names; a head tied to the embedding is not repeated."""
        named = self.model.named_parameters()
        return {name: weight.detach().numpy().copy() for name, weight in named}

    def greedy(self, prompt_ids: Sequence[int], new_tokens: int) -> list[int]:
        """The most likely token, `new_tokens` times, past any end token."""
        tokens: list[int] = []
        step, cache = torch.tensor([list(prompt_ids)]), None
        with torch.inference_mode():
            for _ in range(new_tokens):
                out = self.model(input_ids=step, past_key_values=cache, use_cache=True)
                tokens.append(int(out.logits[0, -1].argmax()))
                step, cache = torch.tensor([tokens[-1:]]), out.past_key_values
        return tokens

    def logits(self, prompt_ids: Sequence[int], tokens: Sequence[int]) -> NDArray[np.float32]:
        """[len(tokens) + 1, V]: the rows from the last prompt position on, in one pass."""
        ids = torch.tensor([[*prompt_ids, *tokens]])
        with torch.inference_mode():
            rows = self.model(input_ids=ids, use_cache=False).logits[0, len(prompt_ids) - 1 :]
        return np.asarray(rows.float().numpy())


def summarise(logits: NDArray[np.float32], probe_ids: Sequence[int]) -> Rows:
    """What a golden keeps of rows [N + 1, V]; equal logits rank by the lowest id."""
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :TOP].astype(np.int32)
    top = np.take_along_axis(logits, order, axis=-1)
    wide = logits.astype(np.float64)
    peak = wide.max(axis=-1, keepdims=True)
    logsumexps = peak[:, 0] + np.log(np.exp(wide - peak).sum(axis=-1))
    steps = list(STEPS)
    return Rows(
        scales=np.abs(logits).max(axis=-1),
        margins=top[:, 0] - top[:, 1],
        logsumexps=logsumexps.astype(np.float32),
        top_ids=order[steps],
        top_values=top[steps],
        probe_values=logits[steps][:, list(probe_ids)],
    )
