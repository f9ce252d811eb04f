"""What a model may call, what it called, and whether it must."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Tool:
    """A function that the model may ask for.

    Attributes:
      name: letters, digits, `_`, `-`, `.`.
      description: what the model is told.
      parameters: a JSON schema of an object.
      strict: in an answer that may also be text (choice "auto"), calls must still conform to the
        schema. Calls that are required conform whether or not their tool is strict.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        """`parameters`, as a schema that only objects satisfy; without any: the empty object."""
        if not self.parameters:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object", **self.parameters}

    def for_template(self) -> dict[str, Any]:
        """The form that chat templates know."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters) or {"type": "object", "properties": {}},
        }
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolCall:
    """One call of a finished answer.

    Attributes:
      index: its place among the calls of the answer.
      id: by which the tool's result names it.
      name: of the tool.
      arguments: JSON text of an object.
    """

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ToolChoice:
    """Whether an answer calls tools.

    Attributes:
      kind: none: it must not, and calls are read as text. auto: the model decides. required: it
        calls at least one. named: it calls `name`.
      name: of the tool, for named.
    """

    kind: Literal["none", "auto", "required", "named"] = "auto"
    name: str = ""

    @property
    def forces(self) -> bool:
        """True if the answer must call a tool."""
        return self.kind in ("required", "named")

    def among(self, tools: Sequence[Tool]) -> list[Tool]:
        """Those of `tools` that an answer may call."""
        if self.kind == "none":
            return []
        return [tool for tool in tools if self.kind != "named" or tool.name == self.name]
