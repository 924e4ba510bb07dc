"""A server whose answers a test writes."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Answer = tuple[int, dict[str, str], bytes]


class Asked:
    """A request as it came."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self.method = handler.command
        self.path = urlsplit(handler.path).path
        self.query = parse_qs(urlsplit(handler.path).query)
        self.headers = handler.headers
        self.authorization = handler.headers.get("Authorization")
        if "chunked" in handler.headers.get("Transfer-Encoding", ""):
            self.body = b""
            while size := int(handler.rfile.readline(), 16):
                self.body += handler.rfile.read(size)
                handler.rfile.readline()
            handler.rfile.readline()
        else:
            self.body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))


class Script(ThreadingHTTPServer):
    """Answers every request as ``answer`` says; status 0 hangs up."""

    daemon_threads = True

    def __init__(self, answer: Callable[[Asked], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.asked: list[Asked] = []
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.url = f"http://{self.host}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Speaks HTTP/1.1."""

    protocol_version = "HTTP/1.1"
    server: Script

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline()
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        asked = Asked(self)
        self.server.asked.append(asked)
        status, headers, body = self.server.answer(asked)
        if not status:  # hang up
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass
