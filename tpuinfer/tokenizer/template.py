"""Chat templates: the jinja2 programs that turn messages into one prompt text.

They come from the model directory only, never from a request, and run in jinja2's immutable
sandbox: no attribute access beyond plain data, no mutation, and bounds on what it makes.
The names a template may use are those Hugging Face documents for `apply_chat_template`.
"""

import datetime
import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser

from tpuinfer.errors import RequestError, TokenizerError
from tpuinfer.tokenizer.sandbox import Sandbox

CLOCK = "strftime_now"
"""What a template calls that writes the date, with a form of strftime."""


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks answers for training; here: its contents."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as an instance attribute)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """One template of one model.

    Args:
      source: the jinja2 text.
      special_tokens: "bos_token", "eos_token", ... -> text, as the template sees them.
      name: what to call it in errors.

    Attributes:
      source: the jinja2 text.

    Raises:
      TokenizerError: `source` is not a template.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        name: str = "chat template",
    ) -> None:
        self.source = source
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            self._reads = jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise TokenizerError(
                f"{name}: line {error.lineno}: {error.message}; it must be a jinja2 template"
            ) from error
        except Exception as error:  # Python refuses what jinja2 lets pass: depth, huge numbers
            reason = f"{type(error).__name__}: {_one_line(error)}"
            raise TokenizerError(
                f"{name}: Python cannot compile it ({reason}); nearest: less nesting, or "
                "smaller numbers"
            ) from error
        self._special_tokens = dict(special_tokens or {})

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """The prompt text for `messages`.

        Args:
          tools: what the model may call, as JSON schemas; None or empty = nothing.
          extra: further variables of the template; CLOCK among them goes by its own time, and need
            not be read.

        Raises:
          RequestError: the template has no use for the tools or for a variable, refuses the
            messages, or fails on them.
        """
        if tools:
            self._check_reads("tools")
        for name in extra:
            if name != CLOCK:
                self._check_reads(name)
        variables = {"documents": None, **self._special_tokens, **extra, "tools": tools or None}
        variables["messages"] = [dict(message) for message in messages]
        variables["add_generation_prompt"] = add_generation_prompt
        try:
            return self._template.render(variables)
        except Exception as error:  # a template is a program: it may fail in any way on odd input
            raise RequestError(
                f"the model's chat template refuses these messages: {_one_line(error)}",
                param="messages",
            ) from error

    def _check_reads(self, name: str) -> None:
        """Refuse what the template would drop without a word."""
        if name in self._reads:
            return
        known = sorted(self._reads - {"messages", "add_generation_prompt"})
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"nearest: {near[0]}" if near else f"it reads {', '.join(known) or 'messages only'}"
        raise RequestError(f"the model's chat template takes no {name}; {hint}", param=name)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _environment() -> Sandbox:
    environment = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals[CLOCK] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as the model saw it in training: jinja2's own filter would escape HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
