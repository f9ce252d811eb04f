"""The same work by transformers on the same weights: PyTorch, all cores, its own KV cache.

What is timed is the plain loop over the model's forward pass, without what `generate` adds to each
step. The cache is DynamicCache: on two cores StaticCache took 43, 81 and 101 ms per step with 1, 8
and 16 rows where DynamicCache took 41, 66 and 85 (SmolLM2, bf16).

transformers and torch are imported when a peer is made, never before.
"""

import importlib
import os
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from tpuinfer.benchmark.workload import Item
from tpuinfer.errors import ConfigError
from tpuinfer.quant.qarray import QArray, dequantise

_WARM = 2
"""Decode steps at the start of a round whose times are left out."""

_NEEDS_ONE_SAMPLE = _WARM + 2


def check_installed() -> None:
    """Raise ConfigError where torch or transformers is not."""
    _load("torch")
    _load("transformers")


class Peer:
    """A LlamaForCausalLM with our weights.

    Attributes:
      settings: what a report should say about it.
    """

    def __init__(self, hf_config: Mapping[str, Any], params: Mapping[str, Any], dtype: str) -> None:
        """Build it on the CPU.

        Args:
          hf_config: the checkpoint's config.json.
          params: our parameters by our names; arrays that numpy can read.
          dtype: "bfloat16" or "float32".

        Raises:
          ConfigError: torch or transformers is not installed, or the weights do not fit.
        """
        self._torch, self._transformers = _load("torch"), _load("transformers")
        threads = os.cpu_count() or 1
        self._torch.set_num_threads(threads)
        self._transformers.logging.set_verbosity_error()
        self._config = self._transformers.LlamaConfig(
            **{**hf_config, "attn_implementation": "sdpa"}
        )
        self._model = self._transformers.LlamaForCausalLM(self._config)
        state = {_their_name(name): self._tensor(value, dtype) for name, value in params.items()}
        self._fill(state)
        self._model.eval()
        self.settings = {
            "name": "transformers",
            "version": self._transformers.__version__,
            "torch": self._torch.__version__,
            "dtype": dtype,
            "attention": "sdpa",
            "cache": "DynamicCache",
            "threads": threads,
        }

    def prefill_round(self, prompt: Sequence[int], repeats: int) -> list[float]:
        """Milliseconds from a prompt to its first token, `repeats` times after a warm-up."""
        times = []
        with self._torch.inference_mode():
            for _ in range(1 + repeats):
                start = time.perf_counter()
                self._forward(self._torch.tensor([list(prompt)]), self._cache()).tolist()
                times.append(1e3 * (time.perf_counter() - start))
        return times[1:]

    def decode_round(self, prompt: Sequence[int], *, live: int, new_tokens: int) -> list[float]:
        """Milliseconds per step in which each of `live` rows makes one token."""
        assert new_tokens >= _NEEDS_ONE_SAMPLE
        times = []
        with self._torch.inference_mode():
            cache = self._cache()
            tokens = self._forward(self._torch.tensor([list(prompt)] * live), cache)
            for _ in range(new_tokens - 1):
                start = time.perf_counter()
                tokens = self._forward(tokens, cache)
                tokens.tolist()
                times.append(1e3 * (time.perf_counter() - start))
        return times[_WARM:]

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """The tokens it goes on with, past any end token."""
        return self._batch([Item(tuple(prompt), new_tokens)])[0]

    def serve(self, items: Sequence[Item], batch: int) -> float:
        """Seconds for all requests in static batches, in the order they come.

        A batch is padded on the left to its longest prompt and runs until its longest answer is
        done, as a batch without continuous batching must.
        """
        start = time.perf_counter()
        for first in range(0, len(items), batch):
            self._batch(items[first : first + batch])
        return time.perf_counter() - start

    def _batch(self, items: Sequence[Item]) -> list[list[int]]:
        """The answers of one static batch, each cut to what was asked for."""
        torch = self._torch
        width = max(len(item.prompt) for item in items)
        lengths = [len(item.prompt) for item in items]
        ids = torch.tensor([[0] * (width - len(item.prompt)) + [*item.prompt] for item in items])
        mask = torch.tensor([[0] * (width - length) + [1] * length for length in lengths])
        made = []
        with torch.inference_mode():
            cache = self._cache()
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            tokens = self._forward(ids, cache, attention_mask=mask, position_ids=positions)
            made.append(tokens.tolist())
            grown = torch.ones(len(items), 1, dtype=mask.dtype)
            for _ in range(max(item.new_tokens for item in items) - 1):
                mask, positions = torch.cat((mask, grown), -1), positions[:, -1:] + 1
                tokens = self._forward(tokens, cache, attention_mask=mask, position_ids=positions)
                made.append(tokens.tolist())
        return [
            [step[row][0] for step in made[: item.new_tokens]] for row, item in enumerate(items)
        ]

    def _forward(self, ids: Any, cache: Any, **more: Any) -> Any:
        """[rows, T] ids -> [rows, 1], each row's most likely next token."""
        out = self._model(
            input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **more
        )
        return out.logits[:, -1].argmax(-1, keepdim=True)

    def _cache(self) -> Any:
        return self._transformers.DynamicCache(config=self._config)

    def _tensor(self, value: Any, dtype: str) -> Any:
        """A parameter of ours as a tensor: the same bits, or rounded to `dtype`."""
        exact = dequantise(value) if isinstance(value, QArray) else value
        host = np.asarray(exact).astype(np.float32)
        return self._torch.from_numpy(host).to(getattr(self._torch, dtype))

    def _fill(self, state: dict[str, Any]) -> None:
        """Put our weights in; matrices of heads lose their extra dimension."""
        theirs = dict(self._model.named_parameters())
        unknown = sorted(state.keys() - theirs.keys())
        missing = sorted(theirs.keys() - state.keys())
        if unknown or missing:
            raise ConfigError(
                "against transformers: the weights are not those of its Llama; unknown: "
                f"{', '.join(unknown[:4]) or 'none'}; missing: {', '.join(missing[:4]) or 'none'}"
            )
        shaped = {name: value.reshape(theirs[name].shape) for name, value in state.items()}
        self._model.load_state_dict(shaped, strict=False, assign=True)
        self._model.tie_weights()


def _their_name(name: str) -> str:
    return name if name.startswith("lm_head.") else f"model.{name}"


def _load(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"against is 'transformers', but {name} cannot be imported: install the extra `parity` "
            "(pip install 'tpuinfer[parity]')"
        ) from error
