"""Grammars of answers that call tools, in the model's own way of writing.

In the syntax of llguidance's Lark: `<[7]>` is the control token 7, `%json` a JSON schema, a rule
that is `lazy` ends as early as it can. The grammar room checks the schemas.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tpuinfer.dialog.formats import Format
from tpuinfer.dialog.tools import Tool, ToolChoice
from tpuinfer.errors import RequestError
from tpuinfer.grammar.guide import Guide

MAX_CALLS = 16
"""Calls of one answer that are forced."""

_OF_KEYWORDS = ("type", "properties", "required", "additionalProperties", "$defs", "definitions")
_ANNOTATIONS = ("title", "description", "$schema", "strict")


def guide_of(
    form: Format,
    tools: Sequence[Tool],
    choice: ToolChoice,
    *,
    parallel: bool = True,
    prompt_end: str = "",
) -> Guide | None:
    """What makes an answer call tools, with arguments that satisfy their schemas.

    For "required" and "named" the answer is calls and nothing else, but for reasoning before them
    where the format has some (none where the prompt has closed it). It may be as long as the answer
    may: a count of its characters would cost the lexer a state for each. For
    "auto" there is no guide, unless a tool is strict: then every call after the model's marker
    conforms to its schema, that of any tool, and text goes as it likes.

    Args:
      parallel: whether there may be several calls; a named tool is called once.
      prompt_end: the last characters of the prompt, control tokens shown.

    Raises:
      RequestError: the format is not known, cannot hold these schemas, or has no marker by which
        an answer that may also be text could be guided.
    """
    offered = choice.among(tools)
    strict = choice.kind == "auto" and any(tool.strict for tool in offered)
    if not offered or not (choice.forces or strict):
        return None
    form.check_tools()
    grammar = _Grammar(form, offered)
    if strict:
        return Guide("grammar", grammar.auto(), "tools")
    many = parallel and choice.kind == "required"
    return Guide("grammar", grammar.forced(MAX_CALLS if many else 1, prompt_end), "tools")


class _Grammar:
    """The rules for the calls of some tools in one format."""

    def __init__(self, form: Format, tools: Sequence[Tool]) -> None:
        self._form = form
        self._rules: list[str] = []
        for number, tool in enumerate(tools):
            self._rules.append(f"call_{number}: {self._call(tool, number)}")
        self._rules.append(f"call: {' | '.join(f'call_{number}' for number in range(len(tools)))}")

    def forced(self, most: int, prompt_end: str) -> str:
        """Calls, one to `most` of them, after reasoning where there may be some."""
        start = f"start: {self._reasoning(prompt_end)} {self._calls(most)}"
        return "\n".join([start, *self._rules])

    def auto(self) -> str:
        """Text, in which what follows the first marker of a call is one."""
        form = self._form
        if form.unmarked or form.style == "harmony":
            raise RequestError(
                f"tools: strict tools need tool_choice required or a named tool with {form.name}: "
                "without a marker before a call nothing says where to be strict",
                param="tools",
            )
        opener = form.opens[0]
        body = self._block(MAX_CALLS)
        if opener in form.controls:
            start = [f"start: TEXT ({self._mark(opener)} {body} TEXT)*", r"TEXT: /(?s:.*)/"]
        else:
            plain = _regex(opener)
            start = [
                f"start: reach {body} start | REST",
                f"reach[lazy]: /(?s:.*){plain}/",
                f"REST: /(?s:.*)/ & ~/(?s:.*){plain}(?s:.*)/",
            ]
        return "\n".join([*start, *self._rules])

    def _mark(self, text: str) -> str:
        """A marker: the control token if it is one, else its characters."""
        token = self._form.controls.get(text)
        return json.dumps(text, ensure_ascii=False) if token is None else f"<[{token}]>"

    def _reasoning(self, prompt_end: str) -> str:
        form = self._form
        if form.style == "harmony":
            return self._harmony_reasoning()
        if form.thinking is None or form.closed(prompt_end):
            return ""
        opens, closes = form.thinking
        thought = self._until(closes)
        if form.opened(prompt_end):
            return f"{thought} BLANKS"
        return f"({self._mark(opens)} {thought} BLANKS)?"

    def _until(self, closes: str) -> str:
        """Some text that ends in the marker `closes`."""
        self._rules.append(r"BLANKS: /\n{0,2}/")
        if closes in self._form.controls:
            self._rules.append("THOUGHT: /(?s:.*)/")
            return f"THOUGHT {self._mark(closes)}"
        self._rules.append(f"thought[lazy]: /(?s:.*){_regex(closes)}/")
        return "thought"

    def _harmony_reasoning(self) -> str:
        before = [self._mark("<|channel|>"), '"analysis"', self._mark("<|message|>")]
        after = [self._mark("<|start|>"), '"assistant"']
        return f"({' '.join([*before, self._until('<|end|>'), *after])})?"

    def _calls(self, most: int) -> str:
        """All the calls of an answer, markers included."""
        form = self._form
        if form.style == "harmony":
            return "call"
        if form.unmarked:
            return self._block(most)
        one = f"{self._mark(form.opens[0])} {self._block(most if form.listed else 1)}"
        again = "" if form.style == "named" else r'"\n" '
        more = "" if form.listed or most == 1 else f" ({again}{one}){{0,{most - 1}}}"
        return one + more

    def _block(self, most: int) -> str:
        """What stands between the markers."""
        form = self._form
        if form.style == "named" and not form.listed:
            return "call"
        separator = ", " if form.listed else "; " if form.unmarked else None
        if separator is None:
            return rf'"\n" call "\n" {self._mark(form.closes[0])}'
        calls = "call" + (f' ("{separator}" call){{0,{most - 1}}}' if most > 1 else "")
        if not form.listed:
            return calls
        close = [self._mark(mark) for mark in form.closes[:1] if mark == "<|/tool_call|>"]
        return " ".join(['"["', calls, '"]"', *close])

    def _call(self, tool: Tool, number: int) -> str:
        form = self._form
        if form.style == "pythonic":
            return f'{_text(tool.name + "(")} ({self._keywords(tool, number)}) ")"'
        schema = tool.schema
        self._rules.append(f"args_{number}: %json {json.dumps(schema)}")
        if form.style == "harmony":
            head = [self._mark("<|channel|>"), _text(f"commentary to=functions.{tool.name} ")]
            head += [self._mark("<|constrain|>"), '"json"', self._mark("<|message|>")]
            return f"{' '.join(head)} args_{number}"
        if form.style == "named" and not form.listed:
            return f"{_text(tool.name)} {self._mark('[ARGS]')} args_{number}"
        head_text = f'{{"name": {json.dumps(tool.name)}, "{form.arguments_key}": '
        return f'{_text(head_text)} args_{number} "}}"'

    def _keywords(self, tool: Tool, number: int) -> str:
        """`a=..., b=...`: required ones first, each value by its own schema."""
        schema = tool.schema
        named = schema.get("properties", {})
        odd = sorted(set(schema) - {*_OF_KEYWORDS, *_ANNOTATIONS})
        odd += [name for name in named if not name.isidentifier() or not name.isascii()]
        odd += sorted(set(schema.get("required", ())) - set(named))
        if odd:
            raise RequestError(
                f"tools: the parameters of {tool.name} have {', '.join(odd)}, which calls written "
                "as f(a=1) cannot hold; nearest: plain properties",
                param="tools",
            )
        shared: dict[str, Any] = {
            key: schema[key] for key in ("$defs", "definitions") if key in schema
        }
        must: list[str] = []
        may: list[str] = []
        for place, (name, own) in enumerate(named.items()):
            rule = f"arg_{number}_{place}"
            self._rules.append(f"{rule}: {_text(name + '=')} %json {_value(own, shared)}")
            (must if name in schema.get("required", ()) else may).append(rule)
        first = ' ", " '.join(must)
        rest = [f'(", " {rule})?' for rule in may]
        if must:
            return " ".join([first, *rest])
        return " | ".join(
            [*(f"{rule} {' '.join(rest[at + 1 :])}" for at, rule in enumerate(may)), '""']
        )


def _value(schema: Any, shared: Mapping[str, Any]) -> str:
    """The schema of one argument on its own."""
    whole = {} if schema is True else schema
    return json.dumps({**shared, **whole} if isinstance(whole, dict) else whole)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _regex(text: str) -> str:
    """A pattern of just `text`, between slashes."""
    return "".join(f"\\{char}" if char in "/.*+?()[]{}|^$\\" else char for char in text)
