"""The parts of a body that ask for structured output, and what they make: one `Guide`."""

import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tpuinfer.grammar.guide import Guide, GuideKind
from tpuinfer.server.fields import Neutral, StrictBody, Text, refusal, worded

Schema = Annotated[dict[str, Any] | Text, worded("must be a JSON schema: an object, or its text")]
Choices = Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=1, fail_fast=True)]


class JsonSchema(StrictBody):
    """OpenAI's wrapping of a schema; every schema is followed to the letter, `strict` or not."""

    name: Text | None = None
    description: Text | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(StrictBody):
    """What the text of an answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            word = "missing" if self.json_schema is None else "set"
            message = f'response_format.json_schema is {word}: it goes with type "json_schema" only'
            raise refusal(message, "json_schema", "invalid_value")
        return self

    def guide(self) -> Guide | None:
        if self.json_schema is not None:
            return Guide("json_schema", json.dumps(self.json_schema.schema_), "response_format")
        return Guide("json_object", "", "response_format") if self.type == "json_object" else None


class StructuredOutputs(StrictBody):
    """vLLM's newer spelling of the `guided_` fields; one of its fields, not several."""

    neutral: ClassVar[Neutral] = {
        "structural_tag": (),
        "disable_fallback": (False,),
        "disable_any_whitespace": (False,),
        "disable_additional_properties": (False,),
        "whitespace_pattern": (),
    }

    json_: Schema | None = Field(None, alias="json")
    regex: Text | None = None
    choice: Choices | None = None
    grammar: Text | None = None
    json_object: bool | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [self.json_, self.regex, self.choice, self.grammar, self.json_object or None]
        if sum(one is not None for one in given) > 1:
            message = "structured_outputs has several conditions: give one of them"
            raise refusal(message, "", "invalid_value")
        return self

    def guide(self) -> Guide | None:
        param = "structured_outputs"
        if self.json_object:
            return Guide("json_object", "", param)
        return _guide(param, self.json_, self.regex, self.choice, self.grammar)


class GuidedBody(StrictBody):
    """The ways of asking for structured output that both endpoints have; at most one at once."""

    response_format: ResponseFormat | None = None
    guided_json: Schema | None = Field(None, description="A JSON schema.")
    guided_regex: Text | None = Field(None, description="Rust's syntax, no look-around.")
    guided_choice: Choices | None = None
    guided_grammar: Text | None = Field(None, description="Lark's syntax.")
    structured_outputs: StructuredOutputs | None = None

    @model_validator(mode="after")
    def _one_condition(self) -> Self:
        given = [guide.param for guide in self._guides()]
        if len(given) > 1:
            message = f"{given[0]} and {given[1]} are both set: give one of them"
            raise refusal(message, given[1], "invalid_value")
        return self

    def guide(self) -> Guide | None:
        """What the answer must conform to, if anything."""
        return next(iter(self._guides()), None)

    def _guides(self) -> list[Guide]:
        found: list[Guide | None] = [
            self.response_format.guide() if self.response_format else None,
            _guide("guided_json", schema=self.guided_json),
            _guide("guided_regex", regex=self.guided_regex),
            _guide("guided_choice", choice=self.guided_choice),
            _guide("guided_grammar", grammar=self.guided_grammar),
            self.structured_outputs.guide() if self.structured_outputs else None,
        ]
        return [guide for guide in found if guide is not None]


def _guide(
    param: str,
    schema: dict[str, Any] | str | None = None,
    regex: str | None = None,
    choice: list[str] | None = None,
    grammar: str | None = None,
) -> Guide | None:
    """The one that is not None, as a guide."""
    texts: dict[GuideKind, str | None] = {
        "json_schema": json.dumps(schema) if isinstance(schema, dict) else schema,
        "regex": regex,
        "choice": None if choice is None else json.dumps(choice),
        "grammar": grammar,
    }
    return next(
        (Guide(kind, text, param) for kind, text in texts.items() if text is not None), None
    )
