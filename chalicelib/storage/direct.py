"""Parts that clients send to S3 themselves, at presigned URLs.

A URL is for one part of one multipart upload and one length, all of which are signed. It can do
nothing once the upload is complete: S3 knows the upload no longer, and the object at its key is
what it is. That is why nobody is given a presigned PutObject, which could be used again to replace
bytes that were verified.
"""

from collections.abc import Sequence
from threading import Event
from typing import TYPE_CHECKING, Any

from chalicelib.storage import Sent, Staged
from chalicelib.storage.multipart import MOST_PARTS, Multipart

if TYPE_CHECKING:
    from chalicelib.storage.s3 import S3Store

_LEAST, _MOST, _STEP = 5 << 20, 128 << 20, 1 << 20


class S3Parts:
    """``ClientParts`` of a bucket."""

    most = MOST_PARTS

    def __init__(self, store: "S3Store") -> None:
        self._store = store

    def size(self, blob: int | None, wanted: int | None) -> int | None:
        size = min(max(wanted or self._store.part_size, _LEAST), _MOST)
        if blob is not None:
            size = max(size, -(-blob // MOST_PARTS))
        size = -(-size // _STEP) * _STEP
        return size if size <= _MOST else None

    def begin(self, key: str) -> str:
        return self._store.begin_multipart(key, Event())

    def presign(self, key: str, upload: str, number: int, size: int, seconds: int) -> str:
        client = self._store.process.public_client
        part = {"UploadId": upload, "PartNumber": number, "ContentLength": size}
        return client.presign("PUT", self._store.address(key) | part, seconds)

    def list(self, key: str, upload: str) -> Sequence[Sent]:
        client = self._store.client
        found: dict[int, Any] = {}
        where: dict[str, Any] = {**self._store.address(key), "UploadId": upload}
        while True:
            page = client.call(client.s3.list_parts, **where)
            for part in page.get("Parts", ()):
                number = part["PartNumber"]
                # SeaweedFS keeps what was sent before, too.
                if number not in found or part["LastModified"] > found[number]["LastModified"]:
                    found[number] = part
            if not page.get("IsTruncated"):
                return [
                    Sent(number, part["Size"], part["ETag"])
                    for number, part in sorted(found.items())
                ]
            where["PartNumberMarker"] = page["NextPartNumberMarker"]

    def staged(self, key: str, upload: str, part_size: int, sent: Sequence[Sent]) -> Staged:
        parts = [(part.number, part.tag) for part in sent]
        size = sum(part.size for part in sent)
        return Staged(key, size, whole=False, state=Multipart(upload, part_size, parts).state())
