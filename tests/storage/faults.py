"""Stands between a store and the S3 server, and spoils what it is told to."""

import contextlib
import http.client
import socket
import socketserver
import struct
import threading
from collections import defaultdict, deque
from dataclasses import dataclass
from io import BufferedIOBase


@dataclass(frozen=True)
class Fault:
    """What happens to one request. ``status``: the answer of an S3 server in trouble. ``reset``:
    the connection breaks after so many bytes of the body. ``hang``: no answer. ``lost``: the server
    does what was asked, and its answer breaks off after so many bytes of its body (-1: before it
    begins)."""

    status: int = 0
    reset: int | None = None
    hang: bool = False
    lost: int | None = None


@dataclass(frozen=True)
class Seen:
    """A request that came through: S3's name for it, its length, and its headers."""

    operation: str
    length: int
    headers: dict[str, str]


class FaultyProxy(socketserver.ThreadingTCPServer):
    """``endpoint`` is for the store. ``will`` plans the faults of one operation's next requests;
    ``always`` is the fault of those with no plan."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.target = target.removeprefix("http://")
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.plans: dict[str, deque[Fault | None]] = defaultdict(deque)
        self.always: dict[str, Fault] = {}
        self.seen: list[Seen] = []
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def will(self, operation: str, *faults: Fault | None) -> None:
        """What happens to the next requests of an operation, one after another; None: nothing."""
        self.plans[operation].extend(faults)

    def count(self, operation: str) -> int:
        """How many requests of that operation came."""
        return sum(seen.operation == operation for seen in self.seen)

    def fault(self, operation: str) -> Fault | None:
        """What happens to this request."""
        with self._lock:
            plan = self.plans[operation]
            return plan.popleft() if plan else self.always.get(operation)

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        """Close at once, so that a reset is one."""
        assert isinstance(request, socket.socket)
        request.close()

    def close(self) -> None:
        """End what hangs, and take no more connections."""
        self.stopped.set()
        self.shutdown()
        self.server_close()


class _Connection(socketserver.StreamRequestHandler):
    server: FaultyProxy

    def handle(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            while self.relay():
                pass

    def relay(self) -> bool:
        first = self.rfile.readline().decode()
        if not first:
            return False
        method, target, _ = first.split(" ")
        headers = http.client.parse_headers(self.rfile)
        length = int(headers.get("Content-Length", "0"))
        asked = operation(method, target)
        self.server.seen.append(Seen(asked, length, dict(headers.items())))
        fault = self.server.fault(asked) or Fault()
        if fault.reset is not None:
            _read(self.rfile, min(fault.reset, length))
            return self.reset()
        body = _read(self.rfile, length)
        if fault.hang:
            self.server.stopped.wait(30)
            return False
        if fault.status:
            code = {
                403: "AccessDenied",
                404: "NoSuchUpload",
                500: "InternalError",
                503: "SlowDown",
            }[fault.status]
            text = f"<Error><Code>{code}</Code><Message>So it was planned</Message></Error>"
            answer = text.encode() if method != "HEAD" else b""
            self.wfile.write(
                f"HTTP/1.1 {fault.status} Planned\r\nContent-Type: application/xml\r\n"
                f"Content-Length: {len(answer)}\r\n\r\n".encode()
                + answer
            )
            return True
        # A connection that is kept could have been closed by S3, a fault that was not planned.
        with contextlib.closing(http.client.HTTPConnection(self.server.target)) as onward:
            onward.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                onward.putheader(name, value)
            onward.endheaders(body or None)
            response = onward.getresponse()
            data = response.read()
        head = f"HTTP/1.1 {response.status} {response.reason}\r\n"
        kept = [pair for pair in response.getheaders() if pair[0] != "Transfer-Encoding"]
        if method != "HEAD":
            kept = [pair for pair in kept if pair[0] != "Content-Length"]
            kept.append(("Content-Length", str(len(data))))
        head += "".join(f"{name}: {value}\r\n" for name, value in kept)
        if fault.lost is not None:
            if fault.lost < 0:
                return self.reset()
            self.wfile.write(head.encode() + b"\r\n" + data[: fault.lost])
            return False
        self.wfile.write(head.encode() + b"\r\n" + data)
        return True

    def reset(self) -> bool:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False


def operation(method: str, target: str) -> str:
    """S3's name for a request."""
    path, _, query = target.partition("?")
    if path.count("/") < 2 or path.endswith("/"):
        listed = "ListMultipartUploads" if "uploads" in query else "ListObjectsV2"
        return "HeadBucket" if method == "HEAD" else listed
    by_query = {
        "POST": "CompleteMultipartUpload" if "uploadId=" in query else "CreateMultipartUpload",
        "PUT": "UploadPart" if "partNumber=" in query else "PutObject",
        "DELETE": "AbortMultipartUpload" if "uploadId=" in query else "DeleteObject",
        "GET": "GetObject",
        "HEAD": "HeadObject",
    }
    return by_query.get(method, method)


def _read(file: BufferedIOBase, length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise OSError("the client went away")
    return data
