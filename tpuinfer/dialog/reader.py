"""From the text of an answer, as it comes, to what it means."""

import secrets
import string
from collections.abc import Callable, Collection

from tpuinfer.dialog.blocks import Block, Calls, JsonCalls, MistralCalls, NotACallError
from tpuinfer.dialog.formats import Format
from tpuinfer.dialog.harmony import HarmonyReader
from tpuinfer.dialog.marks import Marks
from tpuinfer.dialog.pieces import Content, Piece, Reasoning, joined
from tpuinfer.dialog.pythonic import PythonicCalls

_LETTERS = string.ascii_letters + string.digits


class Reader:
    """Splits one answer into content, reasoning and tool calls, in time linear in its length.

    However the text is cut into pushes, the pieces join to the same (`pieces.joined`). Every
    character ends up in a piece, but for the markers, the blanks that follow reasoning and calls,
    those before calls that open an answer, and how a call is written apart from its name and
    arguments.

    Text that only looks like a call is content, its marker included unless that is a control token.
    A call whose name is out stands as far as it was streamed; if it goes on in a way that is not
    JSON, or the answer ends, the rest is content. Text is held back while it may be a marker, and
    within a call until its name and the first character of its arguments are there.

    Args:
      form: how the model writes.
      tools: names of the tools on offer; without any, calls are read as content.
      prompt_end: the last characters of the prompt, control tokens shown: whether it has opened the
        reasoning.
      new_id: makes the ids of calls.
    """

    def __init__(
        self,
        form: Format,
        tools: Collection[str] = (),
        *,
        prompt_end: str = "",
        new_id: Callable[[], str] | None = None,
    ) -> None:
        self._calls = Calls(new_id or (short_id if form.short_ids else long_id), tools)
        self._reader: HarmonyReader | _MarkedReader = (
            HarmonyReader(self._calls, bool(tools))
            if form.style == "harmony"
            else _MarkedReader(form, self._calls, bool(tools), form.opened(prompt_end))
        )

    @property
    def calls(self) -> int:
        """How many calls have begun."""
        return self._calls.count

    def push(self, text: str) -> list[Piece]:
        """What is certain now that the answer goes on with `text`."""
        self._reader.push(text)
        return joined(self._calls.taken())

    def finish(self) -> list[Piece]:
        """The rest, now that the answer has ended."""
        self._reader.finish()
        return joined(self._calls.taken())


def long_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def short_id() -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


class _MarkedReader:
    """Formats in which markers stand around reasoning and calls, in one run of text.

    `_mode` is the method that reads on from here; it takes the text and an index, and gives the
    index that it got to: the same one when it needs more text.
    """

    def __init__(self, form: Format, calls: Calls, tools: bool, opened: bool) -> None:
        self._form = form
        self._calls = calls
        self._tools = tools and form.calls_tools
        self._text = ""
        self._blanks: list[str] = []
        self._block: Block | None = None
        self._may_think = form.thinking is not None
        self._unclosed = False
        self._marker = ""
        self._thinks = Marks(form.thinking[:1] if form.thinking else ())
        self._thought = Marks(form.thinking[1:] if form.thinking else ())
        always = (*(form.opens if self._tools else ()), *form.silent, *form.controls)
        self._open = Marks(always)
        self._close = Marks((*always, *form.closes))
        self._mode: Callable[[str, int], int] = self._lead
        self._first = True
        if opened:
            self._think()

    def push(self, text: str) -> None:
        text, at = self._text + text, 0
        while at < len(text):
            mode, before = self._mode, at
            at = mode(text, at)
            if at == before and self._mode == mode:
                break
        self._text = text[at:]

    def finish(self) -> None:
        text, self._text = self._text, ""
        if self._block is not None:
            self._give(self._back(self._block.finish()) + text)
        elif self._mode in (self._reason, self._begin_reason):
            self._reasoning(text)
        else:
            self._give(("".join(self._blanks) if self._first else "") + text)

    def _lead(self, text: str, at: int) -> int:
        """Blanks before anything else: at the beginning, and after reasoning and calls."""
        char = text[at]
        if char.isspace():
            if self._first:
                self._blanks.append(char)
            return at + 1
        if self._may_think:
            start, mark = self._thinks.find(text, at)
            if mark and start == at:
                self._think()
                return at + len(mark)
            if self._thinks.begins(text, at):
                return at
        if self._tools and self._form.unmarked and char in self._starts:
            self._begin_calls("")
            return at
        if any(text.startswith(mark, at) for mark in self._marks.texts):
            self._mode = self._content
            return at
        if self._marks.begins(text, at):
            return at
        self._give("".join(self._blanks))
        self._blanks, self._first = [], False
        self._may_think = False
        self._mode = self._content
        return at

    @property
    def _starts(self) -> str:
        return "[" if self._form.style == "pythonic" else "{"

    @property
    def _marks(self) -> Marks:
        return self._close if self._unclosed else self._open

    def _think(self) -> None:
        self._may_think, self._first, self._blanks = False, False, []
        self._mode = self._begin_reason

    def _begin_reason(self, text: str, at: int) -> int:
        if text[at].isspace():
            return at + 1
        self._mode = self._reason
        return at

    def _reason(self, text: str, at: int) -> int:
        end, mark = self._thought.find(text, at)
        if mark:
            self._reasoning(text[at:end])
            self._mode = self._lead
            return end + len(mark)
        end = self._thought.safe(text, at)
        self._reasoning(text[at:end])
        return end

    def _content(self, text: str, at: int) -> int:
        end, mark = self._marks.find(text, at)
        if not mark:
            end = self._marks.safe(text, at)
            self._give(text[at:end])
            return end
        self._give(text[at:end])
        if mark in self._form.opens and self._tools:
            self._begin_calls(mark)
        elif mark in self._form.closes:
            self._unclosed = False
            self._mode = self._lead
        return end + len(mark)

    def _begin_calls(self, mark: str) -> None:
        self._marker = "" if mark in self._form.controls else mark
        self._may_think = False
        self._block = _block(self._form, self._calls, sure=bool(mark))
        self._unclosed = bool(mark)
        self._mode = self._read_calls

    def _read_calls(self, text: str, at: int) -> int:
        block = self._block
        assert block is not None, "calls are read in a block"
        count = self._calls.count
        try:
            at = block.feed(text, at)
        except NotACallError as fault:
            self._called(count)
            self._block = None
            self._unclosed = self._unclosed and not self._marker
            self._give(self._back(fault.given_back))
            self._first, self._mode = False, self._content
            return fault.at
        self._called(count)
        if block.done:
            self._block, self._mode, self._first = None, self._lead, False
        return at

    def _called(self, before: int) -> None:
        """Blanks and marker before a call are none of the content once there is a call."""
        if self._calls.count > before:
            self._marker, self._blanks = "", []
            self._first = False

    def _back(self, text: str) -> str:
        """`text`, taken for a call, with what stood before it."""
        before = "".join(self._blanks) + self._marker
        self._blanks, self._marker = [], ""
        return before + text

    def _give(self, text: str) -> None:
        if text:
            self._calls.pieces.append(Content(text))

    def _reasoning(self, text: str) -> None:
        if text:
            self._calls.pieces.append(Reasoning(text))


def _block(form: Format, calls: Calls, sure: bool) -> Block:
    if form.style == "named":
        return MistralCalls(calls)
    if form.style == "pythonic":
        return PythonicCalls(calls, sure)
    return JsonCalls(calls, sure)
