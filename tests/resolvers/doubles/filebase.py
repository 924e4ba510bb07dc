"""A double of Filebase's IPFS tier, over a real S3 server.

It hands requests on to the S3 server, as they came, and does what Filebase's documents say that
Filebase adds or lacks: the CID in ``x-amz-meta-cid`` of a small object's answer, and later in a
large one's metadata; archives that are imported with the metadata ``import: car``; 503 above so
many requests a second; no CopyObject, no UploadPartCopy, no conditional writes; parts of 5 MiB or
more. At the same address are its gateway and its RPC, which have the blocks of what the bucket has.

It was made from the documents, and not compared with Filebase itself, which could not be reached.
What they do not say is decided thus: an imported object has the archive's bytes and size; an
archive that is broken, or lacks blocks, gets no CID; a gateway answers 404 about what it has not.
"""

import contextlib
import json
import threading
import time
from base64 import b64encode
from collections import Counter, deque
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree as ET

from chalicelib.resolvers.car import Reader
from chalicelib.resolvers.unixfs import UNIXFS_V1_2025, Profile, Tree, node, parse
from tests.servers import S3
from tests.storage.faults import operation

_SMALLEST_PART = 5 << 20
_HOP = {"connection", "transfer-encoding", "content-length", "date", "server"}
_CONDITIONS = ("If-Match", "If-None-Match")


@dataclass(frozen=True)
class Object:
    """What an object is on IPFS: its CID, None where it could not be imported, and when that is
    said (on the clock of ``time.monotonic``)."""

    cid: str | None
    blocks: dict[bytes, bytes]
    said_at: float


class Filebase(ThreadingHTTPServer):
    """``url`` is where S3, the gateway and the RPC are. ``profile`` is how it cuts what is no
    archive; ``lag`` is for how many seconds the CID of a large object is not said; ``rate`` is how
    many requests a second it takes; ``wrong`` is what it says in place of any CID; ``silent``: it
    says none. ``operations`` counts what came, ``refused`` of it what was too much."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, s3: S3) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.s3 = s3
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.profile: Profile = UNIXFS_V1_2025
        self.lag = 0.0
        self.rate = 500
        self.wrong = ""
        self.silent = False
        self.operations: Counter[str] = Counter()
        self.refused = 0
        self.objects: dict[str, Object] = {}
        self.token = b64encode(f"{s3.access_key}:{s3.secret_key}:{s3.bucket}".encode()).decode()
        self._imports: dict[str, bool] = {}
        self._parts: dict[str, dict[int, int]] = {}
        self._recent: deque[float] = deque()
        self._lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self.shutdown()
        self.server_close()

    def takes(self) -> bool:
        """Whether there is room for one more request in this second."""
        now = time.monotonic()
        with self._lock:
            while self._recent and self._recent[0] < now - 1:
                self._recent.popleft()
            if len(self._recent) >= self.rate:
                self.refused += 1
                return False
            self._recent.append(now)
            return True

    def cid(self, path: str) -> str | None:
        """What is said now of an object's CID."""
        found = self.objects.get(path)
        if found is None or self.silent or time.monotonic() < found.said_at:
            return None
        return found.cid and (self.wrong or found.cid)

    def block(self, cid: str) -> bytes | None:
        """A block of what the bucket has."""
        digest = parse(cid).digest
        for found in list(self.objects.values()):
            if digest in found.blocks:
                return found.blocks[digest]
        return None

    def keep(self, path: str, data: bytes, *, imported: bool, lag: float) -> None:
        """Put on IPFS what an object has."""
        cid: str | None
        if imported:
            cid, blocks = _imported(data)
        else:
            tree = Tree([data], self.profile)
            cid = tree.cid
            blocks = {parse(each).digest: block for each, block in tree.blocks([data])}
        self.objects[path] = Object(cid, blocks, time.monotonic() + lag)

    def begin(self, upload: str, *, imported: bool) -> None:
        """Remember a multipart upload."""
        self._imports[upload] = imported
        self._parts[upload] = {}

    def part(self, upload: str, number: int, size: int) -> None:
        """Remember a part of it."""
        self._parts.setdefault(upload, {})[number] = size

    def ended(self, upload: str) -> bool | None:
        """Forget it, and say whether it was of an archive; None where it had ended before."""
        self._parts.pop(upload, None)
        return self._imports.pop(upload, None)

    def too_small(self, upload: str) -> bool:
        """Whether a part other than the last has less than it must."""
        parts = sorted(self._parts.get(upload, {}).items())
        return any(size < _SMALLEST_PART for _, size in parts[:-1])


def _imported(data: bytes) -> tuple[str | None, dict[bytes, bytes]]:
    """The root of an archive, if all that is below it is there, and its blocks."""
    try:
        reader = Reader([data])
        [root] = reader.roots
        blocks = {parse(cid).digest: block for cid, block in reader}
        waiting = [root]
        while waiting:
            cid = parse(waiting.pop())
            block = blocks[cid.digest]
            if not cid.raw:
                waiting += (child.cid for child in node(block).children)
    except (ValueError, KeyError):
        return None, {}
    return root, blocks


class _Request(BaseHTTPRequestHandler):
    server: Filebase
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path.startswith("/ipfs/"):
            self._gateway()
        else:
            self._s3()

    def do_POST(self) -> None:
        if self.path.startswith("/api/v0/"):
            self._rpc()
        else:
            self._s3()

    def do_HEAD(self) -> None:
        self._s3()

    def do_PUT(self) -> None:
        self._s3()

    def do_DELETE(self) -> None:
        self._s3()

    def _s3(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = operation(self.command, self.path)
        self.server.operations[asked] += 1
        if not self.server.takes():
            return self._error(503, "SlowDown")
        if self.headers["x-amz-copy-source"] or any(map(self.headers.get, _CONDITIONS)):
            return self._error(501, "NotImplemented")
        path = unquote(urlsplit(self.path).path)
        query = parse_qs(urlsplit(self.path).query)
        upload = query.get("uploadId", [""])[0]
        if asked == "CompleteMultipartUpload" and self.server.too_small(upload):
            return self._error(400, "EntityTooSmall")
        status, headers, data = self._onward(body)
        said = None
        if status < 300:
            self._note(asked, path, upload, query, body, data)
            if asked in ("PutObject", "HeadObject", "GetObject"):
                said = self.server.cid(path)
        self._send(status, headers, data, said)
        return None

    def _onward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        with contextlib.closing(HTTPConnection(self.server.s3.endpoint[7:])) as onward:
            onward.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            # The signature is of the Host by which the double was called.
            for name, value in self.headers.items():
                onward.putheader(name, value)
            onward.endheaders(body or None)
            response = onward.getresponse()
            return response.status, response.getheaders(), response.read()

    def _note(
        self,
        asked: str,
        path: str,
        upload: str,
        query: dict[str, list[str]],
        body: bytes,
        data: bytes,
    ) -> None:
        """Do on IPFS what was done in the bucket."""
        server = self.server
        is_archive = self.headers["x-amz-meta-import"] == "car"
        if asked == "PutObject":
            server.keep(path, body, imported=is_archive, lag=0)
        elif asked == "CreateMultipartUpload":
            found = ET.fromstring(data).findtext("{*}UploadId")
            server.begin(found or "", imported=is_archive)
        elif asked == "UploadPart":
            server.part(upload, int(query["partNumber"][0]), len(body))
        elif asked == "CompleteMultipartUpload":
            imported = server.ended(upload)
            if imported is not None:
                server.keep(path, self._object(path), imported=imported, lag=server.lag)
        elif asked == "AbortMultipartUpload":
            server.ended(upload)
        elif asked == "DeleteObject":
            server.objects.pop(path, None)

    def _object(self, path: str) -> bytes:
        import boto3

        s3 = self.server.s3
        client = boto3.client(
            "s3",
            endpoint_url=s3.endpoint,
            region_name=s3.region,
            aws_access_key_id=s3.access_key,
            aws_secret_access_key=s3.secret_key,
        )
        bucket, _, key = path.lstrip("/").partition("/")
        data: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return data

    def _rpc(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        command = url.path.removeprefix("/api/v0/")
        self.server.operations[command] += 1
        if self.headers["Authorization"] != f"Bearer {self.server.token}":
            return self._json(401, {"Message": "unauthorized", "Code": 0, "Type": "error"})
        if command == "version":
            return self._json(200, {"Version": "0.0.0"})
        if command != "block/get":
            return self._json(404, {"Message": "no such command", "Code": 0, "Type": "error"})
        block = self.server.block(parse_qs(url.query)["arg"][0])
        if block is None:
            error = {"Message": "block was not found locally", "Code": 0, "Type": "error"}
            return self._json(500, error)
        return self._send(200, [], block)

    def _gateway(self) -> None:
        """Blocks, and files or a range of one."""
        url = urlsplit(self.path)
        cid = url.path.removeprefix("/ipfs/")
        self.server.operations["gateway"] += 1
        block = self.server.block(cid)
        if block is None:
            return self._send(404, [], b"not here")
        if parse_qs(url.query).get("format") == ["raw"]:
            return self._send(200, [("Content-Type", "application/vnd.ipld.raw")], block)
        file = self._file(cid)
        if not (wanted := self.headers["Range"]):
            return self._send(200, [("Accept-Ranges", "bytes")], file)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = file[int(first) : int(last or len(file)) + 1]
        end = int(first) + len(part) - 1
        return self._send(206, [("Content-Range", f"bytes {first}-{end}/{len(file)}")], part)

    def _file(self, cid: str) -> bytes:
        block = self.server.block(cid)
        assert block is not None
        if parse(cid).raw:
            return block
        found = node(block)
        return found.data + b"".join(self._file(child.cid) for child in found.children)

    def _json(self, status: int, value: object) -> None:
        self._send(status, [("Content-Type", "application/json")], json.dumps(value).encode())

    def _error(self, status: int, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>As documented</Message></Error>"
        self._send(status, [("Content-Type", "application/xml")], text.encode())

    def _send(
        self, status: int, headers: list[tuple[str, str]], data: bytes, said: str | None = None
    ) -> None:
        self.send_response(status)
        length = str(len(data))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in _HOP:
                self.send_header(name, value)
        if said is not None:
            self.send_header("x-amz-meta-cid", said)
        if status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
