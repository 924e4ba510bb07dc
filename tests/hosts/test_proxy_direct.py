"""`openregistry proxy` before a registry that takes direct uploads: the bytes of large layers go to
storage, and a push that was cut goes on."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from chalicelib.client.names import Registry as Address
from chalicelib.client.progress import Progress
from chalicelib.hosts.proxy import uploads
from chalicelib.hosts.proxy.functions import Proxy as Functions
from chalicelib.http import Headers, Query, Request, Response
from tests.accounts import add_user
from tests.bench import processes
from tests.client import HTTPClient, begin, pieces, sha256, with_query
from tests.hosts.lambda_registry import basic
from tests.hosts.proxies import Proxy
from tests.images import make_bytes
from tests.servers import S3, Registry, wait_until
from tests.witness import Witness

Start = Callable[[str], Proxy]
PASSWORD = "direct : lines"
MIB = 1 << 20
PART = 8 * MIB


@pytest.fixture
def storage(s3_server: S3) -> Iterator[Witness]:
    """The way to storage, of whoever goes there."""
    with closing(Witness(s3_server.endpoint.removeprefix("http://"))) as relay:
        yield relay


@pytest.fixture
def far(serve: Callable[..., Registry], s3_server: S3, storage: Witness) -> Registry:
    """A registry whose blobs are in object storage, of which clients may ask."""
    url = s3_server.new_storage_url(endpoint=f"http://{storage.host}")
    return serve(OPENREGISTRY_STORAGE_URL=url, **s3_server.environment())


@pytest.fixture
def way(far: Registry) -> Iterator[Witness]:
    """The way from the proxy to the registry."""
    with closing(Witness(far.host)) as relay:
        yield relay


def parts(storage: Witness) -> list[int]:
    """The numbers of the parts that were sent, in order."""
    found = [re.search(r"partNumber=(\d+)", path) for path in storage.asked("PUT")]
    return sorted(int(each[1]) for each in found if each)


def send(near: HTTPClient, repository: str, data: bytes) -> None:
    """Push a blob as docker does."""
    location = begin(near, repository)
    answer = near.request("PATCH", location, pieces(data, MIB))
    assert (answer.status, answer.headers["Range"]) == (202, f"0-{len(data) - 1}")
    answer = near.request("PUT", with_query(location, digest=sha256(data)))
    assert (answer.status, answer.headers["Docker-Content-Digest"]) == (201, sha256(data))


def is_there(registry: Registry, repository: str, data: bytes) -> bool:
    """Whether the registry has the blob, whole."""
    client = HTTPClient(registry.host)
    answer = client.request("GET", f"/v2/{repository}/blobs/{sha256(data)}")
    return answer.status == 307 and client.request("GET", answer.location).body == data


def cut(server: Proxy, storage: Witness, repository: str, data: bytes, count: int) -> socket.socket:
    """Begin a PATCH and send so many parts of it, and a little; the connection, which waits for
    the rest, once storage has those parts."""
    location = begin(HTTPClient(server.host), repository)
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(
        f"PATCH {location} HTTP/1.1\r\nHost: {server.host}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n".encode()
    )
    for piece in pieces(data[: count * PART + MIB], MIB):
        connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
    wait_until(lambda: storage.relayed >= count * PART, 20, lambda: "the parts to be there")
    time.sleep(1)  # storage answers
    assert parts(storage) == list(range(1, count + 1))
    return connection


def test_bytes_go_to_storage(
    far: Registry, way: Witness, storage: Witness, proxy: Start, repository: str
) -> None:
    server = proxy(way.host)
    data = make_bytes(3 * PART + 1000, "direct")
    send(HTTPClient(server.host), repository, data)
    assert is_there(far, repository, data)
    assert parts(storage) == [1, 2, 3, 4]
    assert way.relayed < 10_000
    # What the client's POST began is not left open.
    begun = way.asked("POST", "/blobs/uploads/")
    assert len(begun) == 1
    wait_until(lambda: len(way.asked("DELETE")) == 1, 5, lambda: "its upload to be cancelled")
    assert re.search(rf"{repository} layer 1: 25\.2 MB in [\d.]+ s\n", server.output())
    # Whoever has it in one PUT is told that it is there, and no byte is sent.
    storage.requests.clear()
    location = begin(HTTPClient(server.host), repository)
    answer = HTTPClient(server.host).request("PUT", with_query(location, digest=sha256(data)), data)
    assert answer.status == 201
    assert parts(storage) == []


def test_what_is_small_goes_in_one_request(
    far: Registry, way: Witness, proxy: Start, repository: str
) -> None:
    data = make_bytes(4 * MIB, "small")
    send(HTTPClient(proxy(way.host).host), repository, data)
    assert is_there(far, repository, data)
    assert [method for method, path in way.requests if "uploads" in path] == ["POST", "PUT"]


def test_a_client_that_was_cut_goes_on(
    far: Registry, way: Witness, storage: Witness, proxy: Start, repository: str
) -> None:
    server = proxy(way.host)
    data = make_bytes(4 * PART + 1000, "cut")
    connection = cut(server, storage, repository, data, 3)
    asked = len(way.asked("POST", "?"))
    connection.close()
    wait_until(lambda: len(way.asked("POST", "?")) > asked, 20, lambda: "the upload to be left")
    send(HTTPClient(server.host), repository, data)
    assert parts(storage) == [1, 2, 3, 4, 5]
    assert is_there(far, repository, data)


def test_a_proxy_that_was_ended_goes_on(
    far: Registry, storage: Witness, proxy: Start, repository: str
) -> None:
    server = proxy(far.host)
    data = make_bytes(4 * PART + 1000, "ended")
    connection = cut(server, storage, repository, data, 3)
    server.restart()
    connection.close()
    send(HTTPClient(server.host), repository, data)
    assert parts(storage) == [1, 2, 3, 4, 5]
    assert is_there(far, repository, data)


@pytest.mark.long
def test_a_proxy_that_was_killed_begins_anew(
    far: Registry, storage: Witness, proxy: Start, repository: str
) -> None:
    """At once, that is: what nobody let go of is held for a while."""
    server = proxy(far.host)
    data = make_bytes(2 * PART + 1000, "killed")
    connection = cut(server, storage, repository, data, 1)
    server.kill9()
    connection.close()
    server.start()
    send(HTTPClient(server.host), repository, data)
    assert is_there(far, repository, data)


def test_a_wrong_digest(far: Registry, proxy: Start, repository: str) -> None:
    near = HTTPClient(proxy(far.host).host)
    data = make_bytes(PART + MIB, "wrong")
    location = begin(near, repository)
    assert near.request("PATCH", location, data).status == 202
    answer = near.request("PUT", with_query(location, digest=sha256(b"other")))
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    assert near.request("GET", location).status == 404
    assert not is_there(far, repository, data)
    # What was sent serves whoever has the right one.
    send(near, repository, data)
    assert is_there(far, repository, data)


def test_several_requests_of_one_upload(far: Registry, proxy: Start, repository: str) -> None:
    """Chunks go on where the last one ended, whatever the size of parts."""
    near = HTTPClient(proxy(far.host).host)
    data = make_bytes(2 * PART + 1000, "chunks")
    location = begin(near, repository)
    for start in range(0, len(data), 3 * MIB):
        chunk = data[start : start + 3 * MIB]
        span = {"Content-Range": f"{start}-{start + len(chunk) - 1}"}
        assert near.request("PATCH", location, chunk, span).status == 202
    assert near.request("PUT", with_query(location, digest=sha256(data))).status == 201
    assert is_there(far, repository, data)


def test_cancel(far: Registry, way: Witness, proxy: Start, repository: str) -> None:
    near = HTTPClient(proxy(way.host).host)
    location = begin(near, repository)
    assert near.request("PATCH", location, make_bytes(PART + MIB, "cancel")).status == 202
    assert near.request("DELETE", location).status == 204
    # The one that the client's POST began, and the direct one.
    wait_until(lambda: len(way.asked("DELETE")) == 2, 5, lambda: "both to be cancelled")


def test_a_busy_upload(far: Registry, storage: Witness, proxy: Start, repository: str) -> None:
    server = proxy(far.host)
    location = begin(HTTPClient(server.host), repository)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            f"PATCH {location} HTTP/1.1\r\nHost: {server.host}\r\nContent-Length: 9\r\n"
            "\r\nsome".encode()
        )
        time.sleep(0.3)
        answer = HTTPClient(server.host).request("PATCH", location, b"other")
        assert (answer.status, answer.code) == (409, "BLOB_UPLOAD_INVALID")
        connection.sendall(b" more")
        assert b" 202 " in connection.recv(1000)
    assert HTTPClient(server.host).request("GET", location).headers["Range"] == "0-8"


def test_credentials(
    serve: Callable[..., Registry], s3_server: S3, storage: Witness, proxy: Start
) -> None:
    """The client's go to the registry, and not to storage."""
    url = s3_server.new_storage_url(endpoint=f"http://{storage.host}")
    environment = s3_server.environment()
    far = serve(OPENREGISTRY_ACCESS="accounts", OPENREGISTRY_STORAGE_URL=url, **environment)
    add_user(far.settings, "ada", PASSWORD)
    with closing(Witness(far.host)) as way:
        near = HTTPClient(proxy(way.host).host)
        data = make_bytes(PART + MIB, "ada")
        ada = basic("ada", PASSWORD)
        begun = near.request("POST", "/v2/ada/app/blobs/uploads/", headers=ada)
        put = with_query(begun.location, digest=sha256(data))
        assert near.request("PUT", put, data, ada).status == 201
        assert parts(storage) == [1, 2]
        begin_direct = ("POST", "/v2/ada/app/_openregistry/uploads/direct")
        assert begin_direct in way.with_credentials
        answer = near.request("POST", "/v2/ada/app/blobs/uploads/")
        assert answer.status == 401
    sent = [path for method, path in storage.with_credentials if method == "PUT"]
    assert not [path for path in sent if "partNumber" in path]


# The functions themselves


@pytest.fixture
def functions(far: Registry) -> Functions:
    """Those that the harness runs."""
    return Functions(Address.parse(far.host), "localhost", Progress(quiet=True))


def ask(functions: Functions, method: str, target: str, body: bytes | None = None) -> Response:
    """The answer to a request of a client's; one with a body is not finished."""
    path, _, query = target.partition("?")
    length = {} if body is None else {"Content-Length": str(len(body))}
    request = Request(method, path, Query(query), Headers({"Host": "localhost:5001", **length}))
    if body is None:
        return functions.act(request)
    receiver = functions.receive(request)
    assert not isinstance(receiver, Response), receiver
    receiver.feed([body])
    return receiver.finish()


@pytest.mark.parametrize("size", [1000, PART + MIB])
def test_what_its_client_has_left_is_dropped(
    functions: Functions, monkeypatch: pytest.MonkeyPatch, repository: str, size: int
) -> None:
    data = make_bytes(size, "idle")
    location = Headers(ask(functions, "POST", f"/v2/{repository}/blobs/uploads/").headers)[
        "location"
    ]
    assert ask(functions, "PATCH", location, data).status == 202
    functions.flush()
    assert ask(functions, "GET", location).status == 204
    monkeypatch.setattr(uploads, "IDLE", 0.0)
    functions.flush()
    assert ask(functions, "GET", location).status == 404
    assert functions.uploads.sending.memory.lent == 0


@pytest.mark.long
def test_memory_is_given_back(functions: Functions, repository: str) -> None:
    for size in (1000, PART + MIB):
        data = make_bytes(size, "given back")
        answer = ask(functions, "POST", f"/v2/{repository}/blobs/uploads/")
        location = Headers(answer.headers)["location"]
        assert ask(functions, "PATCH", location, data).status == 202
        assert functions.uploads.sending.memory.lent
        assert ask(functions, "PUT", f"{location}?digest={sha256(data)}").status == 201
        assert functions.uploads.sending.memory.lent == 0


@pytest.mark.long
def test_memory_stays_bounded(far: Registry, proxy: Start, repository: str) -> None:
    """With more layers at once than clients send."""
    server = proxy(far.host)
    datas = [make_bytes(96 * MIB, number) for number in range(8)]
    with processes.MemoryWatch(server.pid) as memory:
        threads = [
            threading.Thread(target=send, args=(HTTPClient(server.host), repository, data))
            for data in datas
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(is_there(far, repository, data) for data in datas)
    assert memory.peak < 150e6
