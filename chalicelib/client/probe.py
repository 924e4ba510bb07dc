"""A registry, tried as a client would use it: one signs in, pushes a tiny image, pulls it back."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from chalicelib.client.credentials import Credentials
from chalicelib.client.names import Registry
from chalicelib.client.ordinary_upload import with_query
from chalicelib.client.remote import Remote, RemoteError, Reply

SIGN_IN, PUSH, PULL = "sign-in", "push", "pull"
STEPS = (SIGN_IN, PUSH, PULL)
"""What is tried, in this order. After one that fails none is."""

TAG = "probe"
SECONDS = 30.0
"""No request begins later than so long after the first."""
_SILENCE = 10.0
_LAYER = 1024  # bytes, of which no two probes have the same
_CONFIG = b"{}"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_OCTETS = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True)
class Outcome:
    """What came of it: milliseconds of each step that worked, and of the one that failed, if one
    did, the status of the answer (0: none came), the code in it, and a sentence for whoever runs
    the registry."""

    milliseconds: dict[str, float] = field(default_factory=dict)
    failed: str | None = None
    status: int = 0
    code: str = ""
    error: str = ""


def probe(registry: Registry, repository: str, credentials: Credentials | None) -> Outcome:
    """Try a registry. What was pushed is deleted, and left to collection."""
    milliseconds: dict[str, float] = {}
    with Remote(registry, credentials) as remote:
        visit = _Visit(remote, repository)
        steps: tuple[Callable[[], None], ...] = (visit.sign_in, visit.push, visit.pull)
        for name, step in zip(STEPS, steps, strict=True):
            began = time.monotonic()
            try:
                step()
            except RemoteError as error:
                return Outcome(milliseconds, name, error.status, error.code, error.sentence)
            milliseconds[name] = (time.monotonic() - began) * 1000
    return Outcome(milliseconds)


class _Visit:
    """One image's way there and back. Every method raises ``RemoteError``."""

    def __init__(self, remote: Remote, repository: str) -> None:
        self._remote = remote
        self._path = f"/v2/{repository}"
        self._scope = f"repository:{repository}:pull,push,delete"
        self._until = time.monotonic() + SECONDS
        self._layer = os.urandom(_LAYER)
        self._manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": _descriptor("application/vnd.oci.empty.v1+json", _CONFIG),
                "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", self._layer)],
            }
        ).encode()

    def sign_in(self) -> None:
        self._ask("GET", "/v2/").check(200)

    def push(self) -> None:
        # The same each time: it is there already but for the first time, and is kept by this.
        if self._ask("HEAD", self._blob(_CONFIG)).status != 200:
            self._upload(_CONFIG)
        self._upload(self._layer)
        self._ask(
            "PUT", f"{self._path}/manifests/{TAG}",
            headers={"Content-Type": _MANIFEST}, body=self._manifest,
        ).check(201)  # fmt: skip

    def pull(self) -> None:
        reply = self._ask("GET", f"{self._path}/manifests/{TAG}", headers={"Accept": _MANIFEST})
        _compare(reply, self._manifest, "the manifest")
        _compare(self._ask("GET", self._blob(self._layer)), self._layer, "the layer")
        self._ask("DELETE", f"{self._path}/manifests/{_digest(self._manifest)}").check(202)

    def _upload(self, content: bytes) -> None:
        begun = self._ask("POST", f"{self._path}/blobs/uploads/").check(202)
        target = with_query(begun.location, digest=_digest(content))
        self._ask("PUT", target, headers=_OCTETS, body=content).check(201)

    def _blob(self, content: bytes) -> str:
        return f"{self._path}/blobs/{_digest(content)}"

    def _ask(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> Reply:
        if time.monotonic() > self._until:
            raise RemoteError(f"It took more than {SECONDS:.0f} s.")
        # Once: what a client tries again has failed all the same.
        return self._remote.send(
            method, path, headers=headers, body=body, scope=self._scope, attempts=1,
            silence=_SILENCE,
        )  # fmt: skip


def _compare(reply: Reply, sent: bytes, what: str) -> None:
    if reply.check(200).body != sent:
        raise RemoteError(f"The bytes of {what} are not those that were pushed.", reply.status)


def _descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(content), "size": len(content)}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
