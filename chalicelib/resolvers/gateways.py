"""IPFS gateways: HTTP servers at which everybody finds content by its CID
(https://specs.ipfs.tech/http-gateways/trustless-gateway/). Nothing that they say is believed."""

import threading
from functools import cached_property
from typing import TYPE_CHECKING

from chalicelib.resolvers import NotThere, ResolverError
from chalicelib.resolvers.blocks import BLOCK_LIMIT

if TYPE_CHECKING:
    from urllib3 import PoolManager

_RAW = "application/vnd.ipld.raw"
_CONNECT_SECONDS, _READ_SECONDS = 3.0, 10.0
_CONNECTIONS = 16
_lock = threading.Lock()
_known: dict[str, "Gateway"] = {}


class Gateway:
    """A ``blocks.Source`` at a URL, before ``/ipfs/CID``. Redirects are not followed."""

    def __init__(self, url: str) -> None:
        self.name = url.rstrip("/")

    def block(self, cid: str) -> bytes:
        """One block, as the gateway gives it. Raises ``ResolverError``."""
        from urllib3.exceptions import HTTPError

        try:
            answer = self._pool.request(
                "GET",
                f"{self.name}/ipfs/{cid}?format=raw",
                headers={"Accept": _RAW},
                preload_content=False,
                decode_content=False,
                redirect=False,
                retries=False,
            )
            try:
                if answer.status in (404, 410, 412, 504):
                    raise NotThere(f"The gateway {self.name} does not find {cid}.")
                if answer.status != 200:
                    raise ResolverError(f"The gateway {self.name} answered {answer.status}.")
                block = answer.read(BLOCK_LIMIT + 1)
                if len(block) > BLOCK_LIMIT:
                    raise ResolverError(f"The gateway {self.name} gave more than a block.")
                return block
            finally:
                # One that was not read to its end cannot be used again.
                answer.close() if answer.length_remaining else answer.release_conn()
        except HTTPError as error:
            name = type(error).__name__
            raise ResolverError(f"The gateway {self.name} is out of reach: {name}.") from error

    @cached_property
    def _pool(self) -> "PoolManager":
        from urllib3 import PoolManager, Timeout

        timeout = Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS)
        return PoolManager(maxsize=_CONNECTIONS, timeout=timeout)


def gateway(url: str) -> Gateway:
    """The gateway at a URL: one for each, with its connections."""
    with _lock:
        return _known.setdefault(url, Gateway(url))
