"""What `LLM.generate` is given, in the forms that it takes. No jax."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from tpuinfer.engine.request import SamplingParams
from tpuinfer.errors import RequestError

T = TypeVar("T")

Prompt = str | Sequence[int]


def as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as several."""
    if isinstance(prompts, str):
        return [prompts]
    several: list[Any] = list(prompts)
    return [several] if several and isinstance(several[0], int) else several


def per_prompt(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> list[SamplingParams]:
    """The parameters of each of `count` prompts.

    Raises:
      RequestError: there are as many as there are prompts neither, nor one for all.
    """
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise RequestError(
            f"{len(params)} sampling parameters for {count} prompts: give one, or one each",
            param="sampling_params",
        )
    return list(params)


def paired(
    prompts: Iterator[T], params: SamplingParams | Iterable[SamplingParams] | None
) -> Iterator[tuple[T, SamplingParams]]:
    """Each prompt with its parameters; nothing is read before it is asked for.

    Raises:
      RequestError: when a prompt is reached that has no parameters, or the end with some left.
    """
    if params is None or isinstance(params, SamplingParams):
        for prompt in prompts:
            yield prompt, params or SamplingParams()
        return
    each = iter(params)
    count = 0
    for prompt in prompts:
        how = next(each, None)
        if how is None:
            raise RequestError(
                f"{count} sampling parameters, and there is prompt {count + 1}: give one for all "
                "prompts, or one each",
                param="sampling_params",
            )
        count += 1
        yield prompt, how
    if next(each, None) is not None:
        raise RequestError(
            f"{count} prompts, and there are more sampling parameters: give one for all prompts, "
            "or one each",
            param="sampling_params",
        )
