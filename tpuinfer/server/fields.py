"""What every request body is made of: strict fields, and refusals in our own words.

A field that a body does not have is refused by name, unless its value asks for nothing: null for
any field, and the values of the body's `neutral` table. pydantic's strict mode is on, so "5" is no
number and 1 no boolean. The OpenAPI document says the same, for it is made from the same tables.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

Neutral = Mapping[str, tuple[Any, ...]]
"""Names that are known and not supported -> the values beside null that ask for nothing."""

_SHOWN = 40
"""Characters of a value that an error message quotes."""


def refusal(message: str, param: str, code: str) -> PydanticCustomError:
    """A complaint in our own words about the field `param` of what is being validated."""
    context = {"message": unicode_only(message), "param": unicode_only(param), "code": code}
    return PydanticCustomError("refused", "{message}", context)


def shown(value: object) -> str:
    """A value of a body as JSON has it, cut to a few characters; of a long one nothing is read."""
    text = json.dumps(_cut(value, iter(range(_SHOWN))))
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _cut(value: object, room: Iterator[int]) -> object:
    """The beginning of a value: as many items, all levels together, as `room` has numbers."""
    match value:
        case str():
            return value[:_SHOWN]
        case list():
            return [_cut(one, room) for _, one in zip(room, value, strict=False)]
        case dict():
            items = zip(room, value.items(), strict=False)
            return {key[:_SHOWN]: _cut(one, room) for _, (key, one) in items}
        case _:
            return value


def unicode_only(text: str) -> str:
    """JSON can spell half a character; a question mark stands for it in an answer."""
    return text.encode("utf-8", "replace").decode()


def _whole(text: str) -> str:
    """Refuse half a character, which no tokenizer could read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"character {error.start} is half of a surrogate pair: send valid Unicode"
        raise refusal(message, "", "invalid_unicode") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]
Int = Annotated[int, Field(ge=-(2**63), lt=2**64)]


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included unless `above` says that the lower one is not."""

    low: float
    high: float
    above: bool = False

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        found = handler(schema)
        found.pop("exclusiveMaximum", None)
        found["exclusiveMinimum" if self.above else "minimum"] = self.low
        if self.above:
            found.pop("minimum", None)
        return found | {"maximum": self.high}

    def _check(self, value: float) -> float:
        if (self.low < value if self.above else self.low <= value) and value <= self.high:
            return value
        rule = f"must be in {'(' if self.above else '['}{self.low}, {self.high}]"
        if value > self.high or not self.above:
            rule += f"; nearest: {self.high if value > self.high else self.low}"
        raise PydanticCustomError("out_of_range", "{rule}", {"rule": rule})


class StrictBody(BaseModel):
    """Refuses by name what it does not know, unless the value asks for nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)
    neutral: ClassVar[Neutral] = {}

    @classmethod
    def names(cls) -> set[str]:
        """What the fields are called in a body."""
        return {field.alias or name for name, field in cls.model_fields.items()}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        names, kept = cls.names(), {}
        for name, value in data.items():
            if name in names:
                kept[name] = value
            elif value is not None:
                cls._require_neutral(name, value)
        return {name: value for name, value in kept.items() if value is not None}

    @classmethod
    def _require_neutral(cls, name: str, value: Any) -> None:
        if name not in cls.neutral:
            near = difflib.get_close_matches(name[:_SHOWN], cls.names(), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "leave it out"
            raise refusal(f"unknown parameter {name[:_SHOWN]!r}: {hint}", name, "unknown_parameter")
        allowed = cls.neutral[name]
        if not any(same(value, neutral) for neutral in allowed):
            hint = "leave it out" + "".join(f" or give {shown(one)}" for one in allowed)
            message = f"{name} is {shown(value)}: not supported; {hint}"
            raise refusal(message, name, "unsupported_parameter")

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """As it is read: null for whatever is not required, and what is neutral by its values."""
        found = handler.resolve_ref_schema(handler(schema))
        required = found.get("required", ())
        properties = found.setdefault("properties", {})
        for name, value in properties.items():
            if name not in required:
                properties[name] = _or_null(value)
        for name, allowed in cls.neutral.items():
            properties[name] = {"enum": [*allowed, None], "description": "Not supported."}
        found["additionalProperties"] = {"type": "null"}
        return found


def _or_null(schema: JsonSchemaValue) -> JsonSchemaValue:
    null = {"type": "null"}
    if null in schema.get("anyOf", ()):
        return schema
    about: JsonSchemaValue = {
        key: schema.pop(key) for key in ("title", "description", "default") if key in schema
    }
    members = schema["anyOf"] if set(schema) == {"anyOf"} else [schema]
    return {"anyOf": [*members, null], **about}


def same(value: object, neutral: object) -> bool:
    """Equal as JSON: true is not 1."""
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral


def few(most: int) -> BeforeValidator:
    """Refuse an object of more entries before any of them is looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > most:
            rule = f"has {len(value)} entries: at most {most}"
            raise PydanticCustomError("out_of_range", "{rule}", {"rule": rule})
        return value

    return BeforeValidator(check)


def worded(rule: str) -> WrapValidator:
    """One rule in words for a union, instead of one complaint per member."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            found = error.errors()
            for entry in found:
                if entry["type"] == "refused":
                    raise refusal(**entry["ctx"]) from None
            kind = all(entry["type"].endswith("_type") for entry in found)
            name = "invalid_type" if kind else "out_of_range"
            raise PydanticCustomError(name, "{rule}", {"rule": rule}) from None

    return WrapValidator(check)
