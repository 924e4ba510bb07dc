"""A pinning service, which takes what the specification says and nothing else
(https://ipfs.github.io/pinning-services-api-spec/, version 1.0.0). With a node of its own it
fetches and keeps what it is asked to."""

import itertools
import json
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

from chalicelib.resolvers.unixfs import parse
from tests.servers import Kubo

STATUSES = ("queued", "pinning", "pinned", "failed")
TOKEN = "token-of-the-service"
DELEGATE = "/dnsaddr/pins.example.org/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


class Refused(Exception):
    """An answer that is no good one: its status, reason and details."""

    def __init__(self, status: int, reason: str, details: str = "") -> None:
        super().__init__(reason)
        self.status, self.reason, self.details = status, reason, details


class Service(ThreadingHTTPServer):
    """At ``url``. ``pins`` has what it was asked to keep, by request id; ``trouble`` is answered to
    all that it is asked."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, node: Kubo | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/psa"
        self.node = node
        self.pins: dict[str, dict[str, Any]] = {}
        self.trouble: Refused | None = None
        self._count = itertools.count(1)
        self._delegates = [DELEGATE]
        if node:
            found = json.loads(node.run("id", api=True).stdout)
            self._delegates = found["Addresses"][:20]
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self.shutdown()
        self.server_close()

    def statuses(self) -> dict[str, str]:
        """What it keeps, or is about to: the status of each CID."""
        return {pin["pin"]["cid"]: pin["status"] for pin in self.pins.values()}

    def add(self, pin: Any, replaced: str = "") -> dict[str, Any]:
        """Take a pin object."""
        _check_pin(pin)
        if replaced:
            self._find(replaced)
            del self.pins[replaced]
        number = next(self._count)
        made = {
            "requestid": f"request-{number}",
            "status": "queued",
            "created": datetime.fromtimestamp(1_700_000_000 + number, UTC).isoformat(),
            "pin": pin,
            "delegates": self._delegates,
        }
        self.pins[f"request-{number}"] = made
        if self.node:
            threading.Thread(target=self._fetch, args=(made, self.node), daemon=True).start()
        return made

    def _fetch(self, made: dict[str, Any], node: Kubo) -> None:
        made["status"] = "pinning"
        done = node.run("pin", "add", made["pin"]["cid"], check=False, api=True)
        made["status"] = "failed" if done.returncode else "pinned"

    def _find(self, identifier: str) -> dict[str, Any]:
        if identifier not in self.pins:
            raise Refused(404, "NOT_FOUND", "The specified resource was not found")
        return self.pins[identifier]

    def remove(self, identifier: str) -> None:
        """Let a pin object go."""
        self._find(identifier)
        del self.pins[identifier]

    def list(self, query: str) -> dict[str, Any]:
        """The pin objects that a query is about."""
        asked = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
        _need(asked.keys() <= {"cid", "name", "match", "status", "before", "after", "limit"})
        statuses = asked.get("status", "pinned").split(",")
        _need(set(statuses) <= set(STATUSES) and len(set(statuses)) == len(statuses))
        limit = asked.get("limit", "10")
        _need(limit.isdigit() and 1 <= int(limit) <= 1000)
        cids = asked["cid"].split(",") if "cid" in asked else None
        _need(cids is None or 1 <= len(cids) <= 10)
        found = [
            pin
            for pin in sorted(self.pins.values(), key=lambda pin: pin["created"], reverse=True)
            if pin["status"] in statuses
            and (cids is None or pin["pin"]["cid"] in cids)
            and asked.get("name") in (None, pin["pin"].get("name"))
        ]
        return {"count": len(found), "results": found[: int(limit)]}


def _need(condition: bool) -> None:
    if not condition:
        raise Refused(400, "BAD_REQUEST", "That is not as the specification says")


def _check_pin(pin: Any) -> None:
    _need(isinstance(pin, dict) and pin.keys() <= {"cid", "name", "origins", "meta"})
    try:
        parse(pin["cid"])
    except (KeyError, ValueError):
        _need(False)
    _need(isinstance(pin.get("name", ""), str) and len(pin.get("name", "")) <= 255)
    origins = pin.get("origins") or []
    _need(isinstance(origins, list) and len(origins) <= 20 and len(set(origins)) == len(origins))
    _need(all(isinstance(each, str) and each.startswith("/") for each in origins))
    meta = pin.get("meta") or {}
    _need(isinstance(meta, Mapping) and all(isinstance(each, str) for each in meta.values()))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        try:
            status, answer = self._answer(body)
        except Refused as refused:
            error = {"reason": refused.reason, "details": refused.details}
            status, answer = refused.status, {"error": error}
        data = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        if data:
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _answer(self, body: bytes) -> tuple[int, Any]:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "UNAUTHORIZED", "Access token is missing or invalid")
        if self.server.trouble:
            raise self.server.trouble
        path, _, query = self.path.partition("?")
        head, slash, identifier = path.removeprefix("/psa/").partition("/")
        if head != "pins" or bool(slash) != bool(identifier):
            raise Refused(404, "NOT_FOUND")
        if self.command == "POST":
            _need(self.headers.get("Content-Type", "").startswith("application/json"))
            try:
                pin = json.loads(body)
            except ValueError:
                raise Refused(400, "BAD_REQUEST", "That is no JSON") from None
            return 202, self.server.add(pin, identifier)
        if self.command == "DELETE" and identifier:
            self.server.remove(identifier)
            return 202, None
        _need(self.command == "GET" and not identifier)
        return 200, self.server.list(query)
