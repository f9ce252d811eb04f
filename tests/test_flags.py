"""What front doors share: bars where somebody looks, and what a command line may say."""

import io
import sys

import pytest

from tpuinfer import flags
from tpuinfer.errors import ConfigError

CHOICES = ("decode", "prefill")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    return made


def show():
    with flags.Bars() as progress:
        progress("compiling", 1, 2)
        progress("compiling", 2, 2)


def test_a_terminal_gets_bars(terminal):
    show()
    assert "compiling" in terminal.getvalue()


def test_a_file_gets_none(monkeypatch):
    made = io.StringIO()
    monkeypatch.setattr(sys, "stderr", made)
    show()
    assert made.getvalue() == ""


def test_without_rich_there_are_no_bars_and_no_error(terminal, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    show()
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(("words", "choices"), [([], ()), (["prefill"], CHOICES)])
def test_words_that_are_asked_for_pass(words, choices):
    flags._check_words(words, choices)


@pytest.mark.parametrize(
    ("words", "choices", "says"),
    [
        (["hello"], (), "'hello' is not a flag"),
        ([], CHOICES, "say which of decode, prefill"),
        (["prefil"], CHOICES, "nearest: prefill"),
        (["decode", "decode"], CHOICES, "one word too many"),
    ],
)
def test_other_words_are_refused(words, choices, says):
    with pytest.raises(ConfigError, match=says):
        flags._check_words(words, choices)
