"""The server's page in headless Chromium, as a person uses it.

`python tests/helpers/browsing.py docs/images/page.png` takes the picture in the docs.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
# What a browser itself writes down of an answer that is no success.
_USUAL = "Failed to load resource"


@contextmanager
def chromium() -> Iterator["Browser"]:
    """The browser; skips where there is none, or nothing to drive it."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: the `browser` extra")
    candidates = (os.environ.get("DELTAMEM_CHROMIUM"), *map(shutil.which, _NAMES), _MAC)
    path = next((path for path in candidates if path and os.access(path, os.X_OK)), None)
    if path is None:
        pytest.skip("no Chromium: apt install chromium, or name it in DELTAMEM_CHROMIUM")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class PageUser:
    """Who has the page open, in a tab.

    Args:
        page (Page): The tab.
        problems (list[str]): What the browser complains of is noted here.
    """

    def __init__(self, page: "Page", problems: list[str]):
        self.page = page
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"a dialog: {dialog.message}"))
        page.on(
            "console",
            lambda message: (
                message.type == "error"
                and not message.text.startswith(_USUAL)
                and problems.append(message.text)
            ),
        )

    def go(self, url: str, name: str = "") -> "PageUser":
        """Open the page, and a memory on it."""
        self.page.goto(url)
        self.see("#model", "builtin")
        if name:
            self.open(name)
        return self

    def open(self, name: str) -> None:
        """Open a memory by typing its name."""
        self.page.fill("#name", name)
        self.page.press("#name", "Enter")
        self.see("#title", name)

    def see(self, selector: str, text: str) -> None:
        """Wait until this text stands there; it has to."""
        self._expect(selector).to_contain_text(text, timeout=20_000)

    def see_no(self, selector: str) -> None:
        """Wait until nothing like this is there."""
        self._expect(selector).to_have_count(0, timeout=20_000)

    def _expect(self, selector: str) -> object:
        from playwright.sync_api import expect

        return expect(self.page.locator(selector))

    def count(self, selector: str) -> int:
        """How many of these there are."""
        return self.page.locator(selector).count()

    def text(self, selector: str) -> str:
        """The text that stands there."""
        return self.page.locator(selector).inner_text()

    def send(self, text: str) -> None:
        """Type a message and press Enter."""
        self.page.fill("#message", text)
        self.page.press("#message", "Enter")

    def say(self, text: str) -> str:
        """Send a message and wait until its turn is kept; returns the answer."""
        from playwright.sync_api import expect

        turns = self.page.locator(".turn")
        before = turns.count()
        self.send(text)
        expect(turns).to_have_count(before + 1, timeout=20_000)
        expect(turns.last).to_have_attribute("data-is", "kept", timeout=30_000)
        self.settled()
        return turns.last.locator(".answer > .text").inner_text()

    def settled(self) -> None:
        """Wait until the page has seen what the memory is now."""
        from playwright.sync_api import expect

        expect(self.page.locator("#undo")).to_be_enabled(timeout=20_000)

    def see_figure(self, name: str, text: str) -> None:
        """Wait for a figure of the memory, by what stands before it."""
        from playwright.sync_api import expect

        place = self.page.locator(f"#figures dt:text-is('{name}') + dd")
        expect(place).to_have_text(text, timeout=20_000)

    def states(self) -> list[list[int]]:
        """What is drawn of the states: the pixels of each picture."""
        self.page.wait_for_timeout(800)  # until the pictures have faded into the new ones
        return self.page.locator(".state canvas").evaluate_all(
            "all => all.map(c => [...c.getContext('2d')"
            ".getImageData(0, 0, c.width, c.height).data])"
        )


def tab(context: "BrowserContext", problems: list[str]) -> PageUser:
    """Another tab."""
    return PageUser(context.new_page(), problems)


def take_picture(path: str) -> None:
    """The page after a few turns with the built-in pair."""
    from serving import FACT, QUESTION, builtin_pair

    from deltamem_mlx.serve.server import Server
    from deltamem_mlx.serve.settings import ServeSettings

    problems: list[str] = []
    with chromium() as browser, Server(*builtin_pair(), "builtin", ServeSettings(port=0)) as server:
        context = browser.new_context(viewport={"width": 1120, "height": 560})
        user = tab(context, problems).go(server.url, "home")
        for text in ("ben is a doctor .", "maria lives in rome .", FACT):
            user.say(text)
        user.page.click("#drop")
        user.say(QUESTION)
        user.states()
        user.page.evaluate("document.activeElement.blur()")
        user.page.mouse.move(0, 0)
        user.page.screenshot(path=path)
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    take_picture(sys.argv[1])
