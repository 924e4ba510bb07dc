"""Stands between a client and Postgres, and cuts the line at a chosen moment."""

import contextlib
import socket
import threading
from dataclasses import dataclass


@dataclass
class Cut:
    """Cut the connection once, when the client sends ``text``; what is said in the same breath
    reaches the server if ``delivered``, and the server's answer reaches nobody."""

    text: bytes
    delivered: bool


class Relay:
    """Listens on ``port`` of 127.0.0.1 and passes everything on to ``target``."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._clients: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.cut: Cut | None = None
        self.cuts = 0
        self.sent = 0
        """Pieces that the client has sent, each at most a round trip."""
        self.carried = 0
        """Bytes, in both directions."""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def hang_up(self) -> None:
        """End all connections."""
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._clients.append(client)
                server = socket.create_connection(("127.0.0.1", self._target))
                mute = threading.Event()
                down = threading.Thread(target=self._down, args=(client, server, mute), daemon=True)
                down.start()
                up = threading.Thread(
                    target=self._up, args=(client, server, mute, down), daemon=True
                )
                up.start()

    def _up(
        self,
        client: socket.socket,
        server: socket.socket,
        mute: threading.Event,
        down: threading.Thread,
    ) -> None:
        with contextlib.suppress(OSError), client, server:
            while data := client.recv(65536):
                self.sent += 1
                self.carried += len(data)
                cut = self.cut
                if cut is not None and cut.text in data:
                    self.cut, self.cuts = None, self.cuts + 1
                    if cut.delivered:
                        mute.set()
                        server.sendall(data)
                        server.shutdown(socket.SHUT_WR)
                        down.join(20)  # until the server has done it, and hung up
                    break
                server.sendall(data)
            server.shutdown(socket.SHUT_RDWR)

    def _down(self, client: socket.socket, server: socket.socket, mute: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                self.carried += len(data)
                if not mute.is_set():
                    client.sendall(data)
        if not mute.is_set():
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
