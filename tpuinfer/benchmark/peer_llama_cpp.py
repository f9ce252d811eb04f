"""The same work by llama.cpp: a GGUF file on the CPU, all cores, its own f16 KV cache.

What is timed is the plain loop over `llama_decode` with the most likely token picked on the host,
without the rest of its sampler. Sequences have a cache each, as llama.cpp has it by default.

llama_cpp (the package llama-cpp-python) is imported when a peer is made, never before.
"""

import ctypes
import functools
import importlib
import os
import sys
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tpuinfer.benchmark.workload import Item
from tpuinfer.errors import ConfigError
from tpuinfer.model_config import ModelConfig

_WARM = 2
"""Decode steps at the start of a round whose times are left out."""

_NEEDS_ONE_SAMPLE = _WARM + 2

_ERROR = 4
"""ggml's number for the level of a message that says what failed."""

_F16_BYTES = 2


def check_installed() -> None:
    """Raise ConfigError where llama-cpp-python is not."""
    _load()


class Peer:
    """A model and a context of llama.cpp.

    Attributes:
      settings: what a report should say about it. `weight_bytes` is llama.cpp's own count of its
        tensors; `kv_bytes` are of keys and values in all cells of the context, full or not.
    """

    def __init__(
        self, path: Path, weights: str, config: ModelConfig, *, slots: int, context: int
    ) -> None:
        """Load it on the CPU.

        Args:
          path: a GGUF file. weights: what its matrices are, for the report.
          slots: sequences that run at once at most. context: tokens that each may have.

        Raises:
          ConfigError: llama-cpp-python is not installed, or llama.cpp refuses the file or the
            sizes.
        """
        self._llama = _load()
        self._errors = _heard(self._llama)
        threads = _cores()
        self._model = self._new_model(path)
        self._context = self._new_context(slots, context, threads)
        self._width = int(self._llama.llama_n_batch(self._context))
        self._batch = self._llama.llama_batch_init(self._width, 0, 1)
        weakref.finalize(self, _free, self._llama, self._model, self._context, self._batch)
        self._tokens, self._positions, self._wanted = (
            np.ctypeslib.as_array(values, shape=(self._width,))
            for values in (self._batch.token, self._batch.pos, self._batch.logits)
        )
        np.ctypeslib.as_array(self._batch.n_seq_id, shape=(self._width,))[:] = 1
        vocab = self._llama.llama_model_get_vocab(self._model)
        self._vocab = int(self._llama.llama_vocab_n_tokens(vocab))
        cells = int(self._llama.llama_n_ctx(self._context))
        row = config.kv_heads * config.head_dim * _F16_BYTES
        self.settings = {
            "name": "llama.cpp",
            "llama_cpp_python": self._llama.__version__,
            "weights": weights,
            "weight_bytes": int(self._llama.llama_model_size(self._model)),
            "cache": "f16",
            "kv_bytes": 2 * config.layers * cells * row,
            "threads": threads,
            "system": _system_info(self._llama),
        }

    def prefill_round(self, prompt: Sequence[int], repeats: int) -> list[float]:
        """Milliseconds from a prompt to its first token, `repeats` times after a warm-up."""
        times = []
        for _ in range(1 + repeats):
            self._clear()
            start = time.perf_counter()
            self._prefill(0, prompt)
            times.append(1e3 * (time.perf_counter() - start))
        return times[1:]

    def decode_round(self, prompt: Sequence[int], *, live: int, new_tokens: int) -> list[float]:
        """Milliseconds per step in which each of `live` sequences makes one token."""
        assert new_tokens >= _NEEDS_ONE_SAMPLE
        self._clear()
        rows = range(live)
        tokens = np.array([self._prefill(row, prompt) for row in rows])
        times = []
        for position in range(len(prompt), len(prompt) + new_tokens - 1):
            start = time.perf_counter()
            tokens = self._step(tokens, position, rows, 1)
            times.append(1e3 * (time.perf_counter() - start))
        return times[_WARM:]

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """The tokens it goes on with, past any end token."""
        return self.answers([Item(tuple(prompt), new_tokens)], 1)[0]

    def serve(self, items: Sequence[Item], batch: int) -> float:
        """Seconds for all requests with continuous batching, in the order they come."""
        start = time.perf_counter()
        self.answers(items, batch)
        return time.perf_counter() - start

    def answers(self, items: Sequence[Item], batch: int) -> list[list[int]]:
        """What it says to each, at most `batch` at a time.

        As in llama-server, a step decodes all that run and takes in as much of new prompts as it
        has room for.
        """
        self._clear()
        waiting = deque(_Running(item, list(item.prompt)) for item in items)
        answers = [one.answer for one in waiting]
        free, running = list(range(batch)), dict[int, _Running]()
        memory = self._llama.llama_get_memory(self._context)
        while waiting or running:
            while waiting and free:
                running[free.pop()] = waiting.popleft()
            for sequence, token in self._advance(running):
                one = running[sequence]
                one.answer.append(token)
                one.todo = [token]
                if len(one.answer) == one.item.new_tokens:
                    self._llama.llama_memory_seq_rm(memory, sequence, -1, -1)
                    free.append(sequence)
                    del running[sequence]
        return answers

    def _advance(self, running: "dict[int, _Running]") -> list[tuple[int, int]]:
        """One step: sequences that took in all they had, and the token of each."""
        tokens: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        wanted: list[int] = []
        ends = []
        for sequence, one in sorted(running.items(), key=lambda pair: len(pair[1].todo)):
            room = self._width - len(tokens)
            part, one.todo = one.todo[:room], one.todo[room:]
            tokens += part
            positions += range(one.seen, one.seen + len(part))
            sequences += [sequence] * len(part)
            wanted += [0] * len(part)
            one.seen += len(part)
            if part and not one.todo:
                wanted[-1] = 1
                ends.append(sequence)
        made = self._step(tokens, positions, sequences, wanted)
        return list(zip(ends, made.tolist(), strict=True))

    def _prefill(self, sequence: int, prompt: Sequence[int]) -> int:
        """Put a prompt into an empty sequence; its first token."""
        made = np.empty(0, np.int64)
        for start in range(0, len(prompt), self._width):
            part = prompt[start : start + self._width]
            last = start + len(part) == len(prompt)
            positions = range(start, start + len(part))
            wanted = [0] * (len(part) - 1) + [int(last)]
            made = self._step(part, positions, [sequence] * len(part), wanted)
        return int(made[0])

    def _step(
        self,
        tokens: Sequence[int] | NDArray[Any],
        positions: ArrayLike,
        sequences: Sequence[int],
        wanted: ArrayLike,
    ) -> NDArray[Any]:
        """Run one batch.

        Args:
          tokens: [T]; positions, sequences, wanted: of each, or one for all; wanted is 1 where the
            next token is asked for.

        Returns:
          The most likely next tokens, in the order of those that were asked for.
        """
        count = len(tokens)
        self._batch.n_tokens = count
        self._tokens[:count] = tokens
        self._positions[:count] = positions
        self._wanted[:count] = wanted
        for index, sequence in enumerate(sequences):
            self._batch.seq_id[index][0] = sequence
        self._errors.clear()
        code = self._llama.llama_decode(self._context, self._batch)
        if code:
            raise ConfigError(f"llama.cpp: decode gave {code}: {self._first_error()}")
        rows = int(self._wanted[:count].sum())
        logits = self._llama.llama_get_logits(self._context)
        most_likely: NDArray[Any] = np.ctypeslib.as_array(logits, shape=(rows, self._vocab)).argmax(
            -1
        )
        return most_likely

    def _clear(self) -> None:
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), False)

    def _new_model(self, path: Path) -> Any:
        params = self._llama.llama_model_default_params()
        params.n_gpu_layers = 0
        self._errors.clear()
        model = self._llama.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise ConfigError(f"{path}: llama.cpp cannot load it: {self._first_error()}")
        return model

    def _new_context(self, slots: int, context: int, threads: int) -> Any:
        params = self._llama.llama_context_default_params()
        params.n_ctx, params.n_seq_max = slots * context, slots
        params.n_threads = params.n_threads_batch = threads
        params.offload_kqv = params.op_offload = False
        self._errors.clear()
        made = self._llama.llama_init_from_model(self._model, params)
        if not made:
            self._llama.llama_model_free(self._model)
            raise ConfigError(
                f"llama.cpp: no context of {slots} x {context} tokens: {self._first_error()}"
            )
        return made

    def _first_error(self) -> str:
        """Of the call that failed: the later ones only say that it did."""
        return self._errors[0] if self._errors else "it does not say why"


@dataclass
class _Running:
    """A request in a sequence.

    Attributes:
      todo: tokens that are to be taken in. seen: how many were. answer: what it made.
    """

    item: Item
    todo: list[int]
    seen: int = 0
    answer: list[int] = field(default_factory=list)


def _system_info(llama: ModuleType) -> str:
    """What llama.cpp was built with that is on, in one word each.

    >>> from types import SimpleNamespace
    >>> _system_info(SimpleNamespace(llama_print_system_info=lambda: b"CPU : AVX2 = 1 | AMX = 0 |"))
    'AVX2'
    """
    text = llama.llama_print_system_info().decode()
    pairs = (part.split(":")[-1].split("=") for part in text.split("|") if "=" in part)
    return " ".join(name.strip() for name, value in pairs if value.strip() != "0")


def _cores() -> int:
    """Those that this process may run on: one thread too many makes all of them wait."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _load() -> ModuleType:
    try:
        return importlib.import_module("llama_cpp")
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            "against is 'llama.cpp', but llama_cpp cannot be imported: install the extra "
            "`llamacpp` (pip install 'tpuinfer[llamacpp]'), which compiles it"
        ) from error


@functools.cache
def _heard(llama: ModuleType) -> list[str]:
    """Lines that say what failed; nothing that llama.cpp says is printed from here on."""
    errors: list[str] = []

    def hear(level: int, text: bytes, _: Any) -> None:
        if level == _ERROR:
            errors.append(" ".join(text.decode(errors="replace").split()))

    _CALLBACKS.append(llama.llama_log_callback(hear))
    llama.llama_log_set(_CALLBACKS[-1], ctypes.c_void_p(0))
    return errors


_CALLBACKS: list[Any] = []
"""What llama.cpp calls must outlive it."""


def _free(llama: ModuleType, model: Any, context: Any, batch: Any) -> None:
    llama.llama_batch_free(batch)
    llama.llama_free(context)
    llama.llama_model_free(model)
