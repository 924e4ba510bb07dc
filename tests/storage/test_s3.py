"""What is special to S3: how few requests, which parts, what memory, and presigned URLs."""

import itertools
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from chalicelib.storage import ObjectTooLarge, StorageError, client
from chalicelib.storage.parts import BLOCK
from chalicelib.storage.s3 import S3Store
from tests.contract.stores import PART, Upload, content, everything, same
from tests.hosts.wire import until
from tests.servers import S3
from tests.storage.faults import Fault, FaultyProxy

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

OpenS3 = Callable[..., S3Store]


def test_botocore_is_loaded_at_first_use() -> None:
    code = """
import sys
from chalicelib.settings import Settings
from chalicelib.storage import open_store
store = open_store(Settings(storage_url="s3://bucket"))
store.writer(None, "0" * 32, int)
assert "chalicelib.storage.s3" in sys.modules and "botocore" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_file_store_loads_nothing_of_s3() -> None:
    code = """
import sys
from chalicelib.settings import Settings
from chalicelib.storage import open_store
open_store(Settings())
assert "chalicelib.storage.s3" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def watched(open_s3: OpenS3, s3_server: S3, proxy: FaultyProxy) -> S3Store:
    """A store whose requests the proxy counts."""
    return open_s3(s3_server.new_storage_url(endpoint=proxy.endpoint))


@pytest.mark.parametrize("size", [0, 5, PART])
@pytest.mark.parametrize("final", [False, True])
def test_one_part_is_one_request(
    watched: S3Store, proxy: FaultyProxy, size: int, final: bool
) -> None:
    upload = Upload(watched)
    upload.send(content(size), final=final)
    upload.send(final=True)
    upload.complete()
    assert [(seen.operation, seen.length) for seen in proxy.seen] == [("PutObject", size)]


def test_final_request_keeps_nothing_for_another(watched: S3Store, proxy: FaultyProxy) -> None:
    upload = Upload(watched)
    upload.send(content(PART + 5), final=True)
    assert [seen.operation for seen in proxy.seen].count("PutObject") == 0
    upload = Upload(watched)
    upload.send(content(PART + 5))
    assert [seen.operation for seen in proxy.seen].count("PutObject") == 1


def test_bytes_are_sent_as_they_are(watched: S3Store, proxy: FaultyProxy) -> None:
    upload = Upload(watched)
    upload.send(content(PART + 1))
    for seen in proxy.seen:
        names = {name.lower() for name in seen.headers}
        assert not names & {"transfer-encoding", "content-md5", "expect", "content-encoding"}
        assert not [name for name in names if "checksum" in name or "trailer" in name]
        if seen.operation == "UploadPart":
            assert seen.headers["X-Amz-Content-SHA256"] == "UNSIGNED-PAYLOAD"


def test_all_parts_but_the_last_are_equal(watched: S3Store, proxy: FaultyProxy) -> None:
    upload = Upload(watched)
    for number, size in enumerate([PART + 5, 3, 2 * PART, PART - 1], start=1):
        upload.send(content(size, number))
    same(everything(watched, upload.complete()), upload.sent)
    lengths = [seen.length for seen in proxy.seen if seen.operation == "UploadPart"]
    # The short ones in between belong to tails that no longer count.
    assert lengths.count(PART) == len(upload.sent) // PART
    assert max(lengths) == PART
    assert proxy.count("CreateMultipartUpload") == 1


def test_setting_changes_during_an_upload(
    open_s3: OpenS3, s3_server: S3, proxy: FaultyProxy
) -> None:
    url = s3_server.new_storage_url(endpoint=proxy.endpoint)
    before, after = open_s3(url), open_s3(url, part_size=PART + 1_000_000)
    for first, wanted in ((100, PART + 1_000_000), (PART, PART + 1_000_000), (PART + 7, PART)):
        proxy.seen.clear()
        upload = Upload(before)
        upload.send(content(first))
        upload.send(content(3 * PART, 1), store=after)
        upload.send(content(PART + 2_000_000, 2), store=before)
        same(everything(after, upload.complete()), upload.sent)
        lengths = [seen.length for seen in proxy.seen if seen.operation == "UploadPart"]
        assert lengths.count(wanted) == len(upload.sent) // wanted
        assert max(lengths) == wanted


def test_few_parts_are_on_their_way_at_once(
    watched: S3Store, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "READ_TIMEOUT", 3)
    proxy.will("UploadPart", *[Fault(hang=True)] * 4)
    upload = Upload(watched)
    pusher = threading.Thread(target=upload.send, args=(content(10 * PART),))
    pusher.start()
    for _ in until():
        if proxy.count("UploadPart") > 1:
            break
    time.sleep(1)
    assert proxy.count("UploadPart") <= 4
    pusher.join()
    same(everything(watched, upload.complete()), upload.sent)


def test_part_numbers_are_reserved_in_growing_runs(open_s3: OpenS3) -> None:
    store, reserved = open_s3(part_memory=40 * PART), []
    numbers = itertools.count(1)

    def reserve(count: int) -> int:
        reserved.append(count)
        return min(itertools.islice(numbers, count))

    writer = store.writer(None, "0" * 32, reserve)
    writer.write([bytes(PART)] * 9)
    assert reserved == [1, 2, 4, 8]
    writer.abort()
    store.discard("0" * 32)


def test_more_parts_than_s3_takes(open_s3: OpenS3) -> None:
    upload = Upload(open_s3(), numbers=itertools.count(9_999))
    writer = upload.writer()
    with pytest.raises(ObjectTooLarge, match="OPENREGISTRY_PART_SIZE"):
        writer.write([bytes(PART)] * 4)
    writer.abort()
    upload.clear()


def test_last_part_that_s3_takes(open_s3: OpenS3) -> None:
    upload = Upload(open_s3(), numbers=itertools.count(9_998))
    upload.send(content(2 * PART + 7), final=True)
    same(everything(upload.store, upload.complete()), upload.sent)


class TakenOver(Exception):
    """What the registry raises when another request took the upload over."""


def test_registry_may_end_a_request(open_s3: OpenS3) -> None:
    store, numbers = open_s3(), iter([1])

    def reserve(count: int) -> int:
        for number in numbers:
            return number
        raise TakenOver

    writer = store.writer(None, "0" * 32, reserve)
    with pytest.raises(TakenOver):
        writer.write([bytes(3 * PART)])
    writer.abort()
    assert store.process.memory.lent == 0
    store.discard("0" * 32)


def test_upload_that_vanished(open_s3: OpenS3) -> None:
    upload = Upload(open_s3())
    upload.send(content(PART + 1))
    upload.clear()
    with pytest.raises(StorageError):
        upload.send(content(PART))


def test_spent_memory_keeps_nobody_waiting(open_s3: OpenS3) -> None:
    """Stalled uploads hold all of it; others go on, through temporary files."""
    store = open_s3(part_memory=8 << 20)
    stalled = [Upload(store).writer() for _ in range(3)]
    for writer in stalled:
        writer.write([bytes(4 << 20)])
    assert store.process.memory.lent == (8 << 20) // BLOCK
    upload = Upload(store)
    began = time.monotonic()
    for number in range(3):
        upload.send(content(PART + 1_000_000, number))
    same(everything(store, upload.complete()), upload.sent)
    assert time.monotonic() - began < 30
    for writer in stalled:
        writer.abort()
    assert store.process.memory.lent == 0


def test_memory_is_bounded_and_goes_back(open_s3: OpenS3) -> None:
    store = open_s3(part_memory=16 << 20)
    uploads = [Upload(store) for _ in range(12)]
    data = content(2 * PART + 1000)
    store.check()
    before, peak, pushing = _private_memory(), 0, True

    def watch() -> None:
        nonlocal peak
        while pushing:
            peak = max(peak, _private_memory())
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    pushers = [threading.Thread(target=upload.send, args=(data,)) for upload in uploads]
    for thread in (watcher, *pushers):
        thread.start()
    for thread in pushers:
        thread.join()
    pushing = False
    watcher.join()
    assert peak - before < 48 << 20
    assert store.process.memory.lent == 0
    assert _private_memory() - before < peak - before - (8 << 20)
    for upload in uploads:
        same(everything(store, upload.complete()), data)


def _private_memory() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private"))


def test_presigned_urls(open_s3: OpenS3) -> None:
    store = open_s3()
    upload = Upload(store)
    upload.send(content(1000))
    key = upload.complete()
    got = httpx.get(store.presign("GET", key, 60))
    assert (got.status_code, got.content) == (200, upload.sent)
    assert got.headers["Content-Type"] == "application/octet-stream"
    part = httpx.get(store.presign("GET", key, 60), headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, upload.sent[10:20])
    head = httpx.head(store.presign("HEAD", key, 60))
    assert (head.status_code, head.headers["Content-Length"]) == (200, "1000")
    # Each is good for its own method, and for no longer than it says.
    assert httpx.put(store.presign("GET", key, 60), content=b"other").status_code == 403
    url = store.presign("GET", key, 1)
    time.sleep(2.1)
    assert httpx.get(url).status_code == 403


def test_presigned_urls_name_the_public_endpoint(
    open_s3: OpenS3, s3_server: S3, proxy: FaultyProxy
) -> None:
    store = open_s3(s3_server.new_storage_url(public_endpoint=proxy.endpoint))
    upload = Upload(store)
    upload.send(b"bytes")
    assert proxy.seen == []
    url = store.presign("GET", upload.complete(), 60)
    assert url.startswith(proxy.endpoint + "/")
    assert httpx.get(url).content == b"bytes"
    assert proxy.count("GetObject") == 1


def test_prefixes_are_apart(open_s3: OpenS3, s3_server: S3, s3: "S3Client") -> None:
    url = s3_server.new_storage_url()
    outer = open_s3(url)
    inner = open_s3(url.replace("?", "/inner?"))
    longer = open_s3(url.replace("?", "0?"))
    keys = {}
    for store in (outer, inner, longer):
        upload = Upload(store)
        upload.send(b"bytes")
        keys[store] = upload.complete()
    for store, key in keys.items():
        assert [found[0] for found in store.list()] == [key]
    s3.put_object(Bucket=s3_server.bucket, Key=outer.address("")["Key"] + "read.me", Body=b"")
    assert [found[0] for found in outer.list()] == [keys[outer]]


def test_list_in_pages(open_s3: OpenS3, s3_server: S3, s3: "S3Client") -> None:
    store = open_s3()
    keys = [f"{number:08}" for number in range(1030)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda key: s3.put_object(**store.address(key), Body=b""), keys))
    assert [found[0] for found in store.list()] == keys
    assert [found[0] for found in store.list(keys[9])] == keys[10:]


def test_forked_process_has_connections_of_its_own(open_s3: OpenS3) -> None:
    store = open_s3()
    upload = Upload(store)
    upload.send(content(PART + 5))
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(upload,))
    child.start()
    upload.send(content(PART + 5, 1))
    same(everything(store, upload.complete()), upload.sent)
    child.join(60)
    assert child.exitcode == 0


def _in_child(upload: Upload) -> None:
    other = Upload(upload.store)
    other.send(content(2 * PART + 3, 2))
    same(everything(other.store, other.complete()), other.sent)
