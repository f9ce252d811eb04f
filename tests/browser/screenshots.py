"""Make the README's pictures of the chat page: `python tests/browser/screenshots.py URL`.

URL is a running server's, such as http://127.0.0.1:8000/ after `scripts/serve`.
"""

import sys
from pathlib import Path
from typing import Any

from conftest import FLAGS, chromium_path
from hands import finished, say, wait_until
from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent / "screenshots"
QUESTION = "Why is the sky blue? Answer in a few short points."
SHORT_QUESTIONS = ("What is the capital of France?", "Name three things to see there.")
CODE_QUESTION = "Show a short Python function that computes a factorial."
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
PATIENCE_SECONDS = 120.0


def main(url: str) -> None:
    """Talk once at each size and keep what is seen."""
    FOLDER.mkdir(exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium_path(), args=list(FLAGS))
        desktop = _open(browser, url, **DESKTOP)
        _ask(desktop, QUESTION, 1)
        _ask(desktop, CODE_QUESTION, 2)
        desktop.screenshot(path=FOLDER / "desktop.png")
        desktop.get_by_role("button", name="Settings").click()
        desktop.screenshot(path=FOLDER / "settings.png")
        phone = _open(browser, url, color_scheme="dark", **PHONE)
        for count, question in enumerate(SHORT_QUESTIONS, 1):
            _ask(phone, question, count)
        phone.screenshot(path=FOLDER / "phone.png")
        browser.close()


def _open(browser: Any, url: str, **context: Any) -> Any:
    page = browser.new_page(**context)
    page.goto(url)
    wait_until(lambda: page.locator("#model").input_value(), "the server", PATIENCE_SECONDS)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("temperature").fill("0")
    page.get_by_label("max_tokens").fill("220")
    page.keyboard.press("Escape")
    return page


def _ask(page: Any, question: str, count: int) -> None:
    say(page, question)
    finished(page, count, seconds=PATIENCE_SECONDS)
    page.locator("body").click(position={"x": 1, "y": 1})


if __name__ == "__main__":
    main(sys.argv[1])
