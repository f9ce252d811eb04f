"""Answers in channels: the harmony format of gpt-oss.

An answer is messages: a header, <|message|>, a body, and a mark that ends it. The header names the
channel - analysis (reasoning), commentary (calls, and words to the user between them), final (the
answer) - and for a call its recipient, `to=functions.NAME`.
"""

import re

from tpuinfer.dialog.blocks import Calls
from tpuinfer.dialog.formats import HARMONY_MARKS
from tpuinfer.dialog.json_text import JsonFaultError, JsonScanner
from tpuinfer.dialog.marks import Marks
from tpuinfer.dialog.pieces import Content, Reasoning

_MAX_HEADER = 600
_RECIPIENT = re.compile(r"\bto=functions\.([\w.\-]{1,256})")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


class HarmonyReader:
    """Reads one answer into the pieces of `calls`. The prompt has ended in <|start|>assistant."""

    def __init__(self, calls: Calls, tools: bool) -> None:
        self._calls = calls
        self._tools = tools
        self._marks = Marks(HARMONY_MARKS)
        self._text = ""
        self._header = ""
        self._in_body = False
        self._kind: type[Content] | type[Reasoning] = Content
        self._scanner: JsonScanner | None = None
        self._empty_call = False

    def push(self, text: str) -> None:
        text, at = self._text + text, 0
        while at < len(text):
            end, mark = self._marks.find(text, at)
            if not mark:
                end = self._marks.safe(text, at)
            self._take(text[at:end])
            at = end + len(mark)
            if not mark:
                break
            self._mark(mark)
        self._text = text[at:]

    def finish(self) -> None:
        self._take(self._text)
        self._text = ""
        if self._in_body:
            self._end_body()
        elif "<|" not in self._header:
            self._give(self._header)
        self._header = ""

    def _take(self, text: str) -> None:
        if not self._in_body:
            self._take_header(text)
        elif self._scanner is not None:
            self._take_arguments(self._scanner, text)
        else:
            self._give(text)

    def _take_header(self, text: str) -> None:
        """A header that grows too long, or never began, is text: no message has such a one."""
        self._header += text
        if len(self._header) > _MAX_HEADER:
            rest, self._header = self._header, ""
            self._in_body, self._kind, self._scanner = True, Content, None
            self._give(rest)

    def _take_arguments(self, scanner: JsonScanner, text: str) -> None:
        at = 0
        while at < len(text) and not scanner.done:
            if self._empty_call and text[at].isspace():
                at += 1
                continue
            try:
                out, at = scanner.step(text, at)
            except JsonFaultError:
                self._scanner, self._empty_call = None, False
                self._give(scanner.held + text[at:])
                return
            self._empty_call = False
            self._calls.arguments(out)
        if scanner.done and text[at:].strip():
            self._scanner = None
            self._give(text[at:].lstrip())

    def _mark(self, mark: str) -> None:
        if mark == "<|message|>" and not self._in_body:
            self._begin_body()
        elif mark in ("<|end|>", "<|call|>", "<|return|>", "<|start|>"):
            if self._in_body:
                self._end_body()
            self._in_body, self._header = False, ""
        elif not self._in_body:
            self._take_header(mark)

    def _begin_body(self) -> None:
        channel = _CHANNEL.search(self._header)
        recipient = _RECIPIENT.search(self._header)
        analysis = channel is not None and channel[1] == "analysis"
        self._in_body, self._scanner = True, None
        self._kind = Reasoning if analysis else Content
        if recipient and self._tools:
            self._calls.start(recipient[1])
            self._scanner, self._empty_call = JsonScanner(), True

    def _end_body(self) -> None:
        if self._scanner is not None:
            self._calls.arguments("{}" if self._empty_call else self._scanner.held)
            self._scanner = None

    def _give(self, text: str) -> None:
        if text:
            self._calls.pieces.append(self._kind(text))
