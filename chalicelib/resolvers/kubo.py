"""IPFS, through the RPC of Kubo nodes (https://docs.ipfs.tech/reference/kubo/rpc/)."""

import json
import secrets
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from chalicelib.resolvers import Content, NotThere, ResolverError, Status
from chalicelib.resolvers.unixfs import UNIXFS_V1_2025

if TYPE_CHECKING:
    from urllib3 import PoolManager
    from urllib3.response import BaseHTTPResponse

_CONNECT_SECONDS, _READ_SECONDS = 3.0, 30.0
_CONNECTIONS = 16
_FIND_SECONDS = 10
"""How long a node looks for a block that it does not have itself."""


class Kubo:
    """``Resolver`` on IPFS nodes, whose RPC is at ``nodes``."""

    name = "ipfs"

    def __init__(self, nodes: Sequence[str], gateways: Sequence[str] = ()) -> None:
        self._nodes = [node.rstrip("/") for node in nodes]
        self.gateways = tuple(gateway.rstrip("/") for gateway in gateways)

    def put(self, content: Content) -> str:
        boundary = secrets.token_hex(16)
        profile = UNIXFS_V1_2025
        answer = self._ask(
            "add",
            {
                "cid-version": profile.version,
                "raw-leaves": "true",
                "chunker": f"size-{profile.chunk}",
                "max-file-links": profile.width,
                "pin": "true",
                "quieter": "true",
            },
            body=_form(content, boundary),
            headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
        )
        return str(json.loads(answer.data.splitlines()[-1])["Hash"])

    def status(self, name: str, cid: str) -> Status:
        try:
            self._ask("pin/ls", {"arg": cid, "type": "recursive"})
        except NotThere:
            return Status("missing")
        return Status("there", replicas=1)

    def block(self, cid: str) -> bytes:
        return self._ask("block/get", {"arg": cid, "timeout": f"{_FIND_SECONDS}s"}).data

    def unpin(self, name: str, cid: str) -> None:
        try:
            self._ask("pin/rm", {"arg": cid})
        except NotThere:
            return

    def check(self) -> None:
        self._ask("id", {})

    def _ask(
        self,
        command: str,
        arguments: dict[str, Any],
        *,
        body: Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> "BaseHTTPResponse":
        from urllib3.exceptions import HTTPError

        url = f"{self._nodes[0]}/api/v0/{command}?{urlencode(arguments)}"
        try:
            answer = self._pool.request("POST", url, body=body, headers=headers, retries=False)
        except HTTPError as error:
            raise ResolverError(
                f"The IPFS node is out of reach: {type(error).__name__}."
            ) from error
        if answer.status == 200:
            return answer
        try:
            sentence = str(json.loads(answer.data)["Message"])
        except (ValueError, KeyError, TypeError):
            sentence = f"status {answer.status}"
        if "not pinned" in sentence or "not found" in sentence or "could not find" in sentence:
            raise NotThere(f"The IPFS node has no such content: {sentence}.")
        raise ResolverError(f"The IPFS node refused {command}: {sentence}.")

    @cached_property
    def _pool(self) -> "PoolManager":
        from urllib3 import PoolManager, Timeout

        return PoolManager(
            maxsize=_CONNECTIONS,
            timeout=Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS),
        )


def _form(content: Content, boundary: str) -> Iterator[bytes]:
    """A form with one file (RFC 7578)."""
    yield (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="content"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    yield from map(bytes, content.open())
    yield f"\r\n--{boundary}--\r\n".encode()
