"""The files of the page, as they are sent."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

_FOLDER = Path(__file__).parent / "web"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
HEADERS = {
    "Content_Security_Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "X_Content_Type_Options": "nosniff",
    "Referrer_Policy": "no-referrer",
    "Cross_Origin_Opener_Policy": "same-origin",
    "Cross_Origin_Resource_Policy": "same-origin",
    "Cache_Control": "no-cache",
}
INDEX = "index.html"


class PageFile(NamedTuple):
    """A file of the page, and its content type."""

    body: bytes
    kind: str


@cache
def page_files() -> dict[str, PageFile]:
    """All of them, by name."""
    return {
        path.name: PageFile(path.read_bytes(), _KINDS[path.suffix])
        for path in _FOLDER.iterdir()
        if path.suffix in _KINDS
    }
