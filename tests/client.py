"""A client that says exactly what a test wants said, to the functions themselves or over HTTP."""

import hashlib
import http.client
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from chalicelib import endpoints
from chalicelib.context import Context
from chalicelib.http import Headers, Query, RegistryError, Request, Response
from tests.images import Content, Image

Body = bytes | Iterable[bytes]


def sha256(data: bytes) -> str:
    """The digest of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sha512(data: bytes) -> str:
    """The digest of some bytes by the other algorithm."""
    return "sha512:" + hashlib.sha512(data).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes

    @property
    def headers(self) -> Headers:
        """The header fields, repeated ones joined."""
        return Headers(self.fields)

    @property
    def location(self) -> str:
        """Where the answer points."""
        return self.headers["Location"]

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The specification's code of an error."""
        return str(self.json["errors"][0]["code"])


class Client(Protocol):
    """One way to a registry."""

    def request(
        self, method: str, target: str, body: Body = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send one request; a body that is not bytes is sent in chunks of unknown number."""


class CoreClient:
    """Calls the functions in this process, as the thinnest of hosts."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def request(
        self, method: str, target: str, body: Body = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        url = urlsplit(target)
        fields = dict(headers or {})
        if isinstance(body, bytes):
            fields.setdefault("Content-Length", str(len(body)))
        else:
            fields["Transfer-Encoding"] = "chunked"
        request = Request(method, unquote(url.path), Query(url.query), Headers(fields))
        endpoint = endpoints.find(method, request.path)
        pieces: list[bytes] = [body] if isinstance(body, bytes) else list(body)
        if endpoint is not None and endpoint.body is endpoints.Body.STREAMED:
            return _answer(method, self._stream(request, pieces))
        whole = Request(method, request.path, request.query, request.headers, b"".join(pieces))
        return _answer(method, endpoints.answer(self.context, whole))

    def _stream(self, request: Request, pieces: list[bytes]) -> Response:
        receiver = endpoints.receive(self.context, request)
        if isinstance(receiver, Response):
            return receiver
        try:
            for piece in pieces:
                if piece:
                    receiver.feed([piece])
        except RegistryError as error:
            receiver.abort()
            return error.response()
        return receiver.finish()


def _answer(method: str, response: Response) -> Answer:
    body = response.body if isinstance(response.body, bytes) else b"".join(response.body)
    return Answer(response.status, list(response.headers), b"" if method == "HEAD" else body)


class HTTPClient:
    """Speaks HTTP/1.1 over one connection at a time; redirects are not followed."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._connection = http.client.HTTPConnection(host, timeout=60)

    def request(
        self, method: str, target: str, body: Body = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        url = urlsplit(target)
        if url.netloc and url.netloc != self.host:
            return HTTPClient(url.netloc).request(method, target, body, headers)
        path = f"{url.path}?{url.query}" if url.query else url.path
        fields = dict(headers or {})
        if isinstance(body, bytes) and (body or method in ("POST", "PUT", "PATCH")):
            fields.setdefault("Content-Length", str(len(body)))
        try:
            self._connection.request(
                method,
                path,
                body=body or None,
                headers=fields,
                encode_chunked=not isinstance(body, bytes),
            )
            response = self._connection.getresponse()
            return Answer(response.status, response.getheaders(), response.read())
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise


def begin(client: Client, repository: str, parameters: str = "") -> str:
    """Begin an upload; its Location."""
    answer = client.request("POST", f"/v2/{repository}/blobs/uploads/{parameters}")
    assert answer.status == 202, answer
    return answer.location


def with_query(location: str, **parameters: str) -> str:
    """A Location with parameters added, as clients do."""
    added = "&".join(f"{name}={value}" for name, value in parameters.items())
    return f"{location}{'&' if '?' in location else '?'}{added}"


def push_blob(client: Client, repository: str, data: bytes, digest: str = "") -> str:
    """Push a blob as containerd does, with one PUT; its digest."""
    digest = digest or sha256(data)
    location = begin(client, repository)
    answer = client.request("PUT", with_query(location, digest=digest), data)
    assert answer.status == 201, answer
    return digest


def push_manifest(
    client: Client, repository: str, manifest: Content, reference: str = "", parameters: str = ""
) -> Answer:
    """Push a manifest whose blobs are there."""
    reference = reference or manifest.digest
    return client.request(
        "PUT",
        f"/v2/{repository}/manifests/{reference}{parameters}",
        manifest.data,
        {"Content-Type": manifest.media_type},
    )


def push_image(client: Client, repository: str, image: Image, reference: str = "") -> str:
    """Push an image; its digest."""
    for blob in image.blobs:
        push_blob(client, repository, blob.data)
    answer = push_manifest(client, repository, image.manifest, reference)
    assert answer.status == 201, answer
    return image.manifest.digest


def pieces(data: bytes, size: int = 1000) -> Iterator[bytes]:
    """Bytes cut up, to be sent in chunks."""
    for start in range(0, len(data), size):
        yield data[start : start + size]
