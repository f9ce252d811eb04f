"""tpuinfer: an inference engine for large language models in JAX.

Public names: `LLM`, `SamplingParams`, `RequestOutput`, `CompletionOutput`, `ShardingRules`,
`ModelConfig`, `TpuinferError`. They are imported when first used, so that `import tpuinfer` is
cheap and starts no jax backend.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpuinfer.engine.llm import LLM
    from tpuinfer.engine.request import CompletionOutput, RequestOutput, SamplingParams
    from tpuinfer.errors import TpuinferError
    from tpuinfer.model_config import ModelConfig
    from tpuinfer.sharding.rules import ShardingRules

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "CompletionOutput",
    "ModelConfig",
    "RequestOutput",
    "SamplingParams",
    "ShardingRules",
    "TpuinferError",
]

_HOMES = {
    "LLM": "tpuinfer.engine.llm",
    "CompletionOutput": "tpuinfer.engine.request",
    "ModelConfig": "tpuinfer.model_config",
    "RequestOutput": "tpuinfer.engine.request",
    "SamplingParams": "tpuinfer.engine.request",
    "ShardingRules": "tpuinfer.sharding.rules",
    "TpuinferError": "tpuinfer.errors",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tpuinfer' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
