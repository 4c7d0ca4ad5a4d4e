"""A browser, and a server whose page it opens: `pytest_plugins = ["page_fixtures"]`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from browsing import PageUser, chromium, tab
from serving import builtin_pair

from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def problems() -> Iterator[list[str]]:
    """What browsers complain of; nothing."""
    found: list[str] = []
    yield found
    assert not found


@pytest.fixture
def context(browser: "Browser") -> Iterator["BrowserContext"]:
    """A browser that knows nothing yet."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield context
    context.close()


@pytest.fixture
def user(context: "BrowserContext", problems: list[str]) -> PageUser:
    return tab(context, problems)


@pytest.fixture(scope="module")
def url(browser: "Browser", tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("memories")
    settings = ServeSettings(port=0, memory_dir=folder, wait=0.5)
    with Server(*builtin_pair(), "builtin", settings) as server:
        yield server.url
