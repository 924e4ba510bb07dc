"""Requests end in bounded time whatever a server does, and nobody is told what was sent."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from chalicelib.resolvers import ResolverError, connections
from chalicelib.resolvers.connections import Server
from tests.resolvers.faults import Fault, FaultyNode

SECRET = "not-to-be-told"


@pytest.fixture
def node() -> Iterator[FaultyNode]:
    with closing(FaultyNode(id={"ID": "x"})) as made:
        yield made


@pytest.fixture
def server(node: FaultyNode) -> Server:
    return Server("The node", node.url)


def ask(server: Server, seconds: float = 0.3, limit: int = 1000, body: bytes = b"") -> bytes:
    answer = server.ask("POST", "/api/v0/id", seconds=seconds, limit=limit, body=body)
    assert answer.status == 200
    return answer.body


def test_connections_are_used_again(node: FaultyNode, server: Server) -> None:
    for _ in range(5):
        assert ask(server) == b'{"ID": "x"}'
    assert node.connections == 1
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: ask(server, 5), range(40))) == {b'{"ID": "x"}'}
    assert node.connections <= 9


def twice(listener: socket.socket) -> None:
    """A server that ends connections which have been idle for a moment."""
    for _ in range(2):
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def test_a_connection_that_the_server_ended_is_not_used(background: Callable[..., None]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        background(twice, listener)
        server = Server("The node", f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert ask(server) == b"ok"
        time.sleep(0.1)
        assert ask(server) == b"ok"


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Fault(hang=True), "in time"),
        (Fault(trickle=0.1), "in time"),
        (Fault(lost=0), "broke off"),
        (Fault(lost=5), "broke off"),
        (Fault(swollen=2000), "more than 1000 bytes"),
    ],
)
def test_a_server_in_trouble(node: FaultyNode, server: Server, fault: Fault, sentence: str) -> None:
    node.faults["id"] = fault
    started = time.monotonic()
    with pytest.raises(ResolverError, match=sentence) as error:
        ask(server)
    assert str(error.value).startswith(f"The node {node.url[7:]} ")
    assert time.monotonic() - started < 2
    node.faults.clear()
    ask(server)


def test_a_server_that_is_not_there() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as nobody:
        port = nobody.getsockname()[1]
    server = Server("The node", f"http://user:{SECRET}@127.0.0.1:{port}/rpc")
    with pytest.raises(ResolverError) as error:
        ask(server)
    assert str(error.value) == f"The node 127.0.0.1:{port} is out of reach: Connection refused."


def test_an_account_is_sent_and_not_told(node: FaultyNode) -> None:
    server = Server("The node", node.url.replace("//", f"//a%40b:{SECRET}@"))
    ask(server)
    assert node.seen[0].headers["Authorization"] == "Basic YUBiOm5vdC10by1iZS10b2xk"
    node.faults["id"] = Fault(hang=True)
    with pytest.raises(ResolverError) as error:
        ask(server)
    assert SECRET not in f"{error.value!r} {error.value.__cause__!r} {server.name}"


def test_what_is_not_taken_is_given_up(
    node: FaultyNode, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "STALLED_SECONDS", 0.3)
    node.faults["id"] = Fault(stall=1000)
    started = time.monotonic()
    with pytest.raises(ResolverError, match="in time"):
        ask(server, seconds=30, body=bytes(64 << 20))
    assert time.monotonic() - started < 5


def early(listener: socket.socket) -> None:
    """A server that refuses what it has not read."""
    connection, _ = listener.accept()
    with connection:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 507 Full\r\nContent-Length: 4\r\n\r\nfull")
        time.sleep(0.5)


def test_a_refusal_before_the_end_is_heard(background: Callable[..., None]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        background(early, listener)
        server = Server("The node", f"http://127.0.0.1:{listener.getsockname()[1]}")
        pieces = (bytes(1 << 16) for _ in range(10_000))
        answer = server.send("POST", "/", pieces, 10_000 << 16, seconds=5, limit=100)
    assert answer == (507, b"full")


def test_what_cannot_be_read_is_not_sent_whole(node: FaultyNode, server: Server) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        server.send("POST", "/api/v0/id", pieces(), 8, seconds=5, limit=100)
    ask(server)
    assert node.connections == 2


@pytest.fixture
def background() -> Iterator[Callable[..., None]]:
    """Do something on a thread, which is waited for at the end."""
    threads: list[threading.Thread] = []

    def start(function: Callable[..., None], *arguments: object) -> None:
        threads.append(threading.Thread(target=function, args=arguments, daemon=True))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join(10)
