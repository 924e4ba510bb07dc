"""Requests that are wrong in every way: what the client did wrong is never a 5xx, and harms nobody.

RFC 9110 and 9112 have two statuses for what a server need not know: 501 for a transfer coding, 505
for a version of HTTP.
"""

import contextlib
import random
import string
from collections.abc import Iterator, Sequence
from urllib.parse import quote

import pytest

from tests.client import HTTPClient, begin, push_image, sha256
from tests.faults.crowd import whole
from tests.hosts.wire import Wire
from tests.images import Image, make_image
from tests.servers import Registry

DIGEST = sha256(b"garbage")
NAMES = ("garbage/a", "a", "UPPER", "a//b", "../a", "a" * 300, "a/b/c/d", "é", "%00", "%2e%2e", "_")
REFERENCES = (
    *("latest", DIGEST, "sha256:abc", "md5:" + "a" * 32, "x" * 200, "%00", "%ff", ":", "@", "a:b"),
    *("sha256:" + "A" * 64, "sha512:" + "a" * 64, "-x", "%0d%0aX-Evil:1", "\xff", "sha256:%00"),
)
VALUES = (
    *("", "0", "-1", "1", "9" * 30, "x", "%00", "%0d%0a", "%ff%fe", "a=b", "&&&", ";"),
    *(DIGEST, "sha256:", "sha512:" + "0" * 128, "application/x", "\xe9", "'; DROP TABLE uploads"),
    *("eyJhbGciOiJIUzI1NiJ9.e30.AA", "...", "x" * 5000, "%u0000", "*", "%", "+"),
)
PARAMETERS = (
    *("n", "last", "digest", "mount", "from", "tag", "artifactType", "digest-algorithm"),
    *("_state", "x", "%00"),
)
FIELDS = (
    *("Content-Range", "Range", "If-Range", "If-None-Match", "Content-Type", "Accept", "Host"),
    *("Authorization", "Expect", "Connection", "Upgrade", "X-Request-Id", "Content-Encoding"),
    *("TE", "Cookie", "Content-Length", "Transfer-Encoding", "Docker-Content-Digest", "Trailer"),
    "X" * 300,
)
FIELD_VALUES = (
    *("", "0-0", "0-99999999999999999999", "5-1", "bytes=0-", "bytes=-0", "bytes=5-1", "W/", "*"),
    *("bytes=0-0,1-1", "bytes 0-1/*", "x", '"', "a" * 9000, "application/json; charset=x", ",,,"),
    *("application/vnd.oci.image.manifest.v1+json", "Basic", "Basic !!!", "Basic Og==", "Bearer x"),
    *("100-continue", "close", "keep-alive, Upgrade", "h2c", "\xff\xfe", "gzip", "chunked", "-1"),
    *("chunked, chunked", "1", "12", "18446744073709551616", "+1", "0x1", "1, 1", "1 1", "\t"),
    *("identity", "a\tb"),
)
METHODS = (
    *("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE") * 5,
    *("OPTIONS", "TRACE", "CONNECT", "PURGE", "get"),
)
BODIES = (
    *(b"", b"{}", b"[]", b"null", b"1", b'"x"', b"{", b"\xff\xfe{}"),
    *(b"[" * 20_000, b'{"a":' * 20_000),
    *(b'{"schemaVersion":2}', b'{"schemaVersion":1}', b'{"schemaVersion":2,"manifests":[]}'),
    b'{"schemaVersion":2,"manifests":[{}],"config":{},"layers":[]}',
    b'{"schemaVersion":2,"manifests":[{"digest":"sha256:x","size":1}]}',
    b'{"schemaVersion":2,"manifests":[],"mediaType":"a\\u0000b"}',
    b'{"schemaVersion":2,"manifests":[],"mediaType":"a\\r\\nX-Evil: 1"}',
    b'{"schemaVersion":2,"manifests":[],"artifactType":"\\ud800"}',
    b'{"schemaVersion":2,"manifests":[],"annotations":{"\\u0000":"\\ud800"}}',
    b'{"schemaVersion":2,"manifests":[],"annotations":{"a":1}}',
    b'{"schemaVersion":2,"manifests":[],"subject":{"digest":"sha256:x","size":-1}}',
    b'{"schemaVersion":2,"config":null,"layers":null,"x":' + b"9" * 5000 + b"}",
    b'{"schemaVersion":2,"config":[],"layers":{"a":1}}',
    bytes(range(256)) * 40,
)


def targets(rng: random.Random, upload: str) -> str:
    name = rng.choice((*NAMES, *("garbage/a",) * len(NAMES)))
    reference = rng.choice(REFERENCES)
    path = rng.choice((
        "/", "/v2", "/v2/", "/v2//", "/v2/_catalog", "/v2/_oci/ext/discover", "//v2/", "/v3/", "*",
        f"/v2/{name}/tags/list", f"/v2/{name}/blobs/uploads/", f"/v2/{name}/blobs/uploads",
        f"/v2/{name}/manifests/{reference}", f"/v2/{name}/blobs/{reference}",
        f"/v2/{name}/referrers/{reference}", f"/v2/{name}/blobs/uploads/{reference}",
        f"http://[{name}/v2/", f"http://x/v2/{name}/tags/list", upload.partition("?")[0], upload,
    ))  # fmt: skip
    count = rng.choice((0, 0, 1, 1, 2, 5))
    query = [f"{rng.choice(PARAMETERS)}={rng.choice(VALUES)}" for _ in range(count)]
    joint = "&" if "?" in path else "?"
    target = path + (joint + "&".join(query) if query else "")
    return target.replace(" ", rng.choice(("%20", "+", " ")))


def each_in_turn(image: Image, repository: str, upload: str) -> Iterator[tuple[str, str]]:
    """Requests that are right but for one parameter or one part of the path."""
    digest, root = image.manifest.digest, f"/v2/{repository}"
    right: tuple[tuple[str, str, dict[str, str]], ...] = (
        ("GET", "/v2/_catalog", {"n": "5", "last": "a"}),
        ("GET", f"{root}/tags/list", {"n": "5", "last": "a"}),
        ("GET", f"{root}/referrers/{digest}", {"artifactType": "a/b", "n": "5", "last": DIGEST}),
        ("POST", f"{root}/blobs/uploads/", {"mount": DIGEST, "from": "garbage/b"}),
        ("POST", f"{root}/blobs/uploads/", {"digest-algorithm": "sha512"}),
        ("POST", f"{root}/blobs/uploads/", {"digest": DIGEST}),
        ("PUT", f"{root}/manifests/{DIGEST}", {"tag": "a"}),
        ("PUT", upload, {"digest": DIGEST}),
        ("GET", upload.partition("?")[0], {"_state": "x"}),
    )
    for method, path, parameters in right:
        for name in parameters:
            for value in VALUES:
                query = "&".join(f"{n}={v}" for n, v in (parameters | {name: value}).items())
                yield method, f"{path}{'&' if '?' in path else '?'}{query}"
    for reference in REFERENCES:
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            for kind in ("manifests", "blobs", "referrers", "tags", "blobs/uploads"):
                yield method, f"{root}/{kind}/{reference}"
    for name in NAMES[1:]:
        for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
            for rest in ("tags/list", "blobs/uploads/", "manifests/a", f"blobs/{DIGEST}"):
                yield method, f"/v2/{name}/{rest}"


def mangled(rng: random.Random, request: bytes) -> bytes:
    """A request with some of its bytes changed, lost or doubled."""
    data = bytearray(request)
    for _ in range(rng.choice((0,) * 12 + (1, 1, 2, 8))):
        at = rng.randrange(len(data))
        kind = rng.randrange(4)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            del data[at : at + rng.randrange(1, 9)]
        elif kind == 2:
            data[at:at] = data[at : at + 20]
        else:
            data[at:at] = rng.choice((b"\r\n", b"\0", b" ", b"\n", b":", b"\xff", b"%"))
        if not data:
            break
    return bytes(data)


def requests(rng: random.Random, upload: str) -> bytes:
    body = rng.choice(BODIES)
    fields = [
        f"{rng.choice(FIELDS)}: {rng.choice(FIELD_VALUES)}"
        for _ in range(rng.choice((0, 0, 1, 1, 3)))
    ]
    framing = rng.randrange(9)
    if framing < 6:
        fields.append(f"Content-Length: {len(body)}")
    elif framing == 6:
        fields.append("Transfer-Encoding: chunked")
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    elif framing == 7:
        fields.append(f"Content-Length: {rng.choice((0, 1, len(body) + 5))}")
    method, target = rng.choice(METHODS), targets(rng, upload)
    version = rng.choice(("1.1",) * 60 + ("1.0", "0.9", "2.0", "9.9", "x"))
    lines = [f"{method} {target} HTTP/{version}", "Host: localhost", *fields, "", ""]
    return mangled(rng, "\r\n".join(lines).encode("latin-1") + body)


def send(port: int, data: bytes) -> list[int]:
    """The statuses of the answers to these bytes, after which nothing comes."""
    with Wire(port, timeout=20) as wire:
        with contextlib.suppress(ConnectionError):
            wire.send(data)
            wire.socket.shutdown(1)
        return statuses(wire.rest())


def statuses(answers: bytes) -> list[int]:
    lines = answers.split(b"\r\n")
    return [int(line[9:12]) for line in lines if line.startswith(b"HTTP/1.1 ")]


def is_our_fault(found: Sequence[int]) -> bool:
    return any(status >= 500 and status not in (501, 505) for status in found)


@pytest.fixture(scope="module")
def image() -> Image:
    return make_image(seed="garbage")


def test_all_is_right_but_for_one_part(registry: Registry, image: Image, repository: str) -> None:
    client = HTTPClient(registry.host)
    push_image(client, repository, image, "latest")
    port = int(registry.host.rpartition(":")[2])
    for method, target in each_in_turn(image, repository, begin(client, repository)):
        encoded = quote(target, safe=string.punctuation)
        head = f"{method} {encoded} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        found = send(port, head.encode())
        assert len(found) == 1, (found, head)
        assert found[0] < 500, (found, head)
    assert whole(registry.host, repository, image, image.manifest.digest)


def garbage(registry: Registry, image: Image, repository: str, seed: int, count: int) -> None:
    client = HTTPClient(registry.host)
    push_image(client, repository, image, "latest")
    upload = begin(client, repository)
    port = int(registry.host.rpartition(":")[2])
    before = len(registry.output())
    rng = random.Random(seed)
    answered = 0
    for _ in range(count):
        data = requests(rng, upload)
        found = send(port, data)
        assert not is_our_fault(found), (found, data[:2000])
        answered += bool(found)
    # Not all of it was so broken that nobody looked at it.
    assert answered > count / 2
    assert whole(registry.host, repository, image, "latest", image.manifest.digest)
    assert client.request("GET", "/health").status == 200
    log = registry.output(before)
    assert '"level": "error"' not in log
    assert "Traceback" not in log


@pytest.mark.parametrize("seed", [1, 2])
def test_garbage(registry: Registry, image: Image, repository: str, seed: int) -> None:
    garbage(registry, image, repository, seed, 1000)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10, 20))
def test_more_garbage(either: Registry, image: Image, repository: str, seed: int) -> None:
    garbage(either, image, repository, seed, 3000)
