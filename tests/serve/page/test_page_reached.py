"""The page where things are hard: a key, a server that dies, a keyboard, a screen reader."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import PageUser, tab
from serving import ANSWER, FACT, QUESTION, Client, builtin_pair, free_port, server

from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

pytestmark = pytest.mark.browser
pytest_plugins = ["page_fixtures"]


def test_a_server_that_dies_and_comes_back_costs_no_message(user: PageUser, tmp_path: Path) -> None:
    port, folder = free_port(), tmp_path / "memories"
    serve = ("--port", port, "--memory-dir", folder)
    with server(*serve, log=tmp_path / "first.log") as (process, url):
        user.go(url, "survivor")
        user.say(FACT)
        process.kill()
        process.wait()
        user.send(QUESTION)
        user.see("#connection", "The server does not answer.")
        user.see(".turn[data-is=gone] .why", "The server does not answer.")
        assert user.page.locator("#undo").is_disabled()
        user.page.fill("#message", "a draft")
        assert user.page.locator("#send").is_disabled()
    with server(*serve, log=tmp_path / "second.log"):
        user.see("#status", "The server is back.")
        user.see(".note", "The server has lost the context.")
        assert user.text("#connection") == ""
        user.page.click(".turn[data-is=gone] button:text-is('Try again')")
        user.see(".turn[data-is=kept] .answer >> nth=1", ANSWER)
        assert user.page.input_value("#message") == "a draft"
        user.settled()
        user.see_figure("Turns", "2")
        user.see("#names [aria-current] .what", "survivor")


def test_a_connection_that_breaks_within_an_answer_is_said(user: PageUser, tmp_path: Path) -> None:
    from test_page_in_a_browser import endless

    with server("--memory-dir", tmp_path / "memories", log=tmp_path / "log") as (process, url):
        user.go(url, "broken")
        user.page.route("**/v1/chat/completions", endless)
        user.send(FACT)
        user.page.wait_for_selector(".turn[data-is=running] .answer > .text:not(:empty)")
        process.kill()
        user.see(".turn[data-is=gone] .why", "The server does not answer.")
        user.see(".turn[data-is=gone] .said", FACT)


def test_a_key_is_asked_for_once_and_kept_in_the_tab(
    user: PageUser, context: "BrowserContext", problems: list[str]
) -> None:
    settings = ServeSettings(port=0, api_key="sésame", one_chat=True)
    with Server(*builtin_pair(), "builtin", settings) as keyed:
        user.page.goto(keyed.url)
        user.see("#dialog-title", "This server asks for a key")
        user.page.fill("#dialog-input", "wrong")
        user.page.click("#dialog-yes")
        user.see("#dialog-text", "That was not it.")
        user.page.fill("#dialog-input", "sésame")
        user.page.click("#dialog-yes")
        user.see("#model", "builtin")
        user.open("locked")
        user.say(FACT)
        user.page.reload()
        user.see("#model", "builtin")
        assert ANSWER in user.say(QUESTION)
        assert user.page.evaluate("JSON.stringify(localStorage)").find("same") < 0
        other = tab(context, problems)
        other.page.goto(keyed.url)
        other.see("#dialog-title", "This server asks for a key")
        other.page.keyboard.press("Escape")
        other.see("#status", "The API key is missing or wrong.")


def test_all_of_it_can_be_done_with_the_keyboard(user: PageUser, url: str) -> None:
    user.go(url)
    keyboard = user.page.keyboard
    user.page.focus("#name")
    keyboard.type("keys")
    keyboard.press("Enter")
    user.see("#title", "keys")
    user.page.wait_for_selector("#message:focus")
    keyboard.type("anna lives")
    keyboard.press("Shift+Enter")
    keyboard.type("in oslo .")
    keyboard.press("Enter")
    user.settled()
    assert user.text(".turn .said .text") == "anna lives\nin oslo ."
    user.page.wait_for_selector("#message:focus")
    places = []
    user.page.evaluate("document.activeElement.blur()")
    for _ in range(14):
        keyboard.press("Tab")
        places.append(user.page.evaluate("document.activeElement.id"))
    order = [p for p in places if p in ("name", "import", "drop", "undo", "fork", "message")]
    assert order == ["name", "import", "drop", "undo", "fork", "message"]
    user.page.focus("#delete")
    keyboard.press("Enter")
    user.see("#dialog-title", "Delete keys?")
    keyboard.press("Escape")
    assert user.page.evaluate("document.activeElement.id") == "delete"
    assert Client(url).memory("GET", "keys").status == 200


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_reader_of_screens_finds_nothing_wrong(user: PageUser, url: str, scheme: str) -> None:
    axe_of = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe").Axe
    axe = axe_of()
    user.page.emulate_media(color_scheme=scheme)

    def check(where: str) -> None:
        found = axe.run(user.page).response
        assert len(found["passes"]) > 10
        bad = [
            f"{where}: {v['id']} {v['impact']} {[n['html'] for n in v['nodes']]}"
            for v in found["violations"]
            if v["impact"] in ("serious", "critical")
        ]
        assert not bad, "\n".join(bad)

    user.go(url)
    check("empty")
    user.open(f"seen {scheme}")
    user.say(FACT)
    user.page.click("#drop")
    user.say(QUESTION)
    check("turns")
    user.page.click("#fork")
    user.page.wait_for_selector("#dialog[open]")
    check("dialog")
    user.page.keyboard.press("Escape")
    user.page.set_viewport_size({"width": 400, "height": 780})
    user.page.click("#inside > summary")
    check("narrow")


def test_a_narrow_window_scrolls_in_one_direction(user: PageUser, url: str) -> None:
    user.page.set_viewport_size({"width": 320, "height": 600})
    user.go(f"{url}/#narrow{'w' * 80}")
    user.say(f"{'anna' * 60} {FACT}")
    user.page.click("#memories > summary")
    user.page.click("#inside > summary")
    root = "document.scrollingElement"
    assert user.page.evaluate(f"{root}.scrollWidth") <= 320
    for place in ("#message", "#drop", "#delete", "#name"):
        user.page.locator(place).scroll_into_view_if_needed()
        box = user.page.locator(place).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 320, place
