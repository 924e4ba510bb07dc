"""A repository at a registry elsewhere, into which blobs and manifests are brought.

For each blob the registry is asked whether the repository has it; then to mount it from any other
repository, without saying which: this registry finds those that the account may pull from, whoever
pushed it there. So nothing need be remembered of which repositories have what, as docker does on
each machine and a machine of CI never can. A registry that wants to be told from where begins an
upload instead, as the specification has it, and nothing is lost but a request.
"""

import re
from typing import Any, Literal
from urllib.parse import quote

from chalicelib.client.manifests import ACCEPT
from chalicelib.client.remote import Remote, Reply

_SCOPE = re.compile(r'scope="([^"]*)"')


class Repository:
    """One repository of a registry. Threads may share it. Whatever fails raises ``RemoteError``."""

    def __init__(self, remote: Remote, name: str) -> None:
        self.name = name
        self._remote = remote
        self._scope = f"repository:{name}:pull,push"

    def ask(self, method: str, path: str, **options: Any) -> Reply:
        """Send a request that has to do with it."""
        return self._remote.send(method, path, scope=self._scope, **options)

    def find(self, digest: str) -> Literal["skipped", "mounted"] | None:
        """Whether it has a blob, or has it now from another repository."""
        reply = self.ask("HEAD", f"/v2/{self.name}/blobs/{digest}")
        if reply.status == 200:
            return "skipped"
        path = f"/v2/{self.name}/blobs/uploads/?mount={quote(digest, safe='')}"
        reply = self.ask("POST", path)
        if reply.status == 401:
            # A token names the repositories that it is for, and the challenge those to mount from.
            wider = _SCOPE.search(reply.headers.get("WWW-Authenticate", ""))
            if wider is not None:
                reply = self._remote.send("POST", path, scope=wider.group(1))
        if reply.status == 201:
            return "mounted"
        if reply.status == 202:
            self.ask("DELETE", reply.location, attempts=1)
            return None
        if reply.status in (400, 404, 405):
            return None  # a registry that takes no such question
        raise reply.error()

    def manifest(self, reference: str) -> str | None:
        """The digest of the manifest of a tag or digest; None where there is none."""
        path = f"/v2/{self.name}/manifests/{reference}"
        reply = self.ask("HEAD", path, headers={"Accept": ACCEPT})
        if reply.status == 404:
            return None
        return reply.check(200).headers.get("Docker-Content-Digest") or None

    def put(self, reference: str, media_type: str, payload: bytes) -> None:
        """Push a manifest whose blobs and children are there."""
        path = f"/v2/{self.name}/manifests/{reference}"
        headers = {"Content-Type": media_type}
        self.ask("PUT", path, headers=headers, body=payload).check(201)
