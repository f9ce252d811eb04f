import json
import random
from typing import Any

import jsonschema
import pytest
from guided import Spelled, accepts, matcher_of, walk
from schemas import schema as made_up

from tpuinfer.errors import RequestError
from tpuinfer.grammar.compiler import GrammarCompiler
from tpuinfer.grammar.guide import Guide
from tpuinfer.grammar.schema import ANNOTATIONS, ENFORCED, FORMATS, MAX_DEPTH, read
from tpuinfer.testing.fake import FakeTokenizer

# keyword: (a schema, texts that conform, texts that do not). Each pair differs by it alone.
CASES: dict[str, tuple[Any, list[str], list[str]]] = {
    "$defs": ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}, ["null"], ["1"]),
    "$ref": ({"anyOf": [{"type": "null"}, {"items": {"$ref": "#"}, "type": "array"}]},
             ["null", "[[null]]"], ["1", "[1]"]),
    "additionalProperties": ({"type": "object", "additionalProperties": {"type": "null"}},
                             ['{"a": null}'], ['{"a": 1}']),
    "allOf": ({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 4}]}, ["3", "4"],
              ["2", "5"]),
    "anyOf": ({"anyOf": [{"const": 1}, {"const": "a"}]}, ["1", '"a"'], ["2", '"b"']),
    "const": ({"const": {"a": [1, None]}}, ['{"a": [1, null]}'], ['{"a": [1]}', "{}"]),
    "definitions": ({"$ref": "#/definitions/a", "definitions": {"a": {"const": 5}}}, ["5"],
                    ["6"]),
    "enum": ({"enum": ["a", 2, None]}, ['"a"', "2", "null"], ['"b"', "3"]),
    "exclusiveMaximum": ({"type": "number", "exclusiveMaximum": 2}, ["1.5", "-7"], ["2", "2.5"]),
    "exclusiveMinimum": ({"type": "number", "exclusiveMinimum": 2}, ["2.5", "30"], ["2", "-3"]),
    "format": ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2024-13-01"', '"x"']),
    "items": ({"type": "array", "items": {"type": "null"}}, ["[]", "[null]"], ["[1]"]),
    "maxItems": ({"type": "array", "maxItems": 1}, ["[]", "[1]"], ["[1, 1]"]),
    "maxLength": ({"type": "string", "maxLength": 1}, ['""', '"a"', '"\\n"'], ['"ab"']),
    "maxProperties": ({"type": "object", "maxProperties": 1}, ["{}", '{"a": 1}'],
                      ['{"a": 1, "b": 1}']),
    "maximum": ({"type": "integer", "maximum": 5}, ["5", "-10"], ["6", "10"]),
    "minItems": ({"type": "array", "minItems": 1}, ["[1]"], ["[]"]),
    "minLength": ({"type": "string", "minLength": 1}, ['"a"'], ['""']),
    "minProperties": ({"type": "object", "minProperties": 1}, ['{"a": 1}'], ["{}"]),
    "minimum": ({"type": "integer", "minimum": 5}, ["5", "10"], ["4", "-9"]),
    "multipleOf": ({"type": "integer", "multipleOf": 3}, ["0", "9", "12"], ["4", "10"]),
    "oneOf": ({"oneOf": [{"type": "null"}, {"type": "boolean"}]}, ["null", "true"], ["1"]),
    "pattern": ({"type": "string", "pattern": "b+"}, ['"abba"', '"b"'], ['"a"']),
    "patternProperties": ({"type": "object", "patternProperties": {"^a": {"type": "null"}}},
                          ['{"ab": null, "b": 1}'], ['{"ab": 1}']),
    "prefixItems": ({"type": "array", "prefixItems": [{"type": "null"}], "items": False},
                    ["[null]", "[]"], ["[1]", "[null, 1]"]),
    "properties": ({"type": "object", "properties": {"a": {"type": "null"}}},
                   ['{"a": null}', "{}"], ['{"a": 1}']),
    "required": ({"type": "object", "required": ["a"]}, ['{"a": 1}'], ["{}", '{"b": 1}']),
    "type": ({"type": ["integer", "null"]}, ["1", "null"], ['"a"', "1.5"]),
}  # fmt: skip

REFUSED = """
    $anchor $dynamicAnchor $dynamicRef $vocabulary additionalItems contains dependencies
    dependentRequired dependentSchemas else if maxContains minContains not nullable propertyNames
    then unevaluatedItems unevaluatedProperties uniqueItems x-guidance made_up
""".split()  # noqa: SIM905


def validate(text: str, condition: Any) -> None:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(condition, format_checker=checker).validate(json.loads(text))


@pytest.mark.parametrize("keyword", sorted(ENFORCED))
def test_every_keyword_that_is_taken_is_enforced(keyword: str) -> None:
    condition, good, bad = CASES[keyword]
    for text in good:
        validate(text, condition)
        assert accepts("json_schema", json.dumps(condition), text), text
    for text in bad:
        with pytest.raises(jsonschema.ValidationError):
            validate(text, condition)
        assert not accepts("json_schema", json.dumps(condition), text), text


@pytest.mark.parametrize("keyword", sorted(ANNOTATIONS))
def test_annotations_change_nothing(keyword: str) -> None:
    assert accepts("json_schema", json.dumps({"type": "null", keyword: "x"}), "null")
    assert not accepts("json_schema", json.dumps({"type": "null", keyword: "x"}), "1")


@pytest.mark.parametrize("keyword", REFUSED)
@pytest.mark.parametrize("place", ["{}", '{"properties": {"not": {}}}', '{"$defs": {"a": {}}}'])
def test_every_other_keyword_is_refused_by_name(keyword: str, place: str) -> None:
    whole = json.loads(place)
    inner = next(iter(next(iter(whole.values()), {"": whole}).values()))
    inner[keyword] = {}
    with pytest.raises(RequestError, match=f"has {keyword.replace('$', '[$]')} ") as caught:
        read(json.dumps(whole), "response_format")
    assert caught.value.param == "response_format"


def test_the_standard_has_no_keyword_that_is_not_decided_here() -> None:
    known = {*ENFORCED, *ANNOTATIONS, *REFUSED, "$schema", "$id"}
    metas = [jsonschema.Draft202012Validator.META_SCHEMA, *_vocabularies()]
    standard = {name for meta in metas for name in meta.get("properties", {})}
    assert len(standard) > 50
    assert standard - known - {"$recursiveAnchor", "$recursiveRef"} == set()


def _vocabularies() -> list[dict[str, Any]]:
    from jsonschema_specifications import REGISTRY

    return [REGISTRY.contents(uri) for uri in REGISTRY if "draft/2020-12/meta" in uri]


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ({"not": {}, "items": {"uniqueItems": True}}, "has not, uniqueItems (first at #/not)"),
        ({"$ref": "https://example.org/s.json"}, "nothing is fetched from a URL"),
        ({"$ref": "#name"}, "begin with #/"),
        ({"type": "string", "format": "iri"}, "format \"iri\" at # is not enforced"),
        ({"type": "integer", "format": "int32"}, "must be one of: date"),
        ({"type": "array", "items": [{}]}, "nearest: prefixItems"),
        ({"minimum": True}, "#/minimum must be a number"),
        ({"exclusiveMinimum": True}, "#/exclusiveMinimum must be a number"),
        ({"maxLength": -1}, "#/maxLength must be a count"),
        ({"maxLength": 1.5}, "#/maxLength must be a count"),
        ({"required": "a"}, "#/required must be a list of strings"),
        ({"required": [1]}, "#/required must be a list of strings"),
        ({"properties": {"a": 1}}, "#/properties/a must be an object or a boolean"),
        ({"anyOf": [1]}, "#/anyOf/0 must be an object or a boolean"),
        ({"type": 1}, "#/type must be a type"),
        ({"enum": "a"}, "#/enum must be a list"),
        ({"$ref": 1}, "#/$ref must be a string"),
        ({"format": 1}, "#/format must be a string"),
        ({"$schema": "http://json-schema.org/draft-04/schema#"}, "nearest: leave it out"),
        ({"type": "object", "minProperties": 3, "required": ["a"]}, "nearest: 2"),
        ([], "no object"),
        (False, "no text conforms"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_schema_is_said_in_one_line(condition: Any, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(json.dumps(condition), "response_format")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_depth_is_limited() -> None:
    def nested(levels: int) -> str:
        return '{"items":' * levels + "{}" + "}" * levels

    read(nested(MAX_DEPTH - 1), "x")
    with pytest.raises(RequestError, match=f"more than {MAX_DEPTH} levels"):
        read(nested(MAX_DEPTH + 1), "x")


@pytest.mark.parametrize("text", ["NaN", '{"minimum": Infinity}', "", "{"])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="no valid JSON"):
        read(text, "x")


def test_schema_and_id_at_the_top_and_extensions_are_left_out() -> None:
    named = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "http://a/b"}
    assert read(json.dumps(named | {"x-order": 1}), "x") == {"x-order": 1}
    whole = named | {"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}
    assert accepts("json_schema", json.dumps(whole), "null")
    assert not accepts("json_schema", json.dumps(whole), "1")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_walks_through_a_format_have_it(name: str) -> None:
    matcher = matcher_of("json_schema", json.dumps({"type": "string", "format": name}))
    rng, texts = random.Random(name), []
    for _ in range(4):
        taken = walk(matcher, rng, (0,), 128, most=400)
        texts += [] if taken is None else ["".join(map(chr, taken))]
        matcher = matcher_of("json_schema", json.dumps({"type": "string", "format": name}))
    for text in texts:
        validate(text, {"type": "string", "format": name})
    assert texts


def test_strings_escape_what_must_be_and_nothing_that_is_no_character() -> None:
    for good in (r'"\n\t\"\\/"', r'"\u0001"', '"/"'):
        assert accepts("json_schema", '{"type": "string"}', good)
    for bad in (r'"\ud800"', r'"\x41"', '"\n"', '"\x01"'):
        assert not accepts("json_schema", '{"type": "string"}', bad)


WORDS = [b'{"', b'": ', b'": "', b'", "', b'"}', b'"]', b", ", b"true", b"false", b"null", b"ab",
         b"12", b"k1", b"k2", b'"k', b"}}", b"\n  ", b'"}\n', b"\xc3\xa9", b"\xe2\x82",
         b"\xac"]  # fmt: skip


@pytest.mark.parametrize("tokens", [FakeTokenizer(), Spelled(WORDS)], ids=["letters", "words"])
def test_walks_through_200_schemas_conform(tokens: FakeTokenizer) -> None:
    compiler = GrammarCompiler(tokens, tokens.vocab_size)
    rng = random.Random(7)
    whole = 0
    for _ in range(200):
        condition = made_up(rng)
        grammar = compiler.compile(Guide("json_schema", json.dumps(condition)))
        taken = walk(grammar.matcher(), rng, (0,), tokens.vocab_size)
        if taken is None:
            continue
        whole += 1
        validate(b"".join(map(tokens.token_bytes, taken)).decode(), condition)
    assert whole > 150
