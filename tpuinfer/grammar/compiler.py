"""From what a request asks for to a grammar that answers can follow, within bounds."""

import json
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from tpuinfer.errors import RequestError
from tpuinfer.grammar import lark, schema
from tpuinfer.grammar.guide import Guide
from tpuinfer.grammar.matcher import Grammar, one_line
from tpuinfer.grammar.tokens import Alphabet, TokenSource

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits

MAX_TEXT = 65_536
"""Characters of a guide."""

MAX_CHOICES = 1_024
MAX_CHOICE_LENGTH = 1_024

_CACHED = 32


def _limits() -> "LLParserLimits":
    """Bounds on what one grammar costs.

    The worst guides found take 0.7 s of CPU time to compile or to be refused. By llguidance's own
    figures a mask stops after about 15 ms, and a lexer state takes 1 to 2 kB.
    """
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_items_in_row=2_000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        precompute_large_lexemes=True,
        verbose_errors=False,
    )


class GrammarCompiler:
    """Compiles guides for one model. Threads may share it; the first use builds its alphabet."""

    def __init__(self, tokens: TokenSource, vocab: int) -> None:
        """
        Args:
          tokens: what each id spells.
          vocab: ids that the model scores.
        """
        self._tokens = tokens
        self._vocab = vocab
        self._alphabet: Alphabet | None = None
        self._grammars: OrderedDict[Guide, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, guide: Guide) -> Grammar:
        """The grammar of a guide; those used last are kept.

        Takes milliseconds, and other Python threads run meanwhile; at worst about a second.

        Raises:
          RequestError: the guide is too large or too complex, is not written as its kind asks, or
            asks for what is not enforced or for what no text of this model can satisfy.
        """
        with self._lock:
            if (kept := self._grammars.get(guide)) is not None:
                self._grammars.move_to_end(guide)
                return kept
        text = _source(guide)
        alphabet = self._built()
        grammar = Grammar(alphabet, _start(guide, alphabet, text))
        first = grammar.matcher()
        first.fill(np.zeros((self._vocab + 31) // 32, np.int32))
        if first.error is not None:
            raise RequestError(
                f"{guide.param} cannot be followed: no text of this model conforms to it, or "
                f"finding one costs too much ({first.error}); nearest: a simpler condition",
                param=guide.param,
            )
        with self._lock:
            self._grammars[guide] = grammar
            while len(self._grammars) > _CACHED:
                self._grammars.popitem(last=False)
        return grammar

    def _built(self) -> Alphabet:
        with self._lock:
            if self._alphabet is None:
                alphabet = Alphabet(self._tokens, self._vocab)
                _warm(alphabet)
                self._alphabet = alphabet
            return self._alphabet


def _warm(alphabet: Alphabet) -> None:
    """The first mask of an alphabet prepares tables; 0.1 s or more that no answer should wait."""
    text = lark.rule_of_schema(schema.with_spacing({"type": "object"}))
    matcher = Grammar(alphabet, _start(Guide("json_object"), alphabet, text)).matcher()
    matcher.fill(np.zeros((alphabet.size + 31) // 32, np.int32))


def _start(guide: Guide, alphabet: Alphabet, text: str) -> "LLMatcher":
    from llguidance import LLMatcher

    state = LLMatcher(alphabet.reader, text, log_level=0, limits=_limits())
    if state.is_error():
        raise RequestError(
            f"{guide.param} cannot be compiled: {_reason(state.get_error())}", param=guide.param
        )
    return state


def _reason(message: str) -> str:
    """What llguidance found wrong, in one line with what to do."""
    if "oneOf" in message:
        return (
            "oneOf is enforced only where its options can be seen to exclude each other (other "
            "types, or other constants under a required name); nearest: anyOf"
        )
    if "look-around" in message or "lookaround" in message:
        return "regular expressions have no look-around, \\b or inner anchors; nearest: without it"
    if any(sign in message for sign in ("too big", "too large", "fuel exhausted")):
        return "it is too complex; nearest: fewer alternatives and smaller counted repetitions"
    if message.startswith("Unable to determine"):
        return "its patterns are too complex together; nearest: a single pattern"
    if "unknown special token" in message:
        return one_line(message.partition(";")[0]) + "; nearest: <[id]>, a control token's number"
    return one_line(_error_within(message).rpartition("failed to compile JSON schema: ")[2])


def _error_within(message: str) -> str:
    """The line of a regular expression's parse error that says what is wrong, else everything."""
    found = [line for line in message.splitlines() if line.startswith("error: ")]
    return found[0].removeprefix("error: ") if found else message


def _source(guide: Guide) -> str:
    """The guide as a grammar of llguidance's, checked."""
    if len(guide.text) > MAX_TEXT:
        raise RequestError(
            f"{guide.param} has {len(guide.text)} characters: at most {MAX_TEXT}",
            param=guide.param,
        )
    schema.check_unicode(guide.text, guide.param)
    match guide.kind:
        case "json_object":
            return lark.rule_of_schema(schema.with_spacing({"type": "object"}))
        case "json_schema":
            return lark.rule_of_schema(schema.prepare(guide.text, guide.param))
        case "regex":
            return _regex(guide.text)
        case "choice":
            return lark.rule_of_choices(_choices(guide))
        case "grammar":
            return lark.prepare(guide.text, guide.param)


def _regex(pattern: str) -> str:
    """A grammar of the texts that a pattern matches as a whole."""
    from llguidance import LLMatcher

    whole = json.loads(LLMatcher.grammar_from_regex(pattern))
    for one in whole["grammars"]:
        one["lark_grammar"] = lark.HEADER + one["lark_grammar"]
    return json.dumps(whole)


def _choices(guide: Guide) -> list[str]:
    choices = schema.parse(guide.text, guide.param)
    if not isinstance(choices, list) or not choices:
        message = f"{guide.param} has no choices: it must be a list of one string or more"
        raise RequestError(message, param=guide.param)
    if len(choices) > MAX_CHOICES:
        raise RequestError(
            f"{guide.param} has {len(choices)} choices: at most {MAX_CHOICES}", param=guide.param
        )
    for place, choice in enumerate(choices):
        if not isinstance(choice, str) or not 0 < len(choice) <= MAX_CHOICE_LENGTH:
            raise RequestError(
                f"{guide.param}[{place}] must be a string of 1 to {MAX_CHOICE_LENGTH} characters",
                param=guide.param,
            )
        schema.check_unicode(choice, guide.param)
    return choices
