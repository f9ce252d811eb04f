"""Which other implementations do the same work, in turn with ours."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tpuinfer.benchmark.workload import Item
from tpuinfer.checkpoint.progress import Progress
from tpuinfer.engine.plan import Plan
from tpuinfer.errors import ConfigError

TRANSFORMERS, LLAMA_CPP = "transformers", "llama.cpp"

WEIGHTS = ("q8_0", "bf16", "f16", "q4_1", "f32")
"""Types that llama.cpp can run a model's matrices in; the first one unless another is named."""

NAMES = (TRANSFORMERS, LLAMA_CPP, *(f"{LLAMA_CPP}:{weights}" for weights in WEIGHTS))


class Peer(Protocol):
    """Another implementation of the same model, with its weights loaded.

    Attributes:
      settings: what a report should say about it; `weight_bytes` and `kv_bytes` where it knows.
    """

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def prefill_round(self, prompt: Sequence[int], repeats: int) -> list[float]:
        """Milliseconds from a prompt to its first token, `repeats` times after a warm-up."""
        ...

    def decode_round(self, prompt: Sequence[int], *, live: int, new_tokens: int) -> list[float]:
        """Milliseconds per step in which each of `live` rows makes one token."""
        ...

    def serve(self, items: Sequence[Item], batch: int) -> float:
        """Seconds for all requests, at most `batch` at a time."""
        ...


@dataclass(frozen=True)
class Against:
    """Which peer: one of `TRANSFORMERS` and `LLAMA_CPP`, the latter with one of `WEIGHTS`."""

    name: str
    weights: str = ""


def parse(text: str, random_weights: str | None = None) -> Against:
    """What `--against` asks for.

    Raises:
      ConfigError: no such peer, or one that cannot have random weights.
    """
    if text not in NAMES:
        near = difflib.get_close_matches(text, NAMES, n=1, cutoff=0.0)[0]
        raise ConfigError(f"against is {text!r}: one of {', '.join(NAMES)}; nearest: {near}")
    name, _, weights = text.partition(":")
    if name == TRANSFORMERS:
        return Against(name)
    if random_weights:
        raise ConfigError(
            f"against is {text!r}, which reads a GGUF file, and random weights are in none; "
            f"nearest: {TRANSFORMERS}"
        )
    return Against(name, weights or WEIGHTS[0])


def check_installed(against: Against) -> None:
    """Import what the peer needs: better before the weights are read than after.

    Raises:
      ConfigError: a library is not installed; names the extra.
    """
    if against.name == TRANSFORMERS:
        from tpuinfer.benchmark import peer_transformers

        peer_transformers.check_installed()
    else:
        from tpuinfer.benchmark import peer_llama_cpp

        peer_llama_cpp.check_installed()


def make(
    against: Against,
    plan: Plan,
    *,
    model: str,
    hf_config: Mapping[str, Any],
    params: Mapping[str, Any],
    cache_dir: Path | None,
    progress: Progress,
) -> Peer:
    """The peer, loaded.

    Args:
      model: what the plan was made from. hf_config, params: of ours.

    Raises:
      ConfigError: a library is not installed, or the model is not one that the peer can run.
      CheckpointError: the peer's file cannot be made.
    """
    if against.name == TRANSFORMERS:
        from tpuinfer.benchmark import peer_transformers

        return peer_transformers.Peer(hf_config, params, plan.dtype)
    from tpuinfer.benchmark import peer_llama_cpp, requantised

    assert plan.path is not None
    return peer_llama_cpp.Peer(
        requantised.file_of(model, plan.path, against.weights, cache_dir, progress),
        against.weights,
        plan.published,
        slots=plan.slots.slots,
        context=plan.context,
    )
