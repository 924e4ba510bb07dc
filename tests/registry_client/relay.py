"""A bad line between a client and a server: breaks off, stalls, and swaps bytes, as it is told."""

import contextlib
import socket
import socketserver
import threading


class Line(socketserver.ThreadingTCPServer):
    """A relay in front of a server on this machine."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.target = target
        self.host = f"127.0.0.1:{self.server_address[1]}"
        """host:port to give to the client."""
        self.breaks: list[int] = []
        """After how many bytes of answers the next connections break off."""
        self.stalls_after: int | None = None
        """After how many bytes of answers every connection stalls."""
        self.swaps_after: int | None = None
        """Which byte of each connection's answers is another one."""
        self.stalled = threading.Event()
        self.answered = 0
        """Bytes of answers that went to the client."""
        self.asked = ""
        """What the client sent."""
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self.shutdown()
        self.server_close()


class _Connection(socketserver.BaseRequestHandler):
    server: Line

    def handle(self) -> None:
        host, port = self.server.target.split(":")
        with socket.create_connection((host, int(port))) as onward:
            threading.Thread(target=self.relay_requests, args=(onward,), daemon=True).start()
            self.relay_answers(onward)

    def relay_requests(self, onward: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := self.request.recv(1 << 16):
                self.server.asked += data.decode("latin-1")
                onward.sendall(data)
            onward.shutdown(socket.SHUT_WR)

    def relay_answers(self, onward: socket.socket) -> None:
        left = self.server.breaks.pop(0) if self.server.breaks else None
        done = 0
        with contextlib.suppress(OSError):
            while data := bytearray(onward.recv(1 << 16 if left is None else min(left, 1 << 16))):
                swap, stall = self.server.swaps_after, self.server.stalls_after
                if swap is not None and done <= swap < done + len(data):
                    data[swap - done] ^= 1
                self.request.sendall(data)
                done += len(data)
                self.server.answered += len(data)
                if stall is not None and done >= stall:
                    self.server.stalled.set()
                    self.request.recv(1)  # until the client hangs up
                    threading.Event().wait(30)
                if left is not None:
                    left -= len(data)
                    if left == 0:
                        break
        with contextlib.suppress(OSError):
            self.request.shutdown(socket.SHUT_RDWR)
