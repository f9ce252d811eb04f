import contextlib
import json
import threading
import time

import pytest
from guided import allowed

from tpuinfer.errors import RequestError
from tpuinfer.grammar.compiler import MAX_CHOICES, MAX_TEXT, GrammarCompiler
from tpuinfer.grammar.guide import Guide, GuideKind
from tpuinfer.testing.fake import FakeTokenizer


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(FakeTokenizer(), 128)


def refusal(compiler: GrammarCompiler, kind: GuideKind, text: str) -> str:
    with pytest.raises(RequestError) as caught:
        compiler.compile(Guide(kind, text, "response_format"))
    assert caught.value.param == "response_format"
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("regex", "(", "unclosed group"),
        ("regex", r"\ba", "no look-around"),
        ("regex", "(?=a)b", "no look-around"),
        ("regex", "a" * (MAX_TEXT + 1), f"at most {MAX_TEXT}"),
        ("regex", "\ud800", "lone surrogate"),
        ("regex", "[^\x00-\x7f]", "cannot be followed"),
        ("choice", "[]", "no choices"),
        ("choice", '{"a": 1}', "no choices"),
        ("choice", '["a", 1]', "response_format[1] must be a string"),
        ("choice", '["a", ""]', "response_format[1] must be a string"),
        ("choice", '["\\ud800"]', "lone surrogate"),
        ("choice", json.dumps(["a"] * (MAX_CHOICES + 1)), f"at most {MAX_CHOICES}"),
        ("grammar", 'root ::= "a"', "GBNF"),
        ("grammar", "start: b", 'unknown name: "b"'),
        ("grammar", "start: <tol>", "unknown special token"),
        ("grammar", "start: a\na: a", "cannot be followed"),
        ("grammar", 'start: a\na[temperature=0.1]: "a"', "temperature"),
        ("grammar", 'start: a\na[max_tokens=3]: "a"', "max_tokens"),
        ("grammar", '%llguidance {}\nstart: "a"', "%llguidance"),
        ("grammar", 'start: %json {"not": {}}', "has not (first at #/not)"),
        ("grammar", "start: %json {", "%json without JSON"),
        ("grammar", 'start: %json {"x-guidance": {"lenient": true}}', "option lenient"),
        ("json_schema", "{", "no valid JSON"),
        ("json_schema", "[" * 60_000, "nested too deeply"),
        ("json_schema", "[]", "no object"),
        ("json_schema", "false", "no text conforms"),
        ("json_schema", '{"$ref": "#"}', "cannot be followed"),
        ("json_schema", '{"$ref": "#/$defs/x"}', "'/$defs/x' does not exist"),
        ("json_schema", '{"type": "string", "pattern": "(?!a)"}', "no look-around"),
        ("json_schema", '{"const": 1, "type": "string"}', "incompatible types"),
        ("json_schema", '{"type": "integer", "multipleOf": 99991, "minimum": 5}', "too complex"),
        ("json_schema", '{"oneOf": [{"minimum": 1}, {"maximum": 2}]}', "nearest: anyOf"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_one_line(
    compiler: GrammarCompiler, kind: GuideKind, text: str, words: str
) -> None:
    assert words in refusal(compiler, kind, text)


HALVES = [{"anyOf": [{"properties": {f"p{i}{j}": {}}} for j in range(4)]} for i in range(8)]
DOUBLED = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(20)}
BOMBS: list[tuple[GuideKind, str]] = [
    ("regex", "a{1,100000}"),
    ("regex", "((a|b)*c){5000}"),
    ("regex", "(a|b)*a(a|b){20}"),
    ("regex", "((a{0,100}){0,100}){0,100}"),
    ("regex", "(.*a){40}"),
    ("choice", json.dumps([f"{n * 7919:07}" * 8 for n in range(MAX_CHOICES)])),
    ("json_schema", json.dumps({"enum": [f"v{n}" for n in range(6000)]})),
    ("json_schema", json.dumps({"allOf": HALVES})),
    ("json_schema", json.dumps({"$ref": "#/$defs/d0", "$defs": DOUBLED | {"d20": {}}})),
    ("json_schema", json.dumps({"properties": {f"k{n}": {} for n in range(2000)}})),
    ("json_schema", json.dumps({"type": "string", "maxLength": 10**9})),
    ("json_schema", json.dumps({"type": "array", "minItems": 10**6})),
    ("json_schema", json.dumps({"type": "integer", "multipleOf": 99991, "minimum": 5})),
    ("json_schema", json.dumps({"items": {"pattern": "(a|b)*a(a|b){14}", "maxLength": 500}})),
    ("grammar", 'start: a\na: a a | "x" | ""'),
]


@pytest.mark.parametrize(("kind", "text"), BOMBS)
def test_a_worst_case_ends_soon_by_compiling_or_by_refusal(
    compiler: GrammarCompiler, kind: GuideKind, text: str
) -> None:
    before = time.thread_time()
    with contextlib.suppress(RequestError):
        compiler.compile(Guide(kind, text))
    assert time.thread_time() - before < 2


def test_compiling_leaves_other_threads_alone(compiler: GrammarCompiler) -> None:
    """Half the time is left to a thread that only counts, or more where there are two cores."""
    pattern = {"type": "integer", "multipleOf": 9973}
    slow = threading.Thread(
        target=compiler.compile, args=[Guide("json_schema", json.dumps(pattern))]
    )
    slow.start()
    count = 0
    while slow.is_alive():
        time.sleep(0.0005)
        count += 1
    assert count >= 3


def test_grammars_are_kept_and_those_used_last_are_kept_longest() -> None:
    compiler = GrammarCompiler(FakeTokenizer(), 128)
    first = compiler.compile(Guide("regex", "a0"))
    assert compiler.compile(Guide("regex", "a0")) is first
    for number in range(1, 32):
        compiler.compile(Guide("regex", f"a{number}"))
    second = compiler.compile(Guide("regex", "a1"))
    assert compiler.compile(Guide("regex", "a0")) is first
    newest = compiler.compile(Guide("regex", "b"))
    assert compiler.compile(Guide("regex", "b")) is newest
    assert compiler.compile(Guide("regex", "a0")) is first
    assert compiler.compile(Guide("regex", "a1")) is second
    assert len(compiler._grammars) == 32


def test_many_threads_share_a_compiler() -> None:
    compiler = GrammarCompiler(FakeTokenizer(), 128)
    masks: list[list[int]] = []

    def work(number: int) -> None:
        grammar = compiler.compile(Guide("regex", f"{'xyz'[number % 3]}a"))
        masks.append(allowed(grammar.matcher()))

    threads = [threading.Thread(target=work, args=[number]) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(masks) == [[120]] * 4 + [[121]] * 4 + [[122]] * 4


def test_a_grammar_says_how_its_schemas_are_spaced(compiler: GrammarCompiler) -> None:
    tight = '{"type": "object", "x-guidance": {"whitespace_flexible": false}}'
    matcher = compiler.compile(Guide("grammar", f"start: %json {tight}")).matcher()
    matcher.take(ord("{"))
    assert allowed(matcher) == [ord('"'), ord("}")]
    loose = compiler.compile(Guide("grammar", 'start: %json {"type": "object"}')).matcher()
    loose.take(ord("{"))
    assert allowed(loose) == [10, 32, ord('"'), ord("}")]
