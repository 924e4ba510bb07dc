"""Lists a page at a time (OCI Distribution 1.1, "Listing Tags"): ``n``, ``last`` and ``Link``."""

import re
from urllib.parse import quote

from chalicelib.http import Query, RegistryError

_COUNT = re.compile(r"[0-9]{1,99}")


def asked(query: Query, default: int, most: int) -> tuple[int, str]:
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
