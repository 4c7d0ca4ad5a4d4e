"""Who may ask: the head of a request, before anything of its body is read."""

import hmac
import ipaddress
import re
from collections.abc import Callable
from email.message import Message as Headers

from ..errors import ApiError
from ..requests.bodies import SNIPPETS_HEADER
from ..settings import ServeSettings

_OTHER_KEY = "X-Api-Key"
_ONCE = (
    "Authorization", "Content-Length", "Host", "Origin", "Transfer-Encoding", SNIPPETS_HEADER,
    _OTHER_KEY,
)  # fmt: skip
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:@/\\,\[\]]+)(:\d{1,5})?", re.IGNORECASE)
_DIGITS = re.compile(r"[ \t]*[0-9]+[ \t]*")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def check_head(headers: Headers) -> None:
    """Raises ApiError for headers that two programs could read differently.

    A proxy in front may take the first of two lengths or keys, and this server the last; or see a
    header where a line is only the continuation of another.
    """
    for name in _ONCE:
        if len(headers.get_all(name, [])) > 1:
            raise ApiError(400, f"The header {name} is there twice.", code="bad_header")
    if headers.defects or any(_CONTROL.search(str(value)) for value in headers.values()):
        raise ApiError(400, "A header is malformed, or goes over lines.", code="bad_header")
    if headers["Transfer-Encoding"] is not None:
        raise ApiError(411, "The request needs a Content-Length.", code="length_required")
    length = headers["Content-Length"]
    if length is not None and not _DIGITS.fullmatch(length):
        raise ApiError(400, "Content-Length is not a number.", code="bad_length")


def authorize(headers: Headers, settings: ServeSettings, *, needs_key: bool = True) -> None:
    """Raises ApiError unless a request comes from where it may, and has the key if it needs it."""
    origin, allowed = headers.get("Origin"), settings.allowed_origins
    known = origin is None or "*" in allowed or origin in allowed or _is_own(origin, headers)
    if not known:
        raise ApiError(
            403, "Web pages of this origin may not call: see --allowed-origins.", code="bad_origin"
        )
    if settings.api_key is None:
        _check_host(headers, settings)
        return
    if not needs_key:
        return
    # The key's own bytes: a header is read as Latin-1, whatever it was written in.
    scheme, _, given = _sent_key(headers).partition(" ")
    key = settings.api_key.encode()
    same = hmac.compare_digest(given.strip(" \t").encode("latin-1", "replace"), key)
    if scheme.lower() != "bearer" or not same:
        raise ApiError(
            401,
            "The API key is missing or wrong. Send it as Authorization: Bearer KEY, or X-Api-Key.",
            code="invalid_api_key",
        )


def _is_own(origin: str, headers: Headers) -> bool:
    """Whether a page is this server's own: of the address that it asks.

    That address is checked as well, or else there is a key.
    """
    return origin.partition("://")[2].lower() == headers.get("Host", "").strip().lower() != ""


def _sent_key(headers: Headers) -> str:
    """The key as OpenAI's clients send it, or as Anthropic's do."""
    usual = headers.get("Authorization")
    return f"Bearer {headers.get(_OTHER_KEY, '')}" if usual is None else usual


def _check_host(headers: Headers, settings: ServeSettings) -> None:
    """A page whose name was made to mean this machine (DNS rebinding) asks under its own name.

    Browsers always name a host. Programs that do not are not what is kept out here, nor are
    those that have the API key.
    """
    host = headers.get("Host")
    if host is None or "*" in settings.allowed_hosts:
        return
    found = _HOST.fullmatch(host.strip())
    name = found[1].strip("[]").rstrip(".").lower() if found else ""
    own = {"localhost", settings.host.lower(), *(h.lower() for h in settings.allowed_hosts)}
    everywhere = _is_address(settings.host, lambda a: a.is_unspecified)
    if name not in own and not _is_address(name, lambda a: everywhere or a.is_loopback):
        raise ApiError(
            403,
            "This server does not answer under the name in Host: see --allowed-hosts.",
            code="bad_host",
        )


IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def _is_address(name: str, fits: Callable[[IpAddress], bool]) -> bool:
    """Whether a name is an IP address, which no name service was asked for, and one that fits."""
    try:
        return fits(ipaddress.ip_address(name))
    except ValueError:
        return False
