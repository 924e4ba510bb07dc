"""Every store there is, each empty and with means to look behind its back; and uploads to try them
with."""

import hashlib
import itertools
import json
import random
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from chalicelib.http import Piece
from chalicelib.settings import Settings
from chalicelib.storage import ObjectStore, Staged, Writer, open_store

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

    from tests.servers import S3

PART = 5 << 20
"""The smallest part that S3 takes."""


@dataclass(frozen=True)
class Kept:
    """A store, and the names of all that it keeps, staged or not."""

    store: ObjectStore
    names: Callable[[], list[str]]
    again: Callable[[], ObjectStore]
    """The same store as another process has it."""


@dataclass
class Upload:
    """One upload: what the registry remembers of it between two requests, as JSON."""

    store: ObjectStore
    sent: bytes = b""
    keys: list[str] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _staged: str = "null"

    def reserve(self, count: int) -> int:
        """Part numbers as the registry gives them."""
        return min(itertools.islice(self.numbers, count))

    @property
    def staged(self) -> Staged:
        """What was staged last."""
        return Staged(**json.loads(self._staged))

    def writer(self, store: ObjectStore | None = None) -> Writer:
        """A writer for the next request."""
        self.keys.append(secrets.token_hex(16))
        staged = None if self._staged == "null" else self.staged
        return (store or self.store).writer(staged, self.keys[-1], self.reserve)

    def save(self, staged: Staged) -> None:
        """Remember what a request staged."""
        self._staged = json.dumps(asdict(staged))

    def send(self, *pieces: Piece, final: bool = False, store: ObjectStore | None = None) -> Staged:
        """One request, from first to last."""
        writer = self.writer(store)
        for piece in pieces:
            writer.write([piece])
        self.save(writer.close(final=final))
        self.sent += b"".join(pieces)
        assert self.staged.size == len(self.sent)
        return self.staged

    def complete(self) -> str:
        """Make it an object, and give its key."""
        self.store.complete(self.staged)
        return self.staged.key

    def clear(self) -> None:
        """Discard whatever any of its requests staged."""
        for key in self.keys:
            self.store.discard(key)


def content(size: int, seed: int = 0) -> bytes:
    """Bytes that no other seed gives."""
    return random.Random(seed).randbytes(size)


def everything(store: ObjectStore, key: str) -> bytes:
    """All bytes of an object."""
    size = store.size(key)
    assert size is not None
    return b"".join(store.read(key, 0, size))


def same(found: bytes, wanted: bytes) -> None:
    """That two long strings are equal, with a short message where they are not."""
    assert len(found) == len(wanted)
    assert hashlib.sha256(found).digest() == hashlib.sha256(wanted).digest()


@pytest.fixture(scope="session")
def s3(s3_server: "S3") -> "S3Client":
    """The tests' own way to the S3 server."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=s3_server.endpoint,
        region_name=s3_server.region,
        aws_access_key_id=s3_server.access_key,
        aws_secret_access_key=s3_server.secret_key,
    )


@pytest.fixture(params=["filesystem", "s3"])
def kept(request: pytest.FixtureRequest) -> Kept:
    """Each store in turn, empty."""
    made: Kept = request.getfixturevalue(f"kept_in_{request.param}")
    return made


@pytest.fixture
def store(kept: Kept) -> ObjectStore:
    """Each store in turn, empty."""
    return kept.store


@pytest.fixture
def kept_in_filesystem(tmp_path: Path) -> Kept:
    """A store in a folder that is not there yet."""
    folder = tmp_path / "deep" / "blobs"
    settings = Settings(storage_url=folder.as_uri())

    def names() -> list[str]:
        return sorted(file.name for file in folder.rglob("*") if file.is_file())

    return Kept(open_store(settings), names, lambda: open_store(settings))


@pytest.fixture(scope="session")
def s3_stores(s3_server: "S3") -> tuple[str, ObjectStore, ObjectStore]:
    """A prefix of the tests' bucket, and two stores there, as two processes have them. Making an
    S3 client takes a while, so that all tests use these."""
    url = s3_server.new_storage_url()
    settings = Settings(storage_url=url, part_size=PART)
    stores = open_store(settings), open_store(settings)
    with pytest.MonkeyPatch.context() as patch:
        aws_credentials(patch, s3_server)
        for store in stores:
            store.check()
    return urlsplit(url).path.strip("/") + "/", *stores


def aws_credentials(patch: pytest.MonkeyPatch, s3_server: "S3") -> None:
    """Have the environment give the tests' S3 server's credentials, and no others."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        patch.delenv(name, raising=False)
    for name, value in s3_server.environment().items():
        patch.setenv(name, value)


@pytest.fixture
def kept_in_s3(
    s3_server: "S3", s3: "S3Client", s3_stores: tuple[str, ObjectStore, ObjectStore]
) -> Iterator[Kept]:
    """A store in a prefix of the tests' bucket, emptied after the test."""
    prefix, store, other = s3_stores
    bucket = s3_server.bucket

    def objects() -> list[str]:
        found = s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
        return [one["Key"] for one in found]

    def multiparts() -> list[tuple[str, str]]:
        found = s3.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", [])
        return [(one["Key"], one["UploadId"]) for one in found]

    def names() -> list[str]:
        found = objects() + [f"{key} (multipart)" for key, _ in multiparts()]
        return sorted(name.removeprefix(prefix) for name in found)

    yield Kept(store, names, lambda: other)
    for key, upload_id in multiparts():
        s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)
    for key in objects():
        s3.delete_object(Bucket=bucket, Key=key)
