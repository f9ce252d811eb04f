"""The prompts of the goldens: short and long, prose, code, scripts, digits, spaces, chats."""

from dataclasses import dataclass

_PLACES = ("the harbour", "the mill", "the library", "the upper field", "the old bridge")
_DEEDS = (
    "counted the boats",
    "wrote down the wind",
    "mended a gate",
    "read the letters aloud",
    "asked for the key",
)
_CODE = '''def running_mean(values, width):
    """Mean of the last `width` values, one result per value."""
    total, results = 0.0, []
    for index, value in enumerate(values):
        total += value
        if index >= width:
            total -= values[index - width]
        results.append(total / min(index + 1, width))
    return results


def test_running_mean():
'''


@dataclass(frozen=True)
class Prompt:
    """A prompt as text, or as chat messages (role, content) for the model's own template."""

    name: str
    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()


def _diary(days: int) -> str:
    """Prose of about 21 tokens a day that never repeats a sentence."""
    return " ".join(
        f"On day {day} we went to {_PLACES[day % 5]} and {_DEEDS[(day * 3 + day // 5) % 5]}, "
        f"{day % 7 + 2} of us in all."
        for day in range(1, days + 1)
    )


def _ledger(rows: int) -> str:
    """Lines of comma-separated numbers, about 20 tokens each, with a header."""
    lines = [f"{row},{row * 37 % 101},{row * row % 997},{row / 8:.3f}" for row in range(rows)]
    return "\n".join(["id,weight,code,share", *lines, ""])


PROMPTS = (
    Prompt("one-word", "Gravity"),
    Prompt("one-letter", "a"),
    Prompt("sentence", "The capital of France is"),
    Prompt("question", "Why is the sky blue during the day and red at sunset?"),
    Prompt("list", "Three things to pack for a walk in the rain:\n1."),
    Prompt("code-python", _CODE),
    Prompt("code-c", "#include <stdio.h>\n\nint main(void) {\n\tfor (int i = 0; i < 10; ++i) {\n"),
    Prompt("json", '{"name": "Ada", "born": 1815, "tags": ["engine", "notes"], "friends": ['),
    Prompt("digits", "3.14159265358979 2.71828182845904 1.41421356237309"),
    Prompt("sums", "12 + 30 = 42\n7 + 8 = 15\n19 + 4 = 23\n31 + 6 ="),
    Prompt("spaces", "  one   two\t\tthree\n\n\n    four \r\n  "),
    Prompt("punctuation", "!!! ... ??? -- (a) [b] {c} <d> ~~ || && $5 #6 @7 %8 ^9 *0"),
    Prompt("accents", "Le cœur a ses raisons : déjà vu, naïve, Ångström, Gdańsk, İstanbul"),
    Prompt("scripts", "日本の首都は東京です。 Привет, мир! مرحبا بالعالم नमस्ते"),
    Prompt("emoji", "I was so happy 🎉👩‍👩‍👧‍👦🇫🇷 that I"),
    Prompt("chat-short", messages=(("user", "What is the capital of France?"),)),
    Prompt(
        "chat-turns",
        messages=(
            ("system", "You answer in one short sentence."),
            ("user", "Name a river in Africa."),
            ("assistant", "The Nile runs through Africa."),
            ("user", "And one in South America?"),
        ),
    ),
    Prompt("long-prose", _diary(30)),
    Prompt("long-table", _ledger(32)),
    Prompt(
        "long-chat",
        messages=(("user", f"Here is a diary.\n\n{_diary(26)}\n\nWhat happened on day 3?"),),
    ),
)
