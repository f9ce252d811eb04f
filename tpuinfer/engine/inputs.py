"""What the host sends along with a program call, as numpy arrays: work by row, biases by entry."""

from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from tpuinfer.engine.request import MAX_LOGIT_BIAS, MAX_STOP_IDS, SamplingParams
from tpuinfer.engine.runner import PrefillWork
from tpuinfer.programs.prefill import abstract_input
from tpuinfer.programs.slots import SlotLayout


def idle_input(layout: SlotLayout, rows: int, width: int) -> Any:
    """A `PrefillInput` of numpy arrays in which no row has anything to do; `rows` per shard."""
    abstract = abstract_input(rows * layout.shards, width, MAX_STOP_IDS)
    given = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
    given.slot[:] = np.repeat(np.arange(layout.shards) * layout.per_shard, rows)
    given.sampling.top_p[:] = 1
    given.sampling.logprobs[:] = -1
    given.sampling.repetition[:] = 1
    given.stops[:] = -1
    given.targets[:] = -1
    return given


def fill(given: Any, row: int, item: PrefillWork) -> None:
    """Write one work into its row of an input that holds numpy arrays."""
    assert len(item.stop_ids) <= MAX_STOP_IDS
    size = len(item.tokens)
    given.tokens[row, :size] = item.tokens
    given.slot[row] = item.slot
    given.start[row] = item.start
    given.length[row] = size
    given.last[row] = item.last
    given.limit[row] = item.limit
    given.barred[row] = item.params.min_tokens
    given.stops[row, : len(item.stop_ids)] = item.stop_ids
    if item.params.prompt_logprobs is not None:
        given.scored[row] = item.params.prompt_logprobs
        given.targets[row, :size] = (*item.tokens[1:], item.following)
    sampling, params = given.sampling, item.params
    sampling.temperature[row] = params.temperature
    sampling.top_p[row] = params.top_p
    sampling.min_p[row] = params.min_p
    sampling.top_k[row] = params.top_k
    sampling.seed[row] = item.seed
    sampling.choice[row] = item.choice
    sampling.logprobs[row] = -1 if params.logprobs is None else params.logprobs
    sampling.repetition[row] = params.repetition_penalty
    sampling.presence[row] = params.presence_penalty
    sampling.frequency[row] = params.frequency_penalty
    sampling.biased[row] = bool(params.logit_bias)
    sampling.constrained[row] = item.constrained


def bias_entries(params: SamplingParams) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """A row's biases as the device takes them: ids, -1 behind the last one, and values."""
    ids = np.full(MAX_LOGIT_BIAS, -1, np.int32)
    values = np.zeros(MAX_LOGIT_BIAS, np.float32)
    count = len(params.logit_bias)
    ids[:count] = [*params.logit_bias]
    values[:count] = [*params.logit_bias.values()]
    return ids, values
