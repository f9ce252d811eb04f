"""Requests to measure with: reproducible, and the same for us and for a peer. No jax."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LENGTHS = ("uniform", "long-tailed")
"""How the lengths of a mix are spread."""


@dataclass(frozen=True)
class Item:
    """One request: the prompt's token ids, and how many tokens to generate, end tokens or not."""

    prompt: tuple[int, ...]
    new_tokens: int


def prompt_ids(tokens: int, vocab: int, seed: int = 0) -> tuple[int, ...]:
    """Random ids below `vocab`."""
    source = random.Random(f"prompt {seed} {tokens}")
    return tuple(source.randrange(vocab) for _ in range(tokens))


def mixed(
    count: int,
    vocab: int,
    *,
    seed: int = 0,
    prompt: tuple[int, int] = (16, 256),
    output: tuple[int, int] = (16, 192),
    lengths: str = "uniform",
) -> list[Item]:
    """Requests of mixed lengths in these ranges, both ends included.

    Args:
      lengths: "uniform": each length is equally likely; "long-tailed": each factor is, so that most
        are short and few are long, as what people ask of a model is.
    """
    source = random.Random(f"mix {seed}")
    draw: Callable[[int, int], int] = source.randint
    if lengths == "long-tailed":

        def draw(low: int, high: int) -> int:
            return round(low * math.exp(source.random() * math.log(high / low)))

    drawn = [(draw(*prompt), draw(*output)) for _ in range(count)]
    return [
        Item(prompt_ids(tokens, vocab, seed=1_000_003 * seed + index), new)
        for index, (tokens, new) in enumerate(drawn)
    ]


def describe(items: Sequence[Item]) -> str:
    """One line for a reader.

    >>> describe([Item((1, 2), 3), Item((4,), 5)])
    '2 requests: prompts of 1 to 2 tokens (3 in all), answers of 3 to 5 (8 in all)'
    """
    prompts = [len(item.prompt) for item in items]
    answers = [item.new_tokens for item in items]
    return (
        f"{len(items)} requests: prompts of {min(prompts)} to {max(prompts)} tokens "
        f"({sum(prompts)} in all), answers of {min(answers)} to {max(answers)} "
        f"({sum(answers)} in all)"
    )


class Blank:
    """A vocabulary without words, for weights that have none: every token is one letter."""

    eos_ids: tuple[int, ...] = ()
    has_text = True

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def detokenizer(
        self, *, skip_special_tokens: bool = True, keep: frozenset[int] = frozenset()
    ) -> "Letters":
        return Letters()


class Letters:
    """Token ids to letters."""

    def push(self, token: int, /) -> str:
        return chr(ord("a") + token % 26)

    def flush(self) -> str:
        return ""
