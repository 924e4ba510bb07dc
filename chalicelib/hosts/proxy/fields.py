"""Header fields on their way through the proxy (RFC 9110, section 7.6), and what in them names the
registry."""

import re
from collections.abc import Mapping
from urllib.parse import urljoin, urlsplit

from chalicelib.client.names import Registry

_HOPS = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
"""Fields that are about one connection (RFC 9110, section 7.6.1)."""

_OURS = {"authorization", "content-length", "expect", "host"}
"""Fields of a request that are said anew: Authorization goes to the registry alone."""

_SAID = {"date", "x-request-id"}
"""Fields of an answer that the harness has of its own."""

VERSION = ("Docker-Distribution-Api-Version", "registry/2.0")

_TARGET = re.compile(r"<([^<>]*)>")


def to_registry(fields: Mapping[str, str]) -> dict[str, str]:
    """The fields of a client's request that are the registry's to read."""
    return {name.title(): fields[name] for name in _passed(fields) if name not in _OURS}


def to_client(fields: Mapping[str, str], url: str, registry: Registry) -> list[tuple[str, str]]:
    """The fields of an answer from ``url``, all but WWW-Authenticate, with the proxy in the
    registry's place."""
    kept = []
    for name in _passed(fields):
        value = fields[name]
        if name in _SAID or name == "www-authenticate":
            continue
        if name == "location":
            value = here(value, url, registry)
        elif name == "link":
            value = _TARGET.sub(lambda found: f"<{here(found[1], url, registry)}>", value)
        kept.append((name.title(), value))
    return kept


def here(target: str, url: str, registry: Registry) -> str:
    """Where a client of the proxy finds what an answer from ``url`` points to: here if it is the
    registry's API, else where it is."""
    whole = urljoin(url, target)
    parts = urlsplit(whole)
    if parts.netloc != urlsplit(registry.url).netloc or not parts.path.startswith("/v2/"):
        return whole
    return parts.path + (f"?{parts.query}" if parts.query else "")


def _passed(fields: Mapping[str, str]) -> list[str]:
    """The names, in lower case, of what is for more than one connection."""
    named = {each.strip().lower() for each in fields.get("connection", "").split(",")}
    return [name for name in map(str.lower, fields) if name not in _HOPS | named]
