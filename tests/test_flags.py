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


def shown(stream, monkeypatch):
    """What the bars write when stderr is this stream."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        patch.setenv("TERM", "xterm")
        with flags.Bars() as progress:
            progress("compiling", 1, 2)
            progress("compiling", 2, 2)
    return stream.getvalue()


def test_a_terminal_gets_bars_and_a_file_none(monkeypatch):
    assert "compiling" in shown(Terminal(), monkeypatch)
    assert shown(io.StringIO(), monkeypatch) == ""


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
