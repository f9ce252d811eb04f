"""From the fields of a line to the request it is: one `Task` a line, whatever is wrong with it."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from tpuinfer.errors import ConfigError
from tpuinfer.offline.form import Form
from tpuinfer.offline.reading import MAX_LINE_BYTES, Fields, too_long
from tpuinfer.offline.task import LineError, Task
from tpuinfer.offline.template import Template, no_field, text_of

URLS = {
    "completion": "/v1/completions",
    "chat": "/v1/chat/completions",
    "embedding": "/v1/embeddings",
}
MAX_ID_CHARACTERS = 512

_URLS = tuple(URLS.values())
_KEYS = ("custom_id", "method", "url", "body")
_SAME = (
    frozenset({"max_tokens", "max_completion_tokens"}),
    frozenset({"response_format", "structured_outputs"})
    | {f"guided_{kind}" for kind in ("json", "regex", "choice", "grammar")},
)
"""Fields of a body of which only one may be set: a default gives way to the others, too."""

_OF_ANY = ("model",)
"""Fields that a body has whatever it asks for."""

_SHOWN = 80


class Requests:
    """Reads OpenAI's lines: `{"custom_id", "method": "POST", "url", "body"}`.

    A custom_id is text of 1 to 512 characters; other keys are refused by name. What `defaults` has
    is put into a body that does not have it; into one for embeddings, which generate nothing, only
    the model.
    """

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        self._defaults = dict(defaults)
        self._of_any = {name: value for name, value in defaults.items() if name in _OF_ANY}

    def task(self, position: int, where: str, fields: Fields | LineError) -> Task:
        if isinstance(fields, LineError):
            return Task(position, where, None, error=fields)
        custom_id, method, url, body = map(fields.get, _KEYS)
        if not _is_id(custom_id):
            custom_id = None
        try:
            if (
                len(fields) == len(_KEYS)
                and custom_id is not None
                and method == "POST"
                and url in _URLS
                and isinstance(body, dict)
            ):
                return Task(position, where, custom_id, url, self._encoded(url, body))
            raise _fault(fields)
        except LineError as error:
            return Task(position, where, custom_id, error=error)

    def _encoded(self, url: str, body: Mapping[str, Any]) -> bytes:
        defaults = self._of_any if url == URLS["embedding"] else self._defaults
        if not defaults:
            return _dumped(body)
        said = set(body).union(*(same for same in _SAME if not same.isdisjoint(body)))
        kept = {name: value for name, value in defaults.items() if name not in said}
        return _dumped({**kept, **body})


class Rows:
    """Reads plain rows: a prompt out of their fields, and what `form` says for all of them."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._template = None if form.template is None else Template(form.template)
        self._url = URLS[form.task]

    def check(self, known: Sequence[str], where: str) -> None:
        """Refuse a field that no row of `where`, a table, will have.

        Raises:
          ConfigError: it names the field and the nearest that is known.
        """
        for name in (self._form.prompt_field, self._form.id_field):
            if name is not None and name not in known:
                raise ConfigError(no_field(name, known, where))
        if self._template is not None:
            self._template.check(known, where)

    def task(self, position: int, where: str, fields: Fields | LineError) -> Task:
        by_field = self._form.id_field
        custom_id = None if by_field is not None else f"row-{position + 1}"
        if isinstance(fields, LineError):
            return Task(position, where, custom_id, error=fields)
        try:
            if by_field is not None:
                custom_id = _id_of(fields, by_field)
            body = _dumped(self._body(fields))
            return Task(position, where, custom_id, self._url, body, fields)
        except LineError as error:
            return Task(position, where, custom_id, row=fields, error=error)

    def _body(self, fields: Fields) -> Fields:
        form = self._form
        if self._template is not None:
            text = self._template.render(fields)
        else:
            assert form.prompt_field is not None, "a form of plain rows has a prompt"
            text = text_of(fields, form.prompt_field)
        if form.task == "embedding":
            return {**form.defaults, "input": text}
        if form.task == "completion":
            return {**form.defaults, "prompt": text}
        messages = [] if form.system is None else [{"role": "system", "content": form.system}]
        return {**form.defaults, "messages": [*messages, {"role": "user", "content": text}]}


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_ID_CHARACTERS


def _fault(fields: Fields) -> LineError:
    """What is wrong with a line that is no request as it should be."""
    for name in _KEYS:
        if fields.get(name) is None:
            return LineError(_missing(name, fields), code="missing_required_parameter", param=name)
    for name in fields:
        if name not in _KEYS:
            return _unknown(name)
    custom_id, method, url, body = map(fields.get, _KEYS)
    if not isinstance(custom_id, str):
        return _wrong("custom_id", custom_id, "must be text", code="invalid_type")
    if not _is_id(custom_id):
        return _wrong("custom_id", custom_id, _id_rule(custom_id))
    if method != "POST":
        return _wrong("method", method, "must be 'POST'")
    if url not in _URLS:
        near = difflib.get_close_matches(_shown(url), _URLS, n=1, cutoff=0.0)[0]
        rule = f"must be one of {', '.join(_URLS)}; nearest: {near}"
        return _wrong("url", url, rule, code="invalid_url")
    return _wrong("body", body, "must be an object", code="invalid_type")


def _id_rule(custom_id: str) -> str:
    return f"must have 1 to {MAX_ID_CHARACTERS} characters; it has {len(custom_id)}"


def _missing(name: str, fields: Fields) -> str:
    if set(fields).isdisjoint(_KEYS):
        return (
            f"the line has none of {', '.join(_KEYS)}: it is no request; for plain rows give "
            "--prompt-field or --template"
        )
    return f"{name} is missing: a request has {', '.join(_KEYS)}"


def _unknown(name: str) -> LineError:
    near = difflib.get_close_matches(name[:_SHOWN], _KEYS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "a request's own fields stand in its body"
    message = f"unknown key {name[:_SHOWN]!r}: a line has {', '.join(_KEYS)}; {hint}"
    return LineError(message, code="unknown_parameter", param=name[:_SHOWN])


def _id_of(fields: Fields, name: str) -> str:
    """A plain row's own custom_id, text or an integer.

    Raises:
      LineError: it has none that can be one.
    """
    value = fields.get(name)
    if value is None:
        word = "is null" if name in fields else "is missing"
        message = f"field {name!r} {word}: it is the row's custom_id"
        raise LineError(message, code="missing_required_parameter", param=name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _wrong(name, value, "must be text or an integer", code="invalid_type")
    text = str(value)
    if not _is_id(text):
        raise _wrong(name, text, _id_rule(text))
    return text


def _dumped(body: Mapping[str, Any]) -> bytes:
    encoded = orjson.dumps(body)
    if len(encoded) > MAX_LINE_BYTES:
        raise too_long("the request")
    return encoded


def _wrong(name: str, value: Any, rule: str, *, code: str = "invalid_value") -> LineError:
    return LineError(f"{name} is {_shown(value)}: it {rule}", code=code, param=name)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
