"""What the proxy does with a request: it passes it on, and looks at uploads and tokens."""

import logging
import re
from collections.abc import Callable, Iterator
from threading import Event
from typing import TypeVar
from urllib.parse import quote, urlsplit

from chalicelib.client.names import Registry
from chalicelib.client.progress import Progress
from chalicelib.client.remote import Remote, RemoteError, Reply
from chalicelib.endpoints import Body
from chalicelib.hosts.harness.functions import Turn
from chalicelib.hosts.proxy import fields, tokens
from chalicelib.hosts.proxy.tokens import Tokens
from chalicelib.hosts.proxy.uploads import Upload, Uploads, to_error
from chalicelib.http import (
    JSON,
    Denied,
    Receiver,
    RegistryError,
    Request,
    Response,
    SizeInvalid,
    Unsupported,
    UploadUnknown,
)
from chalicelib.identity.open import is_ours

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

WHOLE = 64 << 10
"""An answer of at most so many bytes is read before it is passed on, and one that does not tell its
length; what is longer, while it comes."""

_PLAIN = "/:@!$&'()*+,;=~"
"""What stands in a path as it is (RFC 3986, section 3.3): a digest's colon is written so."""

_UPLOADS = re.compile(r"/v2/(?P<repository>.+)/blobs/uploads/(?P<upload>[^/]*)/?")


class Proxy:
    """The registry's API by way of another: ``Functions`` of the harness. ``host`` is a name by
    which it may be called besides those that no web site can have."""

    limit = 8 << 20
    """Twice what a manifest has that all registries take."""

    def __init__(self, registry: Registry, host: str, progress: Progress) -> None:
        self._host = host
        self._remote = Remote(registry)
        self._tokens = Tokens(self._remote)
        self.uploads = Uploads(self._remote, progress, self._passed)

    def wants(self, request: Request) -> Body:
        if request.method in ("GET", "HEAD"):
            return Body.NONE
        streamed = request.method != "DELETE" and _UPLOADS.fullmatch(request.path)
        return Body.STREAMED if streamed else Body.BUFFERED

    def turn(self, request: Request) -> Turn:
        # All else waits for the registry.
        return Turn.HEALTH if request.path == "/health" else Turn.BULK

    def health(self, request: Request) -> Response:
        return Response(200, [("Content-Type", JSON)], b'{"status":"ok"}')

    def ready(self, request: Request) -> Response:
        return self.health(request)

    def act(self, request: Request) -> Response:
        if self.wants(request) is not Body.STREAMED:
            return self.answer(request)
        receiver = self.receive(request)
        return receiver if isinstance(receiver, Response) else receiver.finish()

    def answer(self, request: Request) -> Response:
        return _answered(lambda: self._answer(request), request)

    def receive(self, request: Request) -> Receiver | Response:
        return _answered(lambda: self._receive(request), request)

    def flush(self) -> None:
        self.uploads.drop_idle()

    def end(self) -> None:
        self.uploads.leave()

    def work(self, stop: Event) -> None:
        """There are no jobs."""

    def _answer(self, request: Request) -> Response:
        self._refuse_other_sites(request)
        if len(request.body) > self.limit:
            raise SizeInvalid(f"The body may have {self.limit} bytes at most.", status=413)
        if request.path == tokens.PATH and request.method in ("GET", "POST"):
            return self._passed(self._tokens.ask(request), request)
        if not request.path.startswith("/v2/"):
            raise RegistryError(
                "There is nothing at this path.", {"path": request.path[:512]},
                code="NOT_FOUND", status=404,
            )  # fmt: skip
        if match := _UPLOADS.fullmatch(request.path):
            return self._upload_status(match, request)
        return self._passed(self._send(request, stream=True), request)

    def _upload_status(self, match: re.Match[str], request: Request) -> Response:
        if request.method == "DELETE":
            return self._found(match).cancel()
        return self._found(match).status()

    def _receive(self, request: Request) -> Receiver | Response:
        self._refuse_other_sites(request)
        match = _UPLOADS.fullmatch(request.path)
        if match is None or request.method not in ("POST", "PUT", "PATCH"):
            raise Unsupported("An upload takes GET, PATCH, PUT and DELETE.")
        if request.method == "POST":
            return self._begin(match["repository"], request)
        upload = self._found(match)
        upload.authorization = request.headers.get("authorization") or upload.authorization
        return upload.patch(request) if request.method == "PATCH" else upload.put(request)

    def _begin(self, repository: str, request: Request) -> Receiver | Response:
        """Have the registry begin an upload: it decides who may, and about mounts and quotas."""
        whole = "digest" in request.query and "mount" not in request.query
        reply = self._send(request, but="digest" if whole else "")
        if reply.status != 202:
            return self._passed(reply, request)
        upload = self.uploads.begin(repository, reply, request.headers.get("authorization", ""))
        return upload.put(request) if whole else upload.begun()

    def _found(self, match: re.Match[str]) -> Upload:
        upload = self.uploads.find(match["upload"])
        if upload is None or upload.repository != match["repository"]:
            raise UploadUnknown("There is no such upload, or it was given up; begin again.")
        return upload

    def _send(self, request: Request, *, but: str = "", stream: bool = False) -> Reply:
        """The registry's answer. The query's parameter ``but`` is left out."""
        parts = request.query.raw.split("&")
        query = "&".join(each for each in parts if not but or each.partition("=")[0] != but)
        return self._remote.send(
            request.method,
            quote(request.path, safe=_PLAIN) + (f"?{query}" if query else ""),
            headers=fields.to_registry(request.headers),
            body=request.body,
            authorization=request.headers.get("authorization", ""),
            stream=stream,
            redirects=False,
        )

    def _passed(self, reply: Reply, request: Request) -> Response:
        """The registry's answer as the client gets it."""
        registry = self._remote.registry
        kept = fields.to_client(reply.headers, reply.url, registry)
        if challenge := reply.headers.get("www-authenticate"):
            host = request.headers.get("host", self._host)
            kept.append(("WWW-Authenticate", self._tokens.challenge(challenge, reply.url, host)))
        length = reply.headers.get("content-length")
        if request.method == "HEAD" and length is None:
            # Unknown is not nought.
            return Response(reply.status, kept, _Pieces(reply))
        if request.method != "HEAD" and (length is None or int(length) > WHOLE):
            return Response(reply.status, kept, _Pieces(reply))
        with reply:
            return Response(reply.status, kept, b"".join(reply.pieces()))

    def _refuse_other_sites(self, request: Request) -> None:
        """Refuse what a web site has a browser on this machine ask for; see ``identity.open``."""
        if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise Denied("The proxy answers no other sites.")
        host = request.headers.get("host", "")
        if not is_ours(host) and _name(host) != self._host:
            raise Denied(
                "The proxy answers to localhost, to addresses, and to the name that it listens on.",
                "name the host by --listen",
            )


def _name(host: str) -> str | None:
    """The name in a Host, where there is one."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


class _Pieces:
    """A streamed answer."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self.close = reply.close

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._reply.pieces()
        except RemoteError as error:
            _log.warning("%s", error.sentence)
            # The client sees the end of its connection, as it would the registry's.
            raise ConnectionError(error.sentence) from error


def _answered(act: Callable[[], _T], request: Request) -> _T | Response:
    """What ``act`` gives, or what it raises as an answer."""
    try:
        return act()
    except RemoteError as error:
        return to_error(error).response()
    except RegistryError as error:
        return error.response()
    except Exception:
        _log.exception("%s %s failed", request.method, request.path)
        return RegistryError("The proxy failed; its log says why.", status=500).response()
