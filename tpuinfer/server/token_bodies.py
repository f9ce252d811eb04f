"""The bodies of POST /tokenize and POST /detokenize, in vLLM's shapes."""

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from tpuinfer.server.chat_body import (
    MAX_MESSAGES,
    MAX_TOOLS,
    TEMPLATE_NEUTRAL,
    TemplateKwargs,
    ToolSpec,
)
from tpuinfer.server.fields import Int, Neutral, StrictBody, Text, refusal
from tpuinfer.server.messages import Message


class TokenizeBody(StrictBody):
    """POST /tokenize: a prompt, or messages as a chat would render them."""

    neutral: ClassVar[Neutral] = TEMPLATE_NEUTRAL

    model: Text | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[ToolSpec], Field(max_length=MAX_TOOLS)] = Field([])
    add_generation_prompt: bool = True
    chat_template_kwargs: TemplateKwargs = Field({})
    add_special_tokens: bool | None = Field(
        None, description="Of a prompt: true if unset. A chat template adds its own."
    )
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            message = "give either prompt or messages"
            raise refusal(message, "prompt", "missing_required_parameter")
        if self.messages is not None and self.add_special_tokens:
            message = "add_special_tokens is true: the chat template adds them; leave it out"
            raise refusal(message, "add_special_tokens", "unsupported_parameter")
        if self.prompt is not None:
            for name in ("tools", "chat_template_kwargs"):
                if getattr(self, name):
                    message = f"{name} is set: it goes with messages, not with prompt"
                    raise refusal(message, name, "invalid_value")
        return self

    @property
    def size(self) -> int:
        """Characters of all messages."""
        return sum(message.size for message in self.messages or ())


class DetokenizeBody(StrictBody):
    """POST /detokenize: token ids, control tokens shown."""

    model: Text | None = None
    tokens: Annotated[list[Int], Field(max_length=2**20, fail_fast=True)]
