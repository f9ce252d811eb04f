"""What the lines of an input are: requests as OpenAI's batch files have them, or plain rows."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tpuinfer.errors import ConfigError
from tpuinfer.offline.template import Template

TASKS = ("completion", "chat", "embedding")


@dataclass(frozen=True)
class Form:
    """How lines become requests; `Form()` reads OpenAI's lines, and nothing is added to them.

    With `prompt_field` or `template` every line is a plain row: an object of fields.

    Attributes:
      prompt_field: the field that is the prompt.
      template: text with {field} in it, see `template`; not both.
      task: what a plain row asks for.
      system: the system message of each chat.
      id_field: the field that is the custom_id of a plain row; without it they are row-1, row-2 ...
      defaults: body fields that hold where a line does not have them.

    Raises:
      ConfigError: fields that do not go together, or a template that cannot be read.
    """

    prompt_field: str | None = None
    template: str | None = None
    task: Literal["completion", "chat", "embedding"] = "completion"
    system: str | None = None
    id_field: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            near = difflib.get_close_matches(str(self.task), TASKS, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"task is {self.task!r}: it must be one of {', '.join(TASKS)}; nearest: {near}"
            )
        if self.prompt_field is not None and self.template is not None:
            raise ConfigError(
                f"prompt field {self.prompt_field!r} and a template are given: give one of them; "
                f"the template {{{self.prompt_field}}} is the same as the prompt field"
            )
        if self.system is not None and self.task != "chat":
            raise ConfigError(f"a system message is given for {self.task}: it goes with task chat")
        if not self.plain:
            for name, value in (("an id field", self.id_field), ("a system message", self.system)):
                if value is not None:
                    raise ConfigError(
                        f"{name} is given: it goes with plain rows; give a prompt field or a "
                        "template, too"
                    )
        if self.template is not None:
            Template(self.template)

    @property
    def plain(self) -> bool:
        """Whether the lines are plain rows."""
        return self.prompt_field is not None or self.template is not None
