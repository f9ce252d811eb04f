"""The tokenizer of one model: text to ids, ids to text, messages to prompts."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpuinfer.errors import RequestError
from tpuinfer.tokenizer.control import ControlText
from tpuinfer.tokenizer.detokenize import Detokenizer
from tpuinfer.tokenizer.template import ChatTemplate
from tpuinfer.tokenizer.vocabulary import Vocabulary


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary, the special tokens around a text, and a chat template. Threads may share it.

    Attributes:
      vocabulary: the backend.
      bos_id: the token that opens a text, if the model has one.
      eos_ids: every token that ends a text.
      prefix_ids: put before a text by `encode`.
      suffix_ids: put after a text by `encode`.
      template: how messages become a prompt, if the model says.
      tool_template: the same for conversations that offer tools; None = `template`.
      limit: ids that the model has; None = as many as the vocabulary.
    """

    vocabulary: Vocabulary
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    template: ChatTemplate | None = None
    tool_template: ChatTemplate | None = None
    limit: int | None = None

    @property
    def vocab_size(self) -> int:
        """One more than the largest id that has a spelling; a model's V may be padded beyond it."""
        size = len(self.vocabulary.table.pieces)
        return size if self.limit is None else min(size, self.limit)

    @property
    def has_text(self) -> bool:
        """False for a checkpoint without a vocabulary: ids in, ids out, and all texts are empty."""
        return self.vocabulary.has_text

    @property
    def has_chat_template(self) -> bool:
        return self.template is not None

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False
    ) -> list[int]:
        """The ids of `text`.

        Args:
          text: what to encode.
          add_special_tokens: put BOS (and EOS) around it where the model asks for them; a text that
            already begins (ends) with them gets no second one.
          parse_special: control-token text such as "<|im_start|>" becomes that token. Otherwise it
            is plain text like any other: what strangers write can give no control token.

        Raises:
          RequestError: `text` has a lone surrogate, which is no character, or there is no
            vocabulary.
        """
        _check_unicode(text)
        ids = self.vocabulary.encode(text, parse_special=parse_special)
        if not add_special_tokens:
            return ids
        prefix, suffix = list(self.prefix_ids), list(self.suffix_ids)
        if ids[: len(prefix)] != prefix:
            ids = prefix + ids
        if suffix and ids[-len(suffix) :] != suffix:
            ids = ids + suffix
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        detokenizer = self.detokenizer(skip_special_tokens=skip_special_tokens)
        return "".join([*map(detokenizer.push, ids), detokenizer.flush()])

    @property
    def controls(self) -> dict[str, int]:
        """The spelling of each control token -> its id; such as the model has a row for."""
        return {text: i for text, i in self.vocabulary.controls.items() if i < self.vocab_size}

    @property
    def template_source(self) -> str:
        """The jinja2 text that renders conversations with tools; empty without a template."""
        template = self.tool_template or self.template
        return "" if template is None else template.source

    def detokenizer(
        self, *, skip_special_tokens: bool = True, keep: frozenset[int] = frozenset()
    ) -> Detokenizer:
        """A fresh decoder for one row of tokens; control tokens of `keep` are never skipped."""
        return Detokenizer(
            self.vocabulary.table, skip_special_tokens=skip_special_tokens, keep=keep
        )

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token, control tokens included; none for ids outside the vocabulary."""
        pieces = self.vocabulary.table.pieces
        return pieces[token] if 0 <= token < len(pieces) else b""

    @functools.cached_property
    def openers(self) -> Mapping[int, bytes]:
        """The bytes of each token that reads otherwise when it is the first of a text."""
        table = self.vocabulary.table
        without_space = {token: table.pieces[token][1:] for token in table.opening}
        return without_space | dict(table.openers) if table.opening else {}

    def token_text(self, token: int) -> str:
        """One token on its own, as log-probabilities show it: U+FFFD for part of a character."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        """The prompt text for a conversation.

        Args:
          messages: {"role": ..., "content": ...}; content may be a string or a list of
            {"type": "text", "text": ...} parts, which are joined by newlines (as in vLLM).
          tools: what the model may call, as JSON schemas in the form its template knows.
          add_generation_prompt: end with the opening of the assistant's answer.
          extra: further variables of the template (such as enable_thinking).

        Raises:
          RequestError: there is no template or no message, content is not text, the template knows
            no tools or no such variable, or it refuses the messages.
        """
        return self._render(_checked(messages, tools, extra), add_generation_prompt)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> list[int]:
        """The prompt ids for a conversation: as rendered, the template's control tokens parsed.

        The template alone decides on BOS. Control-token text within messages, tools and `extra`
        stays plain text; see `control`.

        Raises:
          RequestError: as for `apply_chat_template` and `encode`.
        """
        given = _checked(messages, tools, extra)
        render = functools.partial(self._render, add_generation_prompt=add_generation_prompt)
        text = render(given)
        _check_unicode(text)
        parts = self._control.cut_rendered(given, text, render)
        if parts is None and not self.vocabulary.reads_variants:
            return self.vocabulary.encode(text, parse_special=True)
        return self.vocabulary.encode_cut(parts or self._control.cut(text))

    @functools.cached_property
    def _control(self) -> ControlText:
        return ControlText(self.vocabulary.controls)

    def _render(self, given: Mapping[str, Any], add_generation_prompt: bool) -> str:
        """The text for what `_checked` made."""
        template = self.tool_template if given["tools"] and self.tool_template else self.template
        if template is None:
            raise RequestError(
                "this model has no chat template, so it takes no messages; nearest: a plain "
                "completion, or --chat-template FILE (chat_template= in Python)",
                param="messages",
            )
        return template.render(
            given["messages"],
            add_generation_prompt=add_generation_prompt,
            tools=given["tools"],
            **given["extra"],
        )


def _checked(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that callers hand to the template, contents as strings."""
    if not messages:
        raise RequestError("messages is empty: at least one is needed", param="messages")
    flat = [_flatten(message, index) for index, message in enumerate(messages)]
    return {"messages": flat, "tools": tools, "extra": dict(extra)}


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"text has the lone surrogate U+{ord(text[error.start]):04X} at character "
            f"{error.start}: it must be valid Unicode; nearest: U+FFFD in its place"
        ) from error


def _flatten(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    """`message` with its content as one string; None (an answer of tool calls) stays."""
    content = message.get("content")
    if isinstance(content, (list, tuple)):
        content = "\n".join(_part_text(part, index) for part in content)
    elif content is not None and not isinstance(content, str):
        raise RequestError(
            f"messages[{index}].content is {type(content).__name__}: "
            "it must be a string or a list of text parts",
            param="messages",
        )
    return {**message, "content": content} if "content" in message else dict(message)


def _part_text(part: Any, index: int) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get("text") if kind == "text" else None
    if not isinstance(text, str):
        raise RequestError(
            f"messages[{index}].content has a part of type {kind!r}: this model reads text; "
            'nearest: {"type": "text", "text": "..."}',
            param="messages",
        )
    return text
