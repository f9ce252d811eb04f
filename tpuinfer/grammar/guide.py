"""What a text must conform to, as a request says it."""

from dataclasses import dataclass
from typing import Literal

GuideKind = Literal["json_object", "json_schema", "regex", "choice", "grammar"]


@dataclass(frozen=True)
class Guide:
    """A condition on the whole text of an answer.

    Attributes:
      kind: json_object: any JSON object. json_schema: `text` is a JSON schema. regex: `text` is a
        regular expression (Rust's, no look-around). choice: `text` is a JSON list of strings.
        grammar: `text` is a grammar in Lark's syntax.
      text: see `kind`; empty for json_object.
      param: the request's parameter that asked for it, which errors name.
    """

    kind: GuideKind
    text: str = ""
    param: str = "guide"
