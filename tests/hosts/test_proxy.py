"""`openregistry proxy`: a registry by way of this machine, for clients that know nothing of it."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.accounts import add_user
from tests.bench.servers import DockerRegistry
from tests.client import (
    HTTPClient,
    begin,
    pieces,
    push_blob,
    push_image,
    push_manifest,
    sha256,
    sha512,
    with_query,
)
from tests.hosts.lambda_registry import basic
from tests.hosts.proxies import Proxy
from tests.images import make_bytes, make_image
from tests.servers import OPENREGISTRY, S3, Registry, free_port, stopping
from tests.witness import Witness

Start = Callable[[str], Proxy]
PASSWORD = "parallel : lines"
MIB = 1 << 20


@pytest.fixture(scope="module")
def shared(registry: Registry, directory: Path) -> Iterator[Proxy]:
    """A proxy of the registry that the tests share."""
    server = Proxy(directory / "shared-proxy", registry.host)
    with stopping(server):
        yield server.start()


@pytest.fixture
def plain(shared: Proxy) -> HTTPClient:
    """A client of it."""
    return HTTPClient(shared.host)


@pytest.fixture(params=["file", "s3", "distribution"])
def upstream(
    request: pytest.FixtureRequest, serve: Callable[..., Registry], directory: Path
) -> Iterator[str]:
    """The host of a registry: ours on each kind of storage, and Debian's."""
    if request.param == "file":
        yield serve().host
    elif request.param == "s3":
        s3: S3 = request.getfixturevalue("s3_server")
        yield serve(OPENREGISTRY_STORAGE_URL=s3.new_storage_url(), **s3.environment()).host
    else:
        if shutil.which(DockerRegistry.name) is None:
            pytest.skip("docker-registry is missing (Debian's package docker-registry has it)")
        server = DockerRegistry(directory / f"peer-{free_port()}", None)
        with stopping(server):
            yield server.start().host


def test_push_and_pull(upstream: str, proxy: Start, repository: str) -> None:
    """In one PUT, as containerd does, and in one PATCH of unknown length, as docker does."""
    near = HTTPClient(proxy(upstream).host)
    image = make_image((1000, 5 * MIB), "proxied")
    push_image(near, repository, image, "1")
    data = make_bytes(17 * MIB, "patched")
    location = begin(near, repository)
    answer = near.request("PATCH", location, pieces(data, MIB))
    assert (answer.status, answer.headers["Range"]) == (202, f"0-{len(data) - 1}")
    answer = near.request("PUT", with_query(answer.location, digest=sha256(data)))
    assert (answer.status, answer.headers["Docker-Content-Digest"]) == (201, sha256(data))
    assert answer.location == f"/v2/{repository}/blobs/{sha256(data)}"

    far = HTTPClient(upstream)
    for client in (near, far):
        accept = {"Accept": image.manifest.media_type}
        manifest = client.request("GET", f"/v2/{repository}/manifests/1", headers=accept)
        assert manifest.body == image.manifest.data
        for blob in (*(blob.data for blob in image.blobs), data):
            path = f"/v2/{repository}/blobs/{sha256(blob)}"
            answer = client.request("GET", path)
            if answer.status == 307:
                assert client.request("HEAD", path).status in (200, 307)
                answer = client.request("GET", answer.location)
            else:
                head = client.request("HEAD", path)
                assert (head.status, head.headers["Content-Length"]) == (200, str(len(blob)))
            assert answer.body == blob


def test_ranges_and_errors_are_the_registrys(plain: HTTPClient, repository: str) -> None:
    digest = push_blob(plain, repository, b"0123456789")
    path = f"/v2/{repository}/blobs/{digest}"
    part = plain.request("GET", path, headers={"Range": "bytes=2-4"})
    assert (part.status, part.body, part.headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    assert plain.request("GET", path, headers={"If-None-Match": f'"{digest}"'}).status == 304
    missing = plain.request("GET", f"/v2/{repository}/blobs/{sha256(b'')}")
    assert (missing.status, missing.code) == (404, "BLOB_UNKNOWN")
    assert plain.request("GET", "/v2/UPPER/tags/list").code == "NAME_INVALID"
    assert plain.request("GET", "/account").status == 404


def test_pages_lead_on_through_the_proxy(plain: HTTPClient, repository: str) -> None:
    image = make_image()
    for tag in ("a", "b", "c"):
        push_image(plain, repository, image, tag)
    answer = plain.request("GET", f"/v2/{repository}/tags/list?n=2")
    assert answer.json["tags"] == ["a", "b"]
    match = re.fullmatch(r'<(/v2/[^>]+)>; rel="next"', answer.headers["Link"])
    assert match is not None
    assert plain.request("GET", match[1]).json["tags"] == ["c"]


def test_parameters_reach_the_registry(plain: HTTPClient, repository: str) -> None:
    """Several of one name, and values with a plus in them."""
    image = make_image()
    for blob in image.blobs:
        push_blob(plain, repository, blob.data)
    answer = push_manifest(plain, repository, image.manifest, parameters="?tag=a&tag=b%2B")
    assert answer.code == "MANIFEST_INVALID"
    answer = push_manifest(plain, repository, image.manifest, parameters="?tag=a&tag=b")
    assert sorted(re.split(", *", answer.headers["OCI-Tag"])) == ["a", "b"]
    kind = "artifactType=application/vnd.example%2Bjson"
    answer = plain.request("GET", f"/v2/{repository}/referrers/{image.manifest.digest}?{kind}")
    assert answer.headers["OCI-Filters-Applied"] == "artifactType"


def test_mounts(plain: HTTPClient, repository: str) -> None:
    digest = push_blob(plain, repository, b"mounted")
    query = urlencode({"mount": digest, "from": repository})
    answer = plain.request("POST", f"/v2/{repository}/second/blobs/uploads/?{query}")
    assert answer.status == 201
    assert answer.location == f"/v2/{repository}/second/blobs/{digest}"
    assert plain.request("HEAD", answer.location).status == 200
    # What cannot be mounted is uploaded.
    query = urlencode({"mount": sha256(b"unknown"), "from": repository})
    assert plain.request("POST", f"/v2/{repository}/blobs/uploads/?{query}").status == 202


@pytest.mark.parametrize("size", [0, 1000, 6 * MIB])
def test_blobs_in_one_post(plain: HTTPClient, repository: str, size: int) -> None:
    data = make_bytes(size, "post")
    answer = plain.request("POST", f"/v2/{repository}/blobs/uploads/?digest={sha256(data)}", data)
    assert answer.status == 201
    assert plain.request("GET", answer.location).body == data


@pytest.mark.parametrize("chunk", [1000, 3 * MIB])
def test_chunks(plain: HTTPClient, repository: str, chunk: int) -> None:
    """Small ones, and some that together are more than is held."""
    data = make_bytes(3 * chunk, "chunks")
    location = begin(plain, repository)
    for start in range(0, len(data), chunk):
        part = {"Content-Range": f"{start}-{start + chunk - 1}"}
        answer = plain.request("PATCH", location, data[start : start + chunk], part)
        assert (answer.status, answer.headers["Range"]) == (202, f"0-{start + chunk - 1}")
        again = plain.request("PATCH", location, data[start : start + chunk], part)
        assert (again.status, again.headers["Range"]) == (416, f"0-{start + chunk - 1}")
        status = plain.request("GET", location)
        assert (status.status, status.headers["Range"]) == (204, f"0-{start + chunk - 1}")
    target = with_query(location, digest=sha256(data))
    assert plain.request("PUT", target).status == 201
    # Who lost the answer asks again.
    assert plain.request("PUT", target).status == 201
    assert plain.request("PUT", with_query(location, digest=sha256(b""))).status == 404
    assert plain.request("PATCH", location, b"more").status == 404
    assert plain.request("GET", f"/v2/{repository}/blobs/{sha256(data)}").body == data


def test_sha512(plain: HTTPClient, repository: str) -> None:
    for size in (1000, 6 * MIB):
        data = make_bytes(size, "sha512")
        assert push_blob(plain, repository, data, sha512(data)) == sha512(data)
        assert plain.request("GET", f"/v2/{repository}/blobs/{sha512(data)}").body == data


@pytest.mark.parametrize("size", [1000, 6 * MIB])
def test_wrong_digests(plain: HTTPClient, repository: str, size: int) -> None:
    data = make_bytes(size, "wrong")
    location = begin(plain, repository)
    assert plain.request("PATCH", location, data).status == 202
    answer = plain.request("PUT", with_query(location, digest=sha256(b"other")))
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    for digest in (sha256(b"other"), sha256(data)):
        assert plain.request("HEAD", f"/v2/{repository}/blobs/{digest}").status == 404


@pytest.mark.parametrize("size", [1000, 6 * MIB])
def test_cancel(registry: Registry, proxy: Start, repository: str, size: int) -> None:
    witness = Witness(registry.host)
    near = HTTPClient(proxy(witness.host).host)
    location = begin(near, repository)
    assert near.request("PATCH", location, make_bytes(size)).status == 202
    assert near.request("DELETE", location).status == 204
    assert near.request("DELETE", location).status == 404
    assert near.request("GET", location).status == 404
    # Nothing is left at the registry either.
    for path in witness.asked("DELETE"):
        assert HTTPClient(registry.host).request("GET", path).status == 404
    assert len(witness.asked("DELETE")) == len(witness.asked("POST"))
    witness.close()


# Credentials


@pytest.fixture
def guarded(serve: Callable[..., Registry]) -> Registry:
    """A registry that knows the account ada."""
    registry = serve(OPENREGISTRY_ACCESS="accounts")
    add_user(registry.settings, "ada", PASSWORD)
    return registry


def realm(near: HTTPClient) -> str:
    """Where the proxy sends for tokens."""
    answer = near.request("GET", "/v2/")
    assert answer.status == 401
    match = re.search(r'realm="([^"]*)"', answer.headers["WWW-Authenticate"])
    assert match is not None
    return match[1]


def test_tokens(guarded: Registry, proxy: Start) -> None:
    """As docker does it: a token by GET with a password, or by POST with a refresh token."""
    server = proxy(guarded.host)
    near = HTTPClient(server.host)
    assert realm(near) == f"http://{server.host}/token"
    service = guarded.host
    scope = "repository:ada/app:pull,push"
    wrong = near.request("GET", f"/token?service={service}", headers=basic("ada", "wrong"))
    assert wrong.status == 401
    query = urlencode({"service": service, "scope": scope, "offline_token": "true"})
    answer = near.request("GET", f"/token?{query}", headers=basic("ada", PASSWORD))
    assert answer.status == 200
    form = {
        "grant_type": "password", "username": "ada", "password": PASSWORD, "service": service,
        "client_id": "test", "scope": scope, "access_type": "offline",
    }  # fmt: skip
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    offline = near.request("POST", "/token", urlencode(form).encode(), kind).json
    form = {
        "grant_type": "refresh_token", "refresh_token": offline["refresh_token"],
        "service": service, "client_id": "test", "scope": scope,
    }  # fmt: skip
    renewed = near.request("POST", "/token", urlencode(form).encode(), kind).json
    for token in (answer.json["token"], renewed["access_token"]):
        bearer = {"Authorization": f"Bearer {token}"}
        for size in (1000, 6 * MIB):
            data = make_bytes(size, token)
            begun = near.request("POST", "/v2/ada/app/blobs/uploads/", headers=bearer)
            put = with_query(begun.location, digest=sha256(data))
            assert near.request("PUT", put, data, bearer).status == 201
            path = f"/v2/ada/app/blobs/{sha256(data)}"
            assert near.request("GET", path).status == 401
            assert near.request("GET", path, headers=bearer).body == data
    # It keeps no credentials: a push without any is refused.
    assert near.request("POST", "/v2/ada/app/blobs/uploads/").status == 401


def test_a_token_is_asked_for_before_anything_else(guarded: Registry, proxy: Start) -> None:
    """By a client that remembers the challenge of a proxy that ran before."""
    near = HTTPClient(proxy(guarded.host).host)
    answer = near.request("GET", f"/token?service={guarded.host}", headers=basic("ada", PASSWORD))
    assert answer.status == 200


def test_basic_credentials(guarded: Registry, proxy: Start) -> None:
    near = HTTPClient(proxy(guarded.host).host)
    assert near.request("GET", "/v2/", headers=basic("ada", PASSWORD)).status == 200
    begun = near.request("POST", "/v2/ada/app/blobs/uploads/", headers=basic("ada", PASSWORD))
    assert begun.status == 202


# A registry that behaves as others do


Said = tuple[int, dict[str, str], bytes, str]
"""An answer: status, fields, body, and how to send it."""


class Odd(BaseHTTPRequestHandler):
    """Answers as a test tells it: by ``server.scripts``, which has answers to give in turn by
    method and path, or by ``server.answers``, by path."""

    protocol_version = "HTTP/1.1"
    server: "OddRegistry"

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers.items())))
        self.server.bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        path = self.path.partition("?")[0]
        waiting = self.server.scripts.get(f"{self.command} {path}")
        if waiting:
            status, headers, body, way = waiting.pop(0)
        else:
            status, headers, body, way = self.server.answers.get(path, (404, {}, b"", "whole"))
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if way == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if way == "chunked":
            for piece in pieces(body, 100_000):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        elif way == "broken":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass


class OddRegistry(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Odd)
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.bodies: list[bytes] = []
        self.answers: dict[str, Said] = {"/v2/": (200, {}, b"{}", "whole")}
        self.scripts: dict[str, list[Said]] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def odd() -> Iterator[Callable[[], OddRegistry]]:
    with ExitStack() as stack:

        def start() -> OddRegistry:
            server = OddRegistry()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return server

        yield start


def test_a_path_arrives_as_clients_write_it(odd: Callable[[], OddRegistry], proxy: Start) -> None:
    """Not each registry, and what stands before it, takes `%3A` for a colon."""
    far = odd()
    path = "/v2/team/a~b/manifests/sha256:" + 64 * "0"
    HTTPClient(proxy(far.host).host).request("GET", path)
    assert far.seen[-1][0] == path


def test_answers_without_a_length(odd: Callable[[], OddRegistry], proxy: Start) -> None:
    far = odd()
    for size in (0, 100, 3 * MIB):
        far.answers[f"/v2/a/blobs/{size}"] = (200, {}, make_bytes(size), "chunked")
    near = HTTPClient(proxy(far.host).host)
    for size in (0, 100, 3 * MIB, 100):
        answer = near.request("GET", f"/v2/a/blobs/{size}")
        assert answer.body == make_bytes(size)
        head = near.request("HEAD", f"/v2/a/blobs/{size}")
        assert (head.status, "Content-Length" in head.headers) == (200, False)


@pytest.mark.parametrize("size", [1000, 3 * MIB])
def test_answers_that_break_off(odd: Callable[[], OddRegistry], proxy: Start, size: int) -> None:
    """The client must not take them for whole."""
    far = odd()
    far.answers["/v2/a/blobs/x"] = (200, {}, make_bytes(size), "broken")
    server = proxy(far.host)
    near = HTTPClient(server.host)
    if size == 1000:
        assert near.request("GET", "/v2/a/blobs/x").status == 503
    else:
        with pytest.raises(http.client.IncompleteRead):
            near.request("GET", "/v2/a/blobs/x")
    assert "broke off" in server.output()
    assert "Traceback" not in server.output()
    assert near.request("GET", "/v2/").status == 200


def test_credentials_go_to_the_registrys_own_realm_alone(
    odd: Callable[[], OddRegistry], proxy: Start
) -> None:
    far, auth = odd(), odd()
    for path, name in (("/v2/", "far"), ("/v2/_catalog", "other")):
        challenge = f'Bearer realm="http://{auth.host}/{name}?a=b",service="{name}"'
        far.answers[path] = (401, {"WWW-Authenticate": challenge}, b"", "whole")
        auth.answers[f"/{name}"] = (200, {}, b'{"token": "t"}', "whole")
    near = HTTPClient(proxy(far.host).host)
    for path in ("/v2/", "/v2/_catalog"):
        assert near.request("GET", path).status == 401
    for service, name in (("far", "far"), ("other", "other"), ("unknown", "far")):
        query = urlencode({"service": service, "scope": "repository:a b:pull"})
        answer = near.request("GET", f"/token?{query}", headers=basic("ada", "secret"))
        assert answer.json == {"token": "t"}
        path, headers = auth.seen.pop()
        assert path == f"/{name}?a=b&service={service}&scope=repository%3Aa+b%3Apull"
        assert headers["Authorization"] == basic("ada", "secret")["Authorization"]
        assert headers["Host"] == auth.host
    assert not any("Authorization" in headers for _, headers in far.seen)


@pytest.mark.parametrize("way", ["PUT", "PATCH"])
def test_a_token_that_expired_before_the_end(
    odd: Callable[[], OddRegistry], proxy: Start, way: str
) -> None:
    """The client asks for a new one, and repeats the PUT, its body too."""
    far = odd()
    challenge = {"WWW-Authenticate": f'Bearer realm="http://{far.host}/auth",service="far"'}
    far.scripts = {
        "POST /v2/a/blobs/uploads/": [
            (202, {"Location": "/v2/a/blobs/uploads/1"}, b"", "whole"),
        ],
        "PUT /v2/a/blobs/uploads/1": [
            (401, challenge, b"{}", "whole"),
            (201, {}, b"", "whole"),
        ],
    }
    server = proxy(far.host)
    near = HTTPClient(server.host)
    location = begin(near, "a")
    body = b"bytes" if way == "PUT" else b""
    if way == "PATCH":
        assert near.request("PATCH", location, b"bytes").status == 202
    target = with_query(location, digest=sha256(b"bytes"))
    answer = near.request("PUT", target, body, {"Authorization": "Bearer old"})
    assert answer.status == 401
    assert f'realm="http://{server.host}/token"' in answer.headers["WWW-Authenticate"]
    assert near.request("PUT", target, body, {"Authorization": "Bearer new"}).status == 201
    assert far.bodies[-2:] == [b"bytes", b"bytes"]
    assert far.seen[-1][1]["Authorization"] == "Bearer new"


# Web sites


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:5001"}, 200),
        ({"Host": "host.docker.internal:5001"}, 200),
        ({"Host": "[::1]:5001"}, 200),
        ({"Host": "evil.example.org"}, 403),
        ({"Host": "evil.example.org:5001"}, 403),
        ({"Host": "["}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 200),
    ],
)
def test_web_sites_are_refused(
    plain: HTTPClient, repository: str, headers: dict[str, str], status: int
) -> None:
    assert plain.request("GET", "/v2/", headers=headers).status == status
    push = plain.request("POST", f"/v2/{repository}/blobs/uploads/", headers=headers)
    assert push.status == (403 if status == 403 else 202)
    if status == 403:
        assert plain.request("GET", "/token?service=x", headers=headers).status == 403
        assert plain.request("PUT", f"/v2/{repository}/manifests/1", b"{}", headers).status == 403


# The command


def command(
    *words: str, within: float = 60, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run `openregistry proxy`."""
    ours = {name: value for name, value in os.environ.items() if "OPENREGISTRY" not in name}
    return subprocess.run(
        [OPENREGISTRY, "proxy", *words],
        env={**ours, **environment},
        capture_output=True,
        text=True,
        timeout=within,
    )


def test_what_it_says(registry: Registry, guarded: Registry, proxy: Start) -> None:
    server = proxy(registry.host)
    name = f"localhost:{server.port}"
    lines = server.output().splitlines()
    assert lines[0].endswith(f": {name} is {registry.host} now. Ctrl-C ends it.")
    assert f"    docker push {name}/NAME" in lines
    assert "docker login" not in server.output()
    server = proxy(guarded.host)
    assert f"    docker login localhost:{server.port}" in server.output().splitlines()


def test_wrong_registries(odd: Callable[[], OddRegistry], tmp_path: Path) -> None:
    page = odd()
    page.answers["/v2/"] = (200, {"Content-Type": "text/html"}, b"<html>", "whole")
    none = odd()
    del none.answers["/v2/"]
    port = free_port()
    began = time.monotonic()
    for registry, sentence in (
        (f"127.0.0.1:{port}", f"127.0.0.1:{port} cannot be reached: Connection refused"),
        ("no-such-host.invalid", "no-such-host.invalid cannot be reached: "),
        (f"https://{page.host}", f"{page.host} has no trusted certificate: "),
        (page.host, f"http://{page.host} is no registry: it answers with a web page at /v2/"),
        (none.host, f"http://{none.host} is no registry: it answers 404 at /v2/"),
        ("a b", "'a b' is no registry"),
        ("registry.example.org/team", "'registry.example.org/team' is no registry"),
    ):
        done = command(registry, "--listen=127.0.0.1:0")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"openregistry: {sentence}"), done.stderr
        assert done.stderr.count("\n") == 1
    assert time.monotonic() - began < 40


def test_wrong_addresses(registry: Registry) -> None:
    done = command(registry.host, f"--listen={registry.host}")
    assert done.returncode == 1
    assert done.stderr == (
        f"openregistry: {registry.host} cannot be listened on: Address already in use; name"
        " another by --listen\n"
    )
    done = command(registry.host, "--listen=5001")
    assert done.returncode == 2
    assert "'5001' must be host:port" in done.stderr


def test_other_machines_are_a_warning(registry: Registry) -> None:
    done = command(registry.host, "--listen=0.0.0.0:0", "--once", "--", "true")
    assert done.returncode == 0
    assert "credentials travel there without TLS" in done.stderr


def test_once(registry: Registry, repository: str) -> None:
    script = f'curl -sS "http://$OPENREGISTRY_PROXY/v2/{repository}/tags/list"; exit 7'
    done = command(registry.host, "--listen=127.0.0.1:0", "--once", "--", "sh", "-c", script)
    assert done.returncode == 7
    assert json.loads(done.stdout)["errors"][0]["code"] == "NAME_UNKNOWN"
    assert done.stderr == ""


def test_once_and_signals(registry: Registry) -> None:
    listen = "--listen=127.0.0.1:0"
    assert command(registry.host, listen, "--once", "--", "sh", "-c", "kill $$").returncode == 143
    done = command(registry.host, listen, "--once", "--", "no-such-program")
    assert done.returncode == 1
    assert done.stderr == (
        "openregistry: no-such-program cannot be run: No such file or directory\n"
    )
    for wrong in (["--once"], ["--once", "--"], ["--", "true"]):
        done = command(registry.host, listen, *wrong)
        assert (done.returncode, "go together" in done.stderr) == (2, True)
    # Whoever ends the proxy ends the command.
    words = ["proxy", registry.host, listen, "--once", "--", "sh", "-c", "echo; exec sleep 60"]
    with subprocess.Popen([OPENREGISTRY, *words], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143


def test_once_at_the_usual_port(registry: Registry, tmp_path: Path) -> None:
    """As the name of an image has it."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 5001))
        except OSError:
            pytest.skip("port 5001 is in use")
    done = command(registry.host, "--once", "--", "sh", "-c", "echo $OPENREGISTRY_PROXY")
    assert done.stdout == "localhost:5001\n"
