"""The turns of a chat as clients send them, tool calls and their results among them."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tpuinfer.server.fields import Neutral, StrictBody, Text, refusal, worded

Name = Annotated[str, Field(pattern="^[a-zA-Z0-9_.-]{1,64}$")]


class TextPart(StrictBody):
    """A piece of a message's content; its other kinds are refused."""

    neutral: ClassVar[Neutral] = {"image_url": (), "input_audio": (), "file": (), "refusal": ()}

    type: Literal["text"]
    text: Text


class CalledFunction(StrictBody):
    """What an earlier answer called; arguments are JSON in a string, as the answer gave them."""

    name: Name
    arguments: Text


class PastCall(StrictBody):
    """One call of an earlier answer."""

    neutral: ClassVar[Neutral] = {"index": ()}

    id: Text
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(StrictBody):
    """One turn of a chat; "developer" is OpenAI's newer name for "system"."""

    neutral: ClassVar[Neutral] = {
        "name": (),
        "function_call": (),
        "refusal": (),
        "audio": (),
        "annotations": ([],),
    }

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        Text | Annotated[list[TextPart], Field(fail_fast=True)] | None,
        worded('must be a string or a list of {"type": "text", "text": ...} parts'),
    ] = None
    reasoning_content: Text | None = Field(None, description="Of an earlier answer.")
    tool_calls: Annotated[list[PastCall], Field(fail_fast=True)] = Field([])
    tool_call_id: Text | None = Field(None, description="Which call a tool message answers.")

    @model_validator(mode="after")
    def _fields_of_the_role(self) -> Self:
        said = self.tool_calls or self.reasoning_content
        if self.content is None and not (self.role == "assistant" and said):
            raise refusal(
                "content is missing: only an assistant's turn of tool calls or reasoning goes "
                "without",
                "content",
                "missing_required_parameter",
            )
        for name, role in (
            ("tool_calls", "assistant"),
            ("reasoning_content", "assistant"),
            ("tool_call_id", "tool"),
        ):
            if getattr(self, name) and self.role != role:
                message = f"{name} is set on a message of role {self.role!r}: it goes with {role!r}"
                raise refusal(message, name, "invalid_value")
        return self

    def turn(self) -> dict[str, Any]:
        """The message in OpenAI's shape without what is unset; parts become lines."""
        parts = self.content
        text = "\n".join(part.text for part in parts) if isinstance(parts, list) else parts
        if text is None and not self.tool_calls:  # templates know none only beside calls
            text = ""
        turn: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": text,
        }
        if self.tool_calls:
            turn["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        for name in ("reasoning_content", "tool_call_id"):
            if (value := getattr(self, name)) is not None:
                turn[name] = value
        return turn

    @property
    def size(self) -> int:
        """Characters that a tokenizer would have to read."""
        parts = self.content
        length = (
            sum(len(one.text) for one in parts) if isinstance(parts, list) else len(parts or "")
        )
        length += len(self.reasoning_content or "")
        return length + sum(len(call.function.arguments) for call in self.tool_calls)
