"""What a visitor of the chat page does, for the tests of it."""

import time
from collections.abc import Callable
from typing import Any


def say(page: Any, text: str) -> None:
    """Type a message and send it."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answers(page: Any) -> Any:
    return page.locator("li.assistant")


def finished(page: Any, count: int = 1, seconds: float = 20.0) -> list[str]:
    """The texts of the answers, once there are `count` and none is on its way."""
    wait_until(
        lambda: answers(page).count() == count and not page.locator("body.busy").count(),
        f"answer {count}",
        seconds,
    )
    return [one.inner_text() for one in answers(page).locator(".text").all()]


def seen(page: Any, expression: str) -> None:
    """Wait until a JavaScript expression is true; the page's policy forbids it to poll itself."""
    wait_until(lambda: page.evaluate(expression), expression)


def wait_until(condition: Callable[[], object], what: str = "it", seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
