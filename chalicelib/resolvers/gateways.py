"""IPFS gateways: HTTP servers at which everybody finds content by its CID
(https://specs.ipfs.tech/http-gateways/trustless-gateway/). Nothing that they say is believed."""

import threading

from chalicelib.resolvers import NotThere, ResolverError
from chalicelib.resolvers.blocks import BLOCK_LIMIT
from chalicelib.resolvers.connections import Server

_RAW = "application/vnd.ipld.raw"
_SECONDS = 15.0
"""How long a gateway may take to find a block, and to send it."""
_NOT_FOUND = (404, 410, 504)
_lock = threading.Lock()
_known: dict[str, "Gateway"] = {}


class Gateway:
    """A ``blocks.Source`` at a URL, before ``/ipfs/CID``. Redirects are not followed."""

    def __init__(self, url: str) -> None:
        self.name = url.rstrip("/")
        self._server = Server("The gateway", url)

    def block(self, cid: str) -> bytes:
        """One block, as the gateway gives it. Raises ``ResolverError``."""
        status, block = self._server.ask(
            "GET",
            f"/ipfs/{cid}?format=raw",
            seconds=_SECONDS,
            limit=BLOCK_LIMIT,
            headers={"Accept": _RAW},
        )
        if status in _NOT_FOUND:
            raise NotThere(f"The gateway {self.name} does not find {cid}.")
        if status != 200:
            raise ResolverError(f"The gateway {self.name} answered {status}.")
        return block


def gateway(url: str) -> Gateway:
    """The gateway at a URL: one for each, with its connections."""
    with _lock:
        if url not in _known:
            _known[url] = Gateway(url)
        return _known[url]
