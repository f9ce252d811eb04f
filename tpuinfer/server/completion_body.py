"""The body of POST /v1/completions."""

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from tpuinfer.engine.request import MAX_CHOICES, TOP_LOGPROBS
from tpuinfer.server.fields import Int, Neutral, Range, Text, refusal, worded
from tpuinfer.server.sampling_body import SAMPLING_NEUTRAL, SamplingBody

MAX_PROMPTS = 1024
"""Prompts of one request."""


class CompletionBody(SamplingBody):
    """POST /v1/completions. No limit on tokens means 16, as OpenAI has it."""

    neutral: ClassVar[Neutral] = {
        **SAMPLING_NEUTRAL,
        "best_of": (1,),
        "suffix": (),
        "prompt_embeds": (),
    }

    prompt: Annotated[
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | Annotated[list[Int], Field(min_length=1, fail_fast=True)]
        | Annotated[
            list[Annotated[list[Int], Field(fail_fast=True)]],
            Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True),
        ],
        worded(
            "must be a string, a list of strings, a list of token ids, or a list of lists of "
            f"token ids: not an empty list, and at most {MAX_PROMPTS} prompts"
        ),
    ]
    max_tokens: Annotated[int, Range(0, 2**31 - 1)] | None = Field(
        None, description="16 if unset; 0 goes with echo only."
    )
    logprobs: Annotated[int, Range(0, TOP_LOGPROBS)] | None = Field(
        None, description="The most likely tokens beside each one; 0: its own alone."
    )
    echo: bool = Field(False, description="Put the prompt before the answer.")
    add_special_tokens: bool = Field(True, description="Open a text prompt as the model expects.")
    parse_special: bool = Field(
        False, description="Read control-token text in a prompt as tokens, not as plain text."
    )

    @model_validator(mode="after")
    def _an_answer_or_an_echo(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            message = "max_tokens is 0: that goes with echo true only; nearest: 1"
            raise refusal(message, "max_tokens", "invalid_value")
        return self

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        prompts = len(self.prompts())
        if self.n > 1 and self.n * prompts > MAX_CHOICES:
            message = (
                f"n is {self.n} and there are {prompts} prompts: together at most {MAX_CHOICES} "
                f"answers; nearest n: {max(MAX_CHOICES // prompts, 1)}"
            )
            raise refusal(message, "n", "invalid_value")
        return self

    def prompts(self) -> list[str | list[int]]:
        """The prompts, each of which gets `n` choices of the answer."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt  # type: ignore
