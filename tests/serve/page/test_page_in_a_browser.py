"""The page in headless Chromium: told, dropped, asked, undone, forked, exported, imported."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import PageUser, tab
from serving import ANSWER, FACT, QUESTION, UNKNOWN, Client, states_in, stream

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Route

pytestmark = pytest.mark.browser
pytest_plugins = ["page_fixtures"]
BEN = "ben is a doctor ."


def endless(route: "Route") -> None:
    """The page's own request, for an answer that goes on."""
    body = json.loads(route.request.post_data) | {
        "max_tokens": 4000,
        "logit_bias": {str(i): -100 for i in range(4)},
    }
    route.continue_(post_data=json.dumps(body))


def test_told_dropped_and_asked_it_answers_from_the_memory(user: PageUser, url: str) -> None:
    user.go(url, "asked")
    user.say(FACT)
    assert user.text(".turn .said .written").strip() == ANSWER
    assert "+13 tokens · oslo 0.66" in user.text(".turn .made")
    user.page.click("#drop")
    user.see(".note", "The context is dropped.")
    assert user.count(".turn.unseen-by-model") == 1
    assert ANSWER in user.say(QUESTION)
    user.see_figure("Turns", "2")
    user.see_figure("Context", "16 tokens")
    assert user.count("#earlier li") == 2
    user.see("#earlier li:last-child", FACT)
    user.see("#names [aria-current] .quiet", "2 turns, 29 tokens")
    user.open("blank")
    user.say(QUESTION)
    user.see(".turn .answer", UNKNOWN)
    user.send(QUESTION)  # the first message again, alone: its answer is asked for again
    user.see(".note", "Asked again: the turn before was taken back for it.")
    user.see("#names [aria-current] .quiet", "1 turn, ")
    assert user.count(".turn") == 1
    user.open("other")
    assert UNKNOWN in user.say(QUESTION)


def test_the_states_change_as_one_talks_and_come_back_with_an_undo(
    user: PageUser, url: str
) -> None:
    user.go(url, "changing")
    user.say(FACT)
    first = user.states()
    assert len(first) == 3 and len({len(pixels) for pixels in first}) == 1
    user.say(BEN)
    second = user.states()
    assert all(a != b for a, b in zip(first, second, strict=True))
    user.page.click("#undo")
    user.see("#status", "Took back the last turn, ")
    assert user.states() == first and user.count(".turn") == 1
    assert user.page.input_value("#message") == BEN  # to be mended
    user.page.fill("#message", "")
    user.page.click("#undo")
    user.see("#status", "Took back the last turn, 13 tokens.")
    user.see("#empty", "Nothing is written yet.")
    user.page.wait_for_selector("#undo[disabled]")
    assert user.count(".turn") == 0
    user.page.click("#redo")
    user.see("#status", "Put back 2 turns, ")
    assert user.states() == second and user.count(".turn") == 2
    assert user.page.locator("#redo").is_disabled() and not user.page.input_value("#message")
    user.page.click("#undo")
    user.see("#status", "Took back the last turn, ")
    user.page.reload()
    user.page.click("#redo")
    user.see("#status", "Put back 1 turn, ")
    assert user.states() == second and user.count(".turn") == 2


def test_a_fork_goes_its_own_way(user: PageUser, url: str) -> None:
    user.go(url, "trunk")
    user.say(FACT)
    user.page.click("#fork")
    user.page.fill("#dialog-input", "trunk")
    user.page.click("#dialog-yes")
    user.see("#dialog-wrong", "There is a memory of that key already.")
    user.page.fill("#dialog-input", "branch")
    user.page.click("#dialog-yes")
    user.see("#title", "branch")
    user.see(".note", "Forked from trunk")
    assert ANSWER in user.say(QUESTION)
    user.page.click("#names button:has-text('trunk')")
    user.see("#title", "trunk")
    user.settled()
    assert user.count(".turn") == 1
    user.see_figure("Turns", "1")


def test_what_is_exported_can_be_imported_and_deleted(
    user: PageUser, url: str, tmp_path: Path
) -> None:
    user.go(url, "kept/../ü")
    user.say(FACT)
    with user.page.expect_download() as download:
        user.page.click("#export")
    assert download.value.suggested_filename == "kept_.._ü.safetensors"
    file = tmp_path / "kept.safetensors"
    download.value.save_as(file)
    states = states_in(Client(url).memory("GET", "kept/../ü", "/export").body)
    for layer, state in states_in(file.read_bytes()).items():
        assert (state == states[layer]).all()
    user.page.set_input_files("#file", file)
    assert user.page.input_value("#dialog-input") == "kept"
    user.page.click("#dialog-yes")
    user.see("#status", "Imported as kept.")
    user.see(".note", "It was told 1 turn, 13 tokens before.")
    assert ANSWER in user.say(QUESTION)
    user.page.set_input_files("#file", file)  # over what is there: asked again
    user.page.click("#dialog-yes")
    user.see("#dialog-title", "Replace kept?")
    user.page.click("#dialog-no")
    user.see_figure("Turns", "2")
    user.page.click("#delete")
    user.see("#dialog-title", "Delete kept?")
    user.page.keyboard.press("Enter")  # the way out has the focus
    assert Client(url).memory("GET", "kept").status == 200
    user.page.click("#delete")
    user.page.click("#dialog-yes")
    user.see("#status", "kept is gone.")
    assert Client(url).memory("GET", "kept").status == 404
    user.see_no("#names button:text-is('kept')")


def test_a_file_that_is_no_memory_is_refused_in_words(
    user: PageUser, url: str, tmp_path: Path
) -> None:
    user.go(url)
    file = tmp_path / "letter.txt"
    file.write_text("dear anna")
    user.page.set_input_files("#file", file)
    user.page.click("#dialog-yes")
    user.see("#status", "memory")
    assert Client(url).memory("GET", "letter.txt").status == 404


def test_a_second_tab_sees_what_the_first_one_says(
    user: PageUser, url: str, context: "BrowserContext", problems: list[str]
) -> None:
    user.go(url, "shared")
    user.say(FACT)
    other = tab(context, problems).go(f"{url}/#shared")
    other.see(".note", "It was told 1 turn, 13 tokens before. Texts are not kept.")
    assert ANSWER in other.say(QUESTION)
    user.see(".note", "It was changed elsewhere: 2 turns, 29 tokens now.")
    user.see_figure("Turns", "2")
    other.page.click("#delete")
    other.page.click("#dialog-yes")
    user.see(".note:last-child", "The server does not have it any more.")
    user.see("#empty", "Nothing is written yet.")
    assert UNKNOWN in user.say(QUESTION)


def test_what_was_said_is_there_after_a_reload_and_not_in_another_tab(
    user: PageUser, url: str, context: "BrowserContext", problems: list[str]
) -> None:
    user.go(url, "reloaded")
    user.say(FACT)
    user.page.reload()
    user.see(".turn .said", FACT)
    assert user.text(".turn .said .written").strip() == ANSWER and user.count(".note") == 0
    other = tab(context, problems).go(f"{url}/#reloaded")
    other.settled()
    assert other.count(".turn") == 0


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "</p></article><h1>x</h1>",
        "javascript:alert(1) &lt;b&gt; \u202eabc",
    ],
)
def test_what_looks_like_a_program_is_text(user: PageUser, url: str, text: str) -> None:
    user.go(url, text)
    user.say(text)
    assert user.text(".turn .said .text") == text and user.text("#title") == text
    assert user.count("#turns script, #turns img, #turns h1, nav img, nav script") == 0
    user.see("#names [aria-current] .what", text)
    user.page.reload()
    user.see(".turn .said .text", text)
    Client(url).memory("DELETE", text)


def test_an_answer_that_is_stopped_stays_as_far_as_it_was_said(user: PageUser, url: str) -> None:
    user.go(url, "stopped")
    user.page.route("**/v1/chat/completions", endless)
    user.send(FACT)
    user.page.wait_for_selector(".turn[data-is=running] .answer > .text:not(:empty)")
    assert user.page.locator("#stop").is_visible() and user.page.locator("#drop").is_disabled()
    user.page.press("#message", "Escape")
    user.see(".turn .why", "Stopped; so far it is kept.")
    user.settled()
    user.see_figure("Turns", "1")
    user.page.unroute("**/v1/chat/completions")
    assert ANSWER in user.say(QUESTION)


def test_leaving_the_page_within_an_answer_loses_no_message(user: PageUser, url: str) -> None:
    user.go(url, "left")
    user.page.route("**/v1/chat/completions", endless)
    user.send(FACT)
    user.page.wait_for_selector(".turn[data-is=running] .answer > .text:not(:empty)")
    user.page.reload()
    user.see(".turn .said", FACT)
    user.page.evaluate("dispatchEvent(new Event('focus'))")
    user.see(".turn[data-is=kept] .why", "but the memory has this turn.")
    user.settled()
    user.see_figure("Turns", "1")
    assert user.count(".note") == 0


def test_another_memory_can_be_opened_within_an_answer(user: PageUser, url: str) -> None:
    user.go(url, "behind")
    user.page.route("**/v1/chat/completions", endless)
    user.send(FACT)
    user.page.wait_for_selector(".turn[data-is=running] .answer > .text:not(:empty)")
    user.page.unroute("**/v1/chat/completions")
    user.open("  ahead ")
    assert user.count(".turn") == 0
    assert UNKNOWN in user.say(QUESTION)
    user.page.click("#names button:has-text('behind')")
    user.see(".turn[data-is=kept] .why", "Stopped; so far it is kept.")
    user.settled()
    assert user.count(".turn") == 1
    user.see_figure("Turns", "1")


def test_what_is_refused_can_be_sent_again_or_mended(user: PageUser, url: str) -> None:
    user.go(url, "busy")
    user.say(BEN)
    endless_body = {
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 4000,
        "logit_bias": {str(i): -100 for i in range(4)},
        "memory": {"session": "busy"},
    }
    answering = stream(_Address(url), endless_body)
    next(answering)  # another program talks to the memory
    user.send(FACT)
    user.see(".turn[data-is=refused] .why", "Another request has been using this memory")
    user.page.click(".turn[data-is=refused] button:text-is('Edit')")
    assert user.page.input_value("#message") == FACT and user.count(".turn") == 1
    user.page.press("#message", "Enter")
    user.see(".turn[data-is=refused] .why", "Another request")
    answering.close()
    user.page.wait_for_timeout(1000)
    user.page.click(".turn[data-is=refused] button:text-is('Try again')")
    user.see(".turn[data-is=kept] .said >> nth=1", FACT)
    user.see_no(".turn[data-is=refused]")


class _Address:
    """Where `serving.stream` connects to."""

    def __init__(self, url: str):
        client = Client(url)
        self.http = self
        self.server_address = (client.host, client.port)


def test_a_memory_whose_name_the_server_has_lost_opens_under_it(
    user: PageUser, url: str, context: "BrowserContext", problems: list[str]
) -> None:
    """A browser that knows the name needs not be told; another is."""
    user.go(url, "named")
    user.say(FACT)
    listed = [
        {"object": "memory", "session": None, "id": Client(url).memory("GET", "named").json["id"]}
    ]
    everywhere = json.dumps({"object": "list", "data": listed})
    context.route("**/v1/memories", lambda route: route.fulfill(body=everywhere))
    knows = tab(context, problems).go(url)
    knows.see("#names button", "named")
    knows.page.evaluate("localStorage.clear()")
    knows.page.reload()
    knows.see("#names button", "Without a name")
    knows.page.click("#names button")
    knows.page.fill("#dialog-input", "other")
    knows.page.click("#dialog-yes")
    knows.see("#dialog-wrong", "This one has another name.")
    knows.page.fill("#dialog-input", "named")
    knows.page.click("#dialog-yes")
    knows.see("#title", "named")
