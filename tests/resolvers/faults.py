"""Stands between the registry and an IPFS node, and spoils what it is told to."""

import contextlib
import http.client
import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Fault:
    """What happens to a command. ``stall``: after so many bytes of its body no more is read, and
    nothing answered. ``hang``: no answer. ``lost``: the answer breaks off after so many bytes.
    ``lie``: one text in the answer is another one. ``status``: the answer of a proxy in trouble.
    ``trickle``: the answer comes byte by byte, so many seconds apart. ``swollen``: the answer is
    so many bytes longer. ``slow``: each 64 KiB of its body take so many seconds."""

    stall: int | None = None
    hang: bool = False
    lost: int | None = None
    lie: tuple[bytes, bytes] | None = None
    status: int = 0
    trickle: float = 0
    swollen: int = 0
    slow: float = 0


@dataclass(frozen=True)
class Seen:
    """A command that came: its headers, and the number of its connection."""

    command: str
    query: str
    headers: dict[str, str]
    connection: int


class FaultyNode(ThreadingHTTPServer):
    """At ``url``; passes on to ``target`` what it does not spoil, and where there is none answers
    with what ``answers`` says."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, target: str = "", **answers: object) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(target).netloc
        self.answers = {name.replace("_", "/"): answer for name, answer in answers.items()}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.faults: dict[str, Fault] = {}
        """By command; "" stands for all others."""
        self.seen: list[Seen] = []
        self.connections = 0
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """Connections break here, as they should."""

    def commands(self) -> list[str]:
        """Those that came, in their order."""
        return [seen.command for seen in self.seen]

    def close(self) -> None:
        """End what hangs, and take no more connections."""
        self.released.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyNode

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1
        self.number = self.server.connections

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path, _, query = self.path.partition("?")
        command = path.removeprefix("/api/v0/")
        self.server.seen.append(Seen(command, query, dict(self.headers), self.number))
        fault = self.server.faults.get(command) or self.server.faults.get("") or Fault()
        if fault.hang or fault.stall is not None:
            self.rfile.read(fault.stall or 0)
            self._wait()
            return
        status, answer = self._answer(command, fault.slow)
        if fault.status:
            status, answer = fault.status, b"<html>So it was planned</html>"
        if fault.lie:
            answer = answer.replace(*fault.lie)
        answer += b" " * fault.swollen
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if fault.lost is not None:
            answer, self.close_connection = answer[: fault.lost], True
        if not fault.trickle:
            self.wfile.write(answer)
            return
        for byte in answer:
            if self.server.released.wait(fault.trickle):
                break
            self.wfile.write(bytes([byte]))

    def _wait(self) -> None:
        self.close_connection = True
        self.server.released.wait(60)

    def _answer(self, command: str, slow: float) -> tuple[int, bytes]:
        length = int(self.headers.get("Content-Length", "0"))
        if not self.server.target:
            left = length
            while left and (piece := self.rfile.read(min(left, 1 << 16))):
                left -= len(piece)
                self.server.released.wait(slow)
            answer = self.server.answers.get(command)
            if answer is None:
                return 500, json.dumps({"Message": f"{command} was not found"}).encode()
            return 200, answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        onward = http.client.HTTPConnection(self.server.target)
        with contextlib.closing(onward):
            onward.putrequest("POST", self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                onward.putheader(name, value)
            onward.endheaders()
            while length and (piece := self.rfile.read1(min(length, 1 << 16))):
                onward.send(piece)
                length -= len(piece)
            if length:
                raise ConnectionError("the registry broke off")
            response = onward.getresponse()
            return response.status, response.read()
