"""S3 in trouble: errors, silence, broken connections, and answers that get lost."""

import logging
import time
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from chalicelib.storage import Refused, StorageError, client
from chalicelib.storage.s3 import S3Store
from tests.contract.stores import PART, Upload, content, everything, same
from tests.hosts.wire import until
from tests.servers import S3, free_port
from tests.storage.faults import Fault, FaultyProxy

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

TROUBLE = [
    pytest.param(Fault(status=500), id="500"),
    pytest.param(Fault(status=503), id="503"),
    pytest.param(Fault(reset=0), id="reset at once"),
    pytest.param(Fault(reset=1 << 20), id="reset in the body"),
    pytest.param(Fault(hang=True), id="silence"),
    pytest.param(Fault(lost=-1), id="answer lost"),
]


@pytest.fixture
def faulty(
    open_s3: Callable[..., S3Store],
    s3_server: S3,
    proxy: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> S3Store:
    """A store whose S3 is behind the proxy, and which waits for an answer for a short time only."""
    monkeypatch.setattr(client, "READ_TIMEOUT", 3)
    return open_s3(s3_server.new_storage_url(endpoint=proxy.endpoint))


@pytest.fixture
def leftovers(s3: "S3Client", s3_server: S3) -> Callable[[S3Store], list[str]]:
    """The multipart uploads of a store that were neither completed nor aborted."""

    def find(store: S3Store) -> list[str]:
        prefix = store.address("")["Key"]
        found = s3.list_multipart_uploads(Bucket=s3_server.bucket, Prefix=prefix)
        return [one["Key"] for one in found.get("Uploads", [])]

    return find


@pytest.mark.parametrize("fault", TROUBLE)
@pytest.mark.parametrize(
    "operation", ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"]
)
def test_long_upload(
    faulty: S3Store,
    proxy: FaultyProxy,
    leftovers: Callable[[S3Store], list[str]],
    operation: str,
    fault: Fault,
) -> None:
    proxy.will(operation, fault, fault)
    upload = Upload(faulty)
    upload.send(content(2 * PART + 7), final=True)
    key = upload.complete()
    same(everything(faulty, key), upload.sent)
    assert proxy.count(operation) >= 3 or (operation, fault.lost) == (
        "CompleteMultipartUpload",
        -1,
    )
    assert leftovers(faulty) == []


@pytest.mark.parametrize("fault", TROUBLE)
def test_short_upload(faulty: S3Store, proxy: FaultyProxy, fault: Fault) -> None:
    proxy.will("PutObject", fault, fault)
    upload = Upload(faulty)
    upload.send(content(3 << 20))
    same(everything(faulty, upload.complete()), upload.sent)
    assert proxy.count("PutObject") == 3


@pytest.mark.parametrize("fault", TROUBLE)
def test_tail(faulty: S3Store, proxy: FaultyProxy, fault: Fault) -> None:
    upload = Upload(faulty)
    proxy.will("PutObject", fault)
    upload.send(content(PART + 1_500_000))
    proxy.will("GetObject", fault)
    upload.send(content(7, 1))
    same(everything(faulty, upload.complete()), upload.sent)


@pytest.mark.parametrize("fault", [TROUBLE[1], TROUBLE[4]])
def test_trouble_that_does_not_end(
    faulty: S3Store, proxy: FaultyProxy, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE", 2)
    proxy.always = dict.fromkeys(("PutObject", "UploadPart", "HeadBucket", "GetObject"), fault)
    began = time.monotonic()
    short, long = Upload(faulty), Upload(faulty)
    with pytest.raises(StorageError, match=r"^Object storage .*"):
        short.send(b"bytes")
    writer = long.writer()
    with pytest.raises(StorageError):
        writer.write([content(20 * PART)])
    writer.abort()
    with pytest.raises(StorageError):
        faulty.check()
    with pytest.raises(StorageError):
        faulty.read("0" * 32, 0, 1)
    assert time.monotonic() - began < 40
    assert proxy.count("PutObject") <= client.ATTEMPTS
    proxy.always = {}
    long.clear()
    short.send(b"bytes")
    assert everything(faulty, short.complete()) == b"bytes"


def test_nobody_listens(open_s3: Callable[..., S3Store]) -> None:
    store = open_s3(f"s3://registry?endpoint=http://127.0.0.1:{free_port()}")
    began = time.monotonic()
    with pytest.raises(StorageError, match="Object storage is out of reach") as caught:
        store.check()
    assert "127.0.0.1" not in str(caught.value)  # is nobody's business
    with pytest.raises(StorageError):
        Upload(store).send(b"bytes")
    assert time.monotonic() - began < 20


def test_abort_does_not_wait_for_retries(
    faulty: S3Store, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_FIRST_PAUSE", 30)
    monkeypatch.setattr(client, "_LONGEST_PAUSE", 30)
    proxy.always = {"UploadPart": Fault(status=503)}
    writer = Upload(faulty).writer()
    writer.write([content(4 * PART)])
    for _ in until():
        if proxy.count("UploadPart"):
            break
    began = time.monotonic()
    writer.abort()
    assert time.monotonic() - began < 10
    assert faulty.process.memory.lent == 0


def test_completion_that_was_done_already(
    faulty: S3Store, proxy: FaultyProxy, s3: "S3Client"
) -> None:
    """Most services have forgotten the multipart upload by then; SeaweedFS still knows it."""
    upload = Upload(faulty)
    upload.send(content(2 * PART))
    forgotten = Fault(status=404)
    proxy.will("CompleteMultipartUpload", forgotten)
    with pytest.raises(StorageError, match="404 NoSuchUpload"):
        upload.complete()
    upload.complete()
    proxy.will("CompleteMultipartUpload", Fault(status=500), forgotten)
    proxy.will("HeadObject", Fault(status=503))
    upload.complete()
    same(everything(faulty, upload.staged.key), upload.sent)
    s3.put_object(**faulty.address(upload.staged.key), Body=b"something else")
    proxy.will("CompleteMultipartUpload", forgotten)
    with pytest.raises(StorageError, match="404 NoSuchUpload"):
        upload.complete()


@pytest.mark.parametrize("breaks", [1, client.ATTEMPTS - 1])
def test_download_goes_on_where_it_broke(faulty: S3Store, proxy: FaultyProxy, breaks: int) -> None:
    upload = Upload(faulty)
    upload.send(content(PART))
    key = upload.complete()
    proxy.will("GetObject", *[Fault(lost=700_000)] * breaks)
    data = b"".join(faulty.read(key, 1000, PART - 2000))
    same(data, upload.sent[1000:-1000])
    ranges = [seen.headers["Range"] for seen in proxy.seen if seen.operation == "GetObject"]
    assert len(ranges) == breaks + 1
    assert ranges[0] == f"bytes=1000-{PART - 1001}"
    assert len(set(ranges)) == breaks + 1


def test_download_that_breaks_ever_again(faulty: S3Store, proxy: FaultyProxy) -> None:
    """It goes on as long as each connection brings a piece."""
    upload = Upload(faulty)
    upload.send(content(PART))
    key = upload.complete()
    proxy.always = {"GetObject": Fault(lost=300_000)}
    same(b"".join(faulty.read(key, 0, PART)), content(PART))
    before = proxy.count("GetObject")
    assert before > client.ATTEMPTS
    proxy.always = {"GetObject": Fault(lost=100_000)}
    with pytest.raises(StorageError):
        b"".join(faulty.read(key, 0, PART))
    assert proxy.count("GetObject") - before == client.ATTEMPTS


def test_download_of_what_is_deleted_meanwhile(
    faulty: S3Store, proxy: FaultyProxy, s3: "S3Client"
) -> None:
    upload = Upload(faulty)
    upload.send(content(PART))
    key = upload.complete()
    proxy.will("GetObject", Fault(lost=1_000_000))
    body = faulty.read(key, 0, PART)
    faulty.delete([key])
    with pytest.raises(StorageError, match="no object"):
        b"".join(body)


def test_wrong_credentials(
    open_s3: Callable[..., S3Store],
    proxy: FaultyProxy,
    s3_server: S3,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "no-such-secret")
    store = open_s3(s3_server.new_storage_url(endpoint=proxy.endpoint))
    caplog.set_level(logging.DEBUG, "chalicelib")
    with pytest.raises(Refused, match="PutObject with 403 SignatureDoesNotMatch") as caught:
        Upload(store).send(b"bytes")
    with pytest.raises(Refused, match="403"):
        store.check()
    assert proxy.count("PutObject") == 1
    assert "signature we calculated does not match" in caplog.text
    assert "no-such-secret" not in caplog.text + str(caught.value)


def test_an_access_key_of_the_buckets_own(
    open_s3: Callable[..., S3Store], s3_server: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what is for AWS, as a function's role is: neither its key nor its token is used."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-a-role")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "for-aws-alone")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-a-session")
    with pytest.raises(StorageError):
        open_s3().check()
    keys = {"storage_access_key": s3_server.access_key, "storage_secret_key": s3_server.secret_key}
    store = open_s3(**keys)
    staged = Upload(store).send(b"bytes", final=True)
    store.complete(staged)
    url = store.presign("GET", staged.key, 60)
    assert url is not None
    assert "of-a-session" not in url
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"bytes"


def test_no_credentials(
    open_s3: Callable[..., S3Store], monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    store = open_s3()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", f"{tmp_path}/none")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match="NoCredentialsError"):
        store.check()
    with pytest.raises(StorageError, match="NoCredentialsError"):
        store.presign("GET", "0" * 32, 60)


def test_wrong_profile(open_s3: Callable[..., S3Store], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StorageError, match="ProfileNotFound"):
        open_s3().check()


def test_no_such_bucket(open_s3: Callable[..., S3Store], s3_server: S3) -> None:
    query = urlsplit(s3_server.new_storage_url()).query
    store = open_s3(f"s3://no-such-bucket?{query}")
    with pytest.raises(StorageError, match="HeadBucket with 404"):
        store.check()


def test_part_memory_is_given_back_after_trouble(faulty: S3Store, proxy: FaultyProxy) -> None:
    proxy.always = {"UploadPart": Fault(status=500)}
    writer = Upload(faulty).writer()
    with pytest.raises(StorageError):
        writer.write([content(20 * PART)])
    writer.abort()
    assert faulty.process.memory.lent == 0
