"""Blobs in a bucket of any S3 service: parts, and one PutObject for what fits into one part.

A service must have PutObject, GetObject with ``Range``, HeadObject, DeleteObject, HeadBucket,
ListObjectsV2, multipart uploads with ListParts and ListMultipartUploads, and presigned URLs. On AWS
the registry needs ``s3:ListBucket`` and ``s3:ListBucketMultipartUploads`` beside the rights to its
objects: without the first, AWS answers 403 about an object that is not there.

The largest blob is 10,000 parts: 78 GiB with the default of 8 MiB. Part numbers that a request
reserved and did not need are lost, so that an upload in very many small chunks ends earlier.
"""

import heapq
import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from chalicelib.http import Stream
from chalicelib.storage import ClientParts, NoSuchObject, Refused, Staged
from chalicelib.storage.direct import S3Parts
from chalicelib.storage.multipart import TAIL, Multipart, S3Writer, tail_of
from chalicelib.storage.parts import Memory, Part

if TYPE_CHECKING:
    from chalicelib.storage.client import Client

_PAGE = 1000  # how many multipart uploads are listed at once
_THREADS = 16  # how many parts are on their way at once
_KEY = re.compile(r"[A-Za-z0-9_-]+")
FILEBASE = "s3.filebase.com"
"""The host at which Filebase puts on IPFS what it is given."""
_NO_OBJECT = ("404", "NoSuchKey", "NotFound")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where blobs are: a bucket, what its keys begin with, and how it is reached. Without an
    ``endpoint`` it is AWS's; ``public_endpoint`` is where clients reach what the registry reaches
    at ``endpoint``. Without an ``access_key`` and its ``secret_key``, credentials come as AWS's
    tools find them: environment, profile, role. ``service`` is what errors call it; ``rate`` is
    how many requests a second a process makes at most, 0 for any number. ``filebase``: it is one of
    Filebase's, which puts on IPFS what is there."""

    name: str
    prefix: str = ""
    endpoint: str = ""
    public_endpoint: str = ""
    region: str = ""
    path_style: bool = False
    access_key: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    service: str = "Object storage"
    rate: float = 0
    filebase: bool = False

    @classmethod
    def parse(cls, name: str, path: str, parameters: dict[str, str]) -> Self:
        """From the parts of an s3:// URL. Raises ``ValueError`` with the fault."""
        if not _BUCKET.fullmatch(name):
            raise ValueError("must name a bucket, like s3://my-bucket/prefix")
        prefix = path.strip("/")
        if not re.fullmatch(r"[A-Za-z0-9!_.*'()/-]*", prefix) or "//" in prefix:
            raise ValueError(f"has a prefix that cannot be used: {prefix!r}")
        for parameter in parameters:
            if parameter not in (
                *("endpoint", "public_endpoint", "region"),
                *("path_style", "filebase"),
            ):
                raise ValueError(
                    f"has an unknown parameter {parameter!r}; those known are endpoint,"
                    " public_endpoint, region, path_style and filebase"
                )
        endpoint = _endpoint(parameters, "endpoint")
        region = parameters.get("region", "")
        if not re.fullmatch(r"[a-z0-9-]*", region):
            raise ValueError(f"has a region that cannot be one: {region!r}")
        filebase = urlsplit(endpoint).hostname == FILEBASE
        return cls(
            name=name,
            prefix=prefix and prefix + "/",
            endpoint=endpoint,
            public_endpoint=_endpoint(parameters, "public_endpoint"),
            region=region or ("us-east-1" if endpoint else ""),
            path_style=_flag(parameters, "path_style", default=bool(endpoint)),
            filebase=_flag(parameters, "filebase", default=filebase),
        )


def _flag(parameters: dict[str, str], name: str, *, default: bool) -> bool:
    text = parameters.get(name, str(default)).lower()
    if text not in ("true", "false"):
        raise ValueError(f"has a {name} that is neither true nor false")
    return text == "true"


def _endpoint(parameters: dict[str, str], name: str) -> str:
    text = parameters.get(name, "")
    if not text:
        return ""
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
        raise ValueError(f"has as {name} what is no URL like https://s3.example.org")
    if "@" in url.netloc:
        raise ValueError(f"has credentials in its {name}; the environment gives them")
    try:
        _ = url.port
    except ValueError:
        raise ValueError(f"has a port in its {name} that is none") from None
    return text.rstrip("/")


class _Process:
    """What one process has for its store: its connections, its threads, its memory for parts."""

    def __init__(self, bucket: Bucket, part_memory: int) -> None:
        from chalicelib.storage.client import Client

        self.id = os.getpid()
        self.memory = Memory(part_memory)
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="parts")
        self.client = Client(bucket, bucket.endpoint)
        public = bucket.public_endpoint
        same = public in ("", bucket.endpoint)
        self.public_client = self.client if same else Client(bucket, public)


class S3Store:
    """``ObjectStore`` in a bucket. What it puts there has ``metadata``."""

    name = "s3"

    def __init__(
        self,
        bucket: Bucket,
        part_size: int,
        part_memory: int,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.bucket = bucket
        self._content: dict[str, Any] = {"ContentType": "application/octet-stream"}
        if metadata:
            self._content["Metadata"] = metadata
        self.part_size = part_size
        self._part_memory = part_memory
        self._lock = threading.Lock()
        self._made: _Process | None = None
        self.client_parts: ClientParts | None = S3Parts(self)

    @property
    def process(self) -> _Process:
        """Made at first use, and made anew in a process that was forked."""
        made = self._made
        if made is None or made.id != os.getpid():
            with self._lock:
                made = self._made
                if made is None or made.id != os.getpid():
                    made = self._made = _Process(self.bucket, self._part_memory)
        return made

    @property
    def client(self) -> "Client":
        """The client of this process."""
        return self.process.client

    def writer(self, staged: Staged | None, key: str, reserve: Callable[[int], int]) -> "S3Writer":
        return S3Writer(self, staged, key, reserve)

    def complete(self, staged: Staged) -> None:
        if staged.whole:
            return
        multipart = Multipart.of(staged)
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in multipart.listed()]
        try:
            self.client.call(
                self.client.s3.complete_multipart_upload,
                **self.address(staged.key),
                UploadId=multipart.id,
                MultipartUpload={"Parts": parts},
            )
        except Refused:
            # Most likely it was done before, by an attempt whose answer was lost.
            if self.size(staged.key) != staged.size:
                raise

    def discard(self, key: str) -> None:
        self.end_multiparts(key)
        self.delete([key, tail_of(key)])

    def discard_leftovers(self, key: str) -> None:
        self.delete([tail_of(key)])

    def size(self, key: str) -> int | None:
        try:
            found = self.client.call(self.client.s3.head_object, **self.address(key))
        except Refused as error:
            if error.code in _NO_OBJECT:
                return None
            raise
        return found["ContentLength"]

    def read(self, key: str, offset: int, length: int) -> Stream:
        if length:
            return self.client.download(self.address(key), offset, length)
        if self.size(key) is None:
            raise NoSuchObject(f"There is no object {key}.")
        return Nothing()

    def presign(self, method: str, key: str, seconds: int) -> str:
        return self.process.public_client.presign(method, self.address(key), seconds)

    def delete(self, keys: Sequence[str]) -> None:
        # DeleteObjects would do it in one request, but not every service has it, nor agrees on
        # the checksum that it wants.
        for key in keys:
            try:
                self.client.call(self.client.s3.delete_object, **self.address(key))
            except Refused as error:
                if error.code not in _NO_OBJECT:
                    raise

    def list(self, after: str = "") -> Iterator[tuple[str, int, float]]:
        for name, size, changed in self._names(after):
            if name > after and _KEY.fullmatch(name):
                yield name, size, changed

    def list_staged(self, after: str = "") -> Iterator[str]:
        tails = (
            key
            for name, _, _ in self._names(after)
            if (key := name.removesuffix(TAIL)) != name and _KEY.fullmatch(key)
        )
        # Not every service lists them by key. There are no more than uploads under way, and those
        # that a process left when it died.
        begun = sorted(key for key, _ in self._multiparts("") if _KEY.fullmatch(key))
        for key, _ in itertools.groupby(heapq.merge(tails, begun)):
            if key > after:
                yield key

    def preload(self) -> None:
        from chalicelib.storage.client import Client

        Client(self.bucket, self.bucket.endpoint)

    def check(self) -> None:
        self.client.call(self.client.s3.head_bucket, attempts=2, Bucket=self.bucket.name)

    def address(self, key: str) -> dict[str, Any]:
        """What names the object of a key in a request."""
        return {"Bucket": self.bucket.name, "Key": self.bucket.prefix + key}

    def put(self, key: str, part: Part | None, abandoned: threading.Event) -> None:
        """Make an object of a part's bytes, or an empty one."""
        self.client.call(
            self.client.s3.put_object,
            abandoned=abandoned,
            **self.address(key),
            **self._content,
            Body=b"" if part is None else part,
            ContentLength=0 if part is None else part.size,
        )

    def begin_multipart(self, key: str, abandoned: threading.Event) -> str:
        """Begin a multipart upload, the only one at this key, and give its id."""
        begun = self.client.call(
            self.client.s3.create_multipart_upload,
            abandoned=abandoned,
            **self.address(key),
            **self._content,
        )
        if begun["ResponseMetadata"]["RetryAttempts"]:
            self.end_multiparts(key, but=begun["UploadId"])
        return begun["UploadId"]

    def upload_part(
        self, key: str, upload_id: str, number: int, part: Part, abandoned: threading.Event
    ) -> str:
        """Send one part of a multipart upload, and give its ETag."""
        return self.client.call(
            self.client.s3.upload_part,
            abandoned=abandoned,
            **self.address(key),
            UploadId=upload_id,
            PartNumber=number,
            Body=part,
            ContentLength=part.size,
        )["ETag"]

    def end_multiparts(self, key: str, but: str = "") -> None:
        """Abort multipart uploads at a key, and so remove their parts."""
        for found, upload_id in self._multiparts(key):
            if found == key and upload_id != but:
                try:
                    self.client.call(
                        self.client.s3.abort_multipart_upload,
                        **self.address(key),
                        UploadId=upload_id,
                    )
                except Refused as error:
                    if error.code != "NoSuchUpload":
                        raise

    def _names(self, after: str) -> Iterator[tuple[str, int, float]]:
        """Every object's name below the prefix, with its size and its last change."""
        where: dict[str, Any] = {
            "Bucket": self.bucket.name,
            "Prefix": self.bucket.prefix,
            "StartAfter": self.bucket.prefix + after,
        }
        while True:
            page = self.client.call(self.client.s3.list_objects_v2, **where)
            for found in page.get("Contents", ()):
                name = found["Key"].removeprefix(self.bucket.prefix)
                yield name, found["Size"], found["LastModified"].timestamp()
            if not page["IsTruncated"]:
                return
            where["ContinuationToken"] = page["NextContinuationToken"]

    def _multiparts(self, key: str) -> Iterator[tuple[str, str]]:
        """(key, id) of the multipart uploads whose key begins so."""
        where: dict[str, Any] = {
            "Bucket": self.bucket.name,
            "Prefix": self.bucket.prefix + key,
            "MaxUploads": _PAGE,
        }
        while True:
            page = self.client.call(self.client.s3.list_multipart_uploads, **where)
            for found in page.get("Uploads", ()):
                yield found["Key"].removeprefix(self.bucket.prefix), found["UploadId"]
            if not page.get("IsTruncated"):
                return
            # SeaweedFS has one of the two, and takes the other for another order.
            where["KeyMarker"] = page.get("NextKeyMarker", "")
            where["UploadIdMarker"] = page.get("NextUploadIdMarker", "")


class Nothing:
    """The ``Stream`` of no bytes."""

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def close(self) -> None:
        """Nothing is held."""
