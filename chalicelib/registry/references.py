"""Names of repositories and tags (OCI Distribution 1.1, "Pulling manifests"), and the paths and
header fields that hold them."""

import re
from urllib.parse import quote

from chalicelib.http import ManifestInvalid, NameInvalid, Query, RegistryError
from chalicelib.settings import Settings

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_COUNT = re.compile(r"[0-9]{1,99}")
LONGEST_NAME = 255


def checked_name(name: str) -> str:
    """The name of a repository. Raises ``NameInvalid``."""
    if len(name) > LONGEST_NAME:
        raise NameInvalid(f"A repository's name has at most {LONGEST_NAME} characters.")
    if _NAME.fullmatch(name) is None:
        raise NameInvalid(
            "A repository's name is made of lower-case letters and digits, with single separators"
            " (. _ __ -) between them, and slashes between its components.",
            {"name": name},
        )
    return name


def is_tag(text: str) -> bool:
    """Whether this can be a tag."""
    return _TAG.fullmatch(text) is not None


def checked_tag(text: str) -> str:
    """A tag to be written. Raises ``ManifestInvalid``."""
    if not is_tag(text):
        raise ManifestInvalid(
            "A tag has at most 128 letters, digits, underscores, dots and dashes, and begins with"
            " none of the last two.",
            {"tag": text[:256]},
        )
    return text


def page(query: Query, default: int, most: int) -> tuple[int, str]:
    """How many entries a list may have (``n``), and after which it goes on (``last``)."""
    last = query.get("last", "")
    if not last.isprintable():
        raise RegistryError(
            "The list goes on after last, which must be an entry of it.", code="NAME_INVALID"
        )
    if "n" not in query:
        return default, last
    if _COUNT.fullmatch(query["n"]) is None:
        raise RegistryError(
            "The page size n must be a whole number.",
            {"n": query["n"][:64]},
            code="PAGINATION_NUMBER_INVALID",
        )
    return min(int(query["n"]), most), last


def next_page(path: str, **parameters: object) -> tuple[str, str]:
    """The ``Link`` field (RFC 8288) to a list's next page."""
    query = "&".join(
        f"{name}={quote(str(value), safe='')}" for name, value in parameters.items() if value != ""
    )
    return "Link", f'<{path}?{query}>; rel="next"'


def location(settings: Settings, path: str) -> tuple[str, str]:
    """The ``Location`` field: a path, or a URL where the registry knows its public one."""
    return "Location", f"{settings.public_url}{path}"
