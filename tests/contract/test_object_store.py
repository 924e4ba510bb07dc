"""What is asked of every store."""

import threading
import time
from contextlib import closing

import pytest

from chalicelib.http import FileRegion
from chalicelib.storage import NoSuchObject, ObjectStore, StorageError, s3
from tests.contract.stores import PART, Kept, Upload, content, everything, same

SIZES = [0, 1, PART - 1, PART, PART + 1, 2 * PART, 3 * PART + 12345]
CHUNKS = [
    pytest.param([0, 5], id="nothing first"),
    pytest.param([5, 0], id="nothing last"),
    pytest.param([0, 0], id="nothing at all"),
    pytest.param([3, 4, 5], id="small ones"),
    pytest.param([PART, 1], id="one part and a byte"),
    pytest.param([PART - 1, 1], id="up to one part"),
    pytest.param([PART - 1, 2], id="just past one part"),
    pytest.param([PART + 1, PART - 1], id="up to two parts"),
    pytest.param([2 * PART, 0, PART], id="whole parts"),
    pytest.param([PART + 5, 7, 2 * PART, 0, 11], id="tail after tail"),
    pytest.param([1_000_000] * 12, id="many below a part"),
]


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_one_request(kept: Kept, size: int, final: bool) -> None:
    upload = Upload(kept.store)
    upload.send(content(size), final=final)
    key = upload.complete()
    assert kept.store.size(key) == size
    same(everything(kept.store, key), content(size))
    assert [found[:2] for found in kept.store.list()] == [(key, size)]
    kept.store.discard_leftovers(key)
    assert kept.names() == [key]
    kept.store.delete([key])
    assert kept.names() == []


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("chunks", CHUNKS)
def test_successive_requests(kept: Kept, chunks: list[int], final: bool) -> None:
    upload = Upload(kept.store)
    for number, size in enumerate(chunks, start=1):
        upload.send(content(size, number), final=final and number == len(chunks))
    key = upload.complete()
    same(everything(kept.store, key), upload.sent)
    for other in upload.keys:
        if other == key:
            kept.store.discard_leftovers(other)
        else:
            kept.store.discard(other)
    assert kept.names() == [key]


def test_requests_alternate_between_processes(kept: Kept) -> None:
    upload, other = Upload(kept.store), kept.again()
    for number in range(4):
        upload.send(content(PART - 3, number), store=other if number % 2 else None)
    other.complete(upload.staged)
    same(everything(kept.store, upload.staged.key), upload.sent)


def test_pieces_of_all_kinds_and_sizes(store: ObjectStore) -> None:
    data = content(PART + 300_000)
    upload = Upload(store)
    writer, at = upload.writer(), 0
    for size in [1, 0, 70_000, 3, PART, *([1500] * 100)]:
        piece = data[at : at + size]
        first, second, third = piece[: size // 3], piece[size // 3 : size // 2], piece[size // 2 :]
        writer.write([first, bytearray(second), memoryview(third), b""])
        at += size
    writer.write([])
    writer.write([data[at:]])
    upload.save(writer.close(final=True))
    same(everything(store, upload.complete()), data)


def test_thousands_of_pieces_at_once(store: ObjectStore) -> None:
    data = content(300_000)
    upload = Upload(store)
    upload.send()
    writer = upload.writer()
    writer.write([data[at : at + 100] for at in range(0, len(data), 100)])
    upload.save(writer.close(final=True))
    same(everything(store, upload.complete()), data)


def test_caller_uses_its_buffer_again(store: ObjectStore) -> None:
    data = content(2 * PART + 5)
    upload, buffer = Upload(store), bytearray(64 << 10)
    writer = upload.writer()
    for at in range(0, len(data), len(buffer)):
        piece = data[at : at + len(buffer)]
        buffer[: len(piece)] = piece
        writer.write([memoryview(buffer)[: len(piece)]])
        buffer[:] = bytes(len(buffer))
    upload.save(writer.close(final=True))
    same(everything(store, upload.complete()), data)


@pytest.mark.parametrize("before", [0, 10, PART + 10])
@pytest.mark.parametrize("loser_ends_last", [False, True])
def test_requests_that_race(kept: Kept, before: int, loser_ends_last: bool) -> None:
    upload = Upload(kept.store)
    if before:
        upload.send(content(before))
    loser, winner = upload.writer(), upload.writer(kept.again())
    for number in range(10, 18):  # each two parts long
        loser.write([b"loser" * (PART // 20)])
        winner.write([content(PART // 4, number)])
        upload.sent += content(PART // 4, number)
    if loser_ends_last:
        upload.save(winner.close(final=False))
        loser.close(final=False)
    else:
        loser.close(final=False)
        upload.save(winner.close(final=False))
    upload.send(content(1000, 2))
    key = upload.complete()
    same(everything(kept.store, key), upload.sent)
    kept.store.discard(upload.keys[-3])  # the loser's
    same(everything(kept.store, key), upload.sent)
    upload.clear()
    assert kept.names() == []


@pytest.mark.parametrize("chunks", [[5], [PART + 5], [5, 6], [PART + 5, 6]])
def test_completing_again(kept: Kept, chunks: list[int]) -> None:
    upload = Upload(kept.store)
    for size in chunks:
        upload.send(content(size, size))
    key = upload.complete()
    upload.complete()
    kept.again().complete(upload.staged)
    same(everything(kept.store, key), upload.sent)


def test_completing_at_once(kept: Kept) -> None:
    upload = Upload(kept.store)
    upload.send(content(PART + 5))
    upload.send(content(PART + 7))
    failures: list[Exception] = []

    def complete(store: ObjectStore) -> None:
        try:
            store.complete(upload.staged)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=complete, args=(kept.again(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    same(everything(kept.store, upload.staged.key), upload.sent)


def test_no_object_before_it_is_complete(kept: Kept) -> None:
    upload = Upload(kept.store)
    upload.send(content(PART + 5))
    staged = upload.send(content(PART + 6))
    assert not staged.whole
    assert kept.store.size(staged.key) is None
    assert staged.key not in [found[0] for found in kept.store.list()]


def test_completing_what_is_gone(kept: Kept) -> None:
    upload = Upload(kept.store)
    upload.send(content(PART + 5))
    upload.send(content(PART + 6))
    upload.clear()
    with pytest.raises(StorageError):
        upload.complete()
    assert kept.store.size(upload.staged.key) is None


@pytest.mark.parametrize("size", [0, 5, PART + 5])
@pytest.mark.parametrize("chunks", [[], [5], [PART + 5], [PART + 5, 6]])
def test_discard_after_abort(kept: Kept, chunks: list[int], size: int) -> None:
    upload = Upload(kept.store)
    for length in chunks:
        upload.send(content(length))
    writer = upload.writer()
    writer.write([content(size)])
    writer.abort()
    writer.abort()
    upload.clear()
    assert kept.names() == []


@pytest.mark.parametrize("chunks", [[0], [5], [PART + 5], [5, 6], [PART + 5, 6], [2 * PART]])
@pytest.mark.parametrize("final", [False, True])
def test_discard_before_and_after_completion(kept: Kept, chunks: list[int], final: bool) -> None:
    for completed in (False, True):
        upload = Upload(kept.store)
        for number, size in enumerate(chunks, start=1):
            upload.send(content(size), final=final and number == len(chunks))
        if completed:
            upload.complete()
        upload.clear()
        assert kept.names() == []
        upload.clear()


def test_upload_goes_on_after_an_aborted_request(store: ObjectStore) -> None:
    upload = Upload(store)
    upload.send(content(PART + 5))
    writer = upload.writer()
    writer.write([b"never acknowledged" * 400_000])
    writer.abort()
    upload.send(content(PART, 1))
    same(everything(store, upload.complete()), upload.sent)


def test_abort_after_close(store: ObjectStore) -> None:
    upload = Upload(store)
    writer = upload.writer()
    writer.write([b"bytes"])
    upload.save(writer.close(final=False))
    writer.abort()
    assert everything(store, upload.complete()) == b"bytes"


def test_read_a_range(store: ObjectStore) -> None:
    data = content(PART + 1000)
    upload = Upload(store)
    upload.send(data, final=True)
    key = upload.complete()
    for offset, length in [(0, 1), (5, 100), (PART - 10, 20), (PART + 999, 1), (0, len(data))]:
        same(b"".join(store.read(key, offset, length)), data[offset : offset + length])
    assert b"".join(store.read(key, 7, 0)) == b""


@pytest.mark.parametrize(("offset", "length"), [(0, 11), (5, 6), (10, 1), (20, 1)])
def test_read_past_the_end(store: ObjectStore, offset: int, length: int) -> None:
    upload = Upload(store)
    upload.send(b"ten bytes.")
    with pytest.raises(StorageError, match="shorter"):
        b"".join(store.read(upload.complete(), offset, length))


@pytest.mark.parametrize("length", [0, 1])
def test_read_what_is_not_there(store: ObjectStore, length: int) -> None:
    with pytest.raises(NoSuchObject):
        store.read("00000000000000000000000000000000", 0, length)


@pytest.mark.parametrize("size", [0, 10, PART])
def test_close_a_read_at_any_point(store: ObjectStore, size: int) -> None:
    upload = Upload(store)
    upload.send(content(size))
    key = upload.complete()
    store.read(key, 0, size).close()
    body = store.read(key, 0, size)
    with closing(body):
        next(iter(body), None)
    body.close()
    same(everything(store, key), upload.sent)


def test_size_of_what_is_not_there(store: ObjectStore) -> None:
    assert store.size("00000000000000000000000000000000") is None


def test_list(kept: Kept) -> None:
    keys = []
    for number in range(12):
        upload = Upload(kept.store)
        upload.send(content(number))
        keys.append((upload.complete(), number))
    keys.sort()
    found = list(kept.store.list())
    assert [(key, size) for key, size, _ in found] == keys
    assert all(abs(time.time() - changed) < 60 for _, _, changed in found)
    for at in (0, 5, 11):
        after = [(key, size) for key, size, _ in kept.store.list(keys[at][0])]
        assert after == keys[at + 1 :]
    assert [key for key, _, _ in kept.store.list("zz")] == []
    middle = keys[6][0][:2] + "!"  # is no key, and need not be
    assert [key for key, _, _ in kept.store.list(middle)] == [
        key for key, _ in keys if key > middle
    ]


def test_list_staged(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is begun, what waits for another chunk, what was left behind: by the keys that discard
    takes. Objects are not among them."""
    monkeypatch.setattr(s3, "_PAGE", 2)
    whole, waiting = Upload(kept.store), Upload(kept.store)
    whole.send(content(10), final=True)
    waiting.send(content(PART + 5))
    waiting.send(content(7))
    writers = [Upload(kept.store) for _ in range(3)]
    for upload in writers:
        upload.writer().write([content(2 * PART)])
    found = list(kept.store.list_staged())
    for upload in writers:
        assert upload.keys[0] in found
    assert found == sorted(set(found))
    assert whole.staged.key not in found
    for at in (0, len(found) - 1):
        assert list(kept.store.list_staged(found[at])) == found[at + 1 :]
    assert list(kept.store.list_staged("zz")) == []

    # All that is in the store is found by one of the two.
    for key, _, _ in kept.store.list():
        kept.store.discard(key)
    for key in found:
        kept.store.discard(key)
    assert kept.names() == []
    assert list(kept.store.list_staged()) == []


def test_delete(kept: Kept) -> None:
    keys = []
    for number in range(3):
        upload = Upload(kept.store)
        upload.send(content(number))
        keys.append(upload.complete())
    kept.store.delete([])
    kept.store.delete([keys[0], "00000000000000000000000000000000", keys[2]])
    assert kept.names() == [keys[1]]


def test_nothing_is_there_at_first(kept: Kept) -> None:
    assert list(kept.store.list()) == []
    kept.store.discard("00000000000000000000000000000000")
    kept.store.discard_leftovers("00000000000000000000000000000000")
    kept.store.check()
    assert kept.names() == []


def test_presigned_urls_or_none(store: ObjectStore) -> None:
    upload = Upload(store)
    upload.send(b"bytes")
    key = upload.complete()
    body = store.read(key, 0, 5)
    body.close()
    # One of the two ways to send bytes without a thread that copies them.
    assert isinstance(body, FileRegion) == (store.presign("GET", key, 60) is None)


def test_uploads_at_once(store: ObjectStore) -> None:
    uploads = [Upload(store) for _ in range(8)]

    def push(upload: Upload, seed: int) -> None:
        upload.send(content(2 * PART + seed, seed))
        upload.send(content(100_000, seed), final=True)
        upload.complete()

    threads = [
        threading.Thread(target=push, args=(upload, seed)) for seed, upload in enumerate(uploads)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for upload in uploads:
        same(everything(store, upload.staged.key), upload.sent)
