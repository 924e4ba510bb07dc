"""A service that keeps what IPFS nodes have: the Pinning Service API, version 1
(https://ipfs.github.io/pinning-services-api-spec/, archived in 2026). IPFS Cluster has it too.

A service is told CIDs, and fetches the content itself, which may take hours: that it was told is
enough to go on.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

from chalicelib.resolvers import ResolverError
from chalicelib.resolvers.connections import Server

_SECONDS = 15.0
_ANSWER_LIMIT = 8 << 20
_ALL = "queued,pinning,pinned,failed"
"""Without it only what is pinned is listed."""
_PAGE = 1000
_MARK = "openregistry "
"""Before the names of our pins: others may use the same account, and pin the same content."""


class _Pin(NamedTuple):
    """What a service was asked to keep: ``status`` is queued, pinning, pinned or failed."""

    identifier: str
    status: str


class PinningService:
    """The service at a URL, used by whoever the token is of. Threads may share it."""

    def __init__(self, url: str, token: str) -> None:
        authorization = {"Authorization": f"Bearer {token}"}
        self._server = Server("The pinning service", url, authorization)
        self.name = self._server.name

    def pin(self, cid: str, name: str, origins: Sequence[str]) -> list[str]:
        """Have it keep a CID, unless it does, which nodes at the addresses ``origins`` (20 at most)
        have. Gives the addresses at which it would be reached for that. Raises
        ``ResolverError``."""
        pins = self._pins(cid)
        if any(each.status != "failed" for each in pins):
            return []
        wanted = {"cid": cid, "name": f"{_MARK}{name}"[:255], "origins": list(origins)}
        # One that failed is replaced.
        target = f"/pins/{pins[0].identifier}" if pins else "/pins"
        found = self._ask("POST", target, wanted, 202)
        return [str(address) for address in found.get("delegates") or []]

    def keeps(self, cid: str) -> bool:
        """Whether it keeps a CID, or is about to. Raises ``ResolverError``."""
        return any(each.status != "failed" for each in self._pins(cid))

    def unpin(self, cid: str) -> None:
        """Have it keep a CID for us no longer. Raises ``ResolverError``."""
        for each in self._pins(cid):
            self._ask("DELETE", f"/pins/{each.identifier}", None, 202, 404)

    def _pins(self, cid: str) -> list["_Pin"]:
        """Our pins of a CID."""
        query = urlencode({"cid": cid, "status": _ALL, "limit": _PAGE}, safe=",")
        found = self._ask("GET", f"/pins?{query}", None, 200)
        try:
            return [
                _Pin(str(each["requestid"]), str(each["status"]))
                for each in found["results"]
                if each["pin"]["cid"] == cid and str(each["pin"].get("name")).startswith(_MARK)
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise ResolverError(f"{self.name} answered with something else than pins.") from error

    def _ask(self, method: str, target: str, value: Any, *good: int) -> dict[str, Any]:
        body = b"" if value is None else json.dumps(value).encode()
        kind = {"Content-Type": "application/json"} if body else {}
        answer = self._server.ask(
            method, target, seconds=_SECONDS, limit=_ANSWER_LIMIT, body=body, headers=kind
        )
        try:
            found: dict[str, Any] = json.loads(answer.body or b"{}")
            if answer.status in good and isinstance(found, dict):
                return found
            error = found["error"]
            sentence = f"{error['reason']} {error.get('details') or ''}".strip().rstrip(".")
        except (ValueError, KeyError, TypeError):
            sentence = f"status {answer.status}"
        raise ResolverError(f"{self.name} refused {method} /pins: {sentence}.")
