"""What a real client asks for, written down on its way to the registry."""

import contextlib
import socket
import socketserver
import threading
from typing import BinaryIO


class Witness(socketserver.ThreadingTCPServer):
    """A relay in front of a registry: it passes bytes on as they are and reads requests' heads."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Relay)
        self.target = target
        self.host = f"127.0.0.1:{self.server_address[1]}"
        """host:port to give to the client."""
        self.requests: list[tuple[str, str]] = []
        """Method and path, with its query, of each request, in order."""
        self.with_credentials: list[tuple[str, str]] = []
        """Those of them that carry credentials."""
        self.relayed = 0
        """Bytes of bodies that have gone on to the registry."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def asked(self, method: str, word: str = "") -> list[str]:
        """The paths of the requests with this method that contain word."""
        return [path for verb, path in self.requests if verb == method and word in path]

    def close(self) -> None:
        """Take no more connections."""
        self.shutdown()
        self.server_close()


class _Relay(socketserver.StreamRequestHandler):
    server: Witness

    def handle(self) -> None:
        host, port = self.server.target.split(":")
        with socket.create_connection((host, int(port))) as registry:
            responses = threading.Thread(target=self.relay_responses, args=(registry,))
            responses.start()
            with contextlib.suppress(OSError), registry.makefile("wb") as onward:
                while self.relay_request(onward):
                    onward.flush()
            with contextlib.suppress(OSError):
                registry.shutdown(socket.SHUT_WR)
            responses.join()

    def relay_responses(self, registry: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := registry.recv(1 << 16):
                self.connection.sendall(data)
            self.connection.shutdown(socket.SHUT_RDWR)

    def relay_request(self, onward: BinaryIO) -> bool:
        first = self.relay_line(onward)
        if not first:
            return False
        method, path, _ = first.decode().split(" ", 2)
        self.server.requests.append((method, path))
        headers = self.relay_headers(onward)
        if "authorization" in headers:
            self.server.with_credentials.append((method, path))
        if "chunked" in headers.get("transfer-encoding", ""):
            while size := int(self.relay_line(onward).partition(b";")[0] or b"0", 16):
                self.relay_bytes(onward, size + len(b"\r\n"))
            self.relay_headers(onward)
        else:
            self.relay_bytes(onward, int(headers.get("content-length", 0)))
        return True

    def relay_headers(self, onward: BinaryIO) -> dict[str, str]:
        headers = {}
        while (line := self.relay_line(onward)).strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        onward.flush()
        return headers

    def relay_line(self, onward: BinaryIO) -> bytes:
        line = self.rfile.readline()
        onward.write(line)
        return line

    def relay_bytes(self, onward: BinaryIO, count: int) -> None:
        while count and (data := self.rfile.read(min(count, 1 << 16))):
            onward.write(data)
            count -= len(data)
            self.server.relayed += len(data)
