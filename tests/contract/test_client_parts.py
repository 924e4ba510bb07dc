"""What is asked of every store whose parts clients send themselves."""

import random
from functools import partial, update_wrapper

import pytest
import requests

from chalicelib.storage import ClientParts, ObjectStore, Refused, new_key
from chalicelib.storage.s3 import S3Store
from tests.contract.stores import PART, Kept

PARTS = [random.Random(n).randbytes(PART if n < 3 else 77) for n in range(1, 4)]


@pytest.fixture
def store(kept_in_s3: Kept) -> ObjectStore:
    """The one kind of store that has them."""
    return kept_in_s3.store


@pytest.fixture
def parts(store: ObjectStore) -> ClientParts:
    assert store.client_parts is not None
    return store.client_parts


def test_a_folder_has_none(kept_in_filesystem: Kept) -> None:
    assert kept_in_filesystem.store.client_parts is None


def put(url: str, body: bytes) -> int:
    return requests.put(url, body, timeout=30).status_code


def send(parts: ClientParts, key: str, upload: str) -> list[str]:
    urls = [parts.presign(key, upload, n, len(body), 60) for n, body in enumerate(PARTS, 1)]
    assert [put(url, body) for url, body in zip(urls, PARTS, strict=True)] == [200] * 3
    return urls


def test_parts_become_an_object(store: ObjectStore, parts: ClientParts) -> None:
    key = new_key()
    upload = parts.begin(key)
    assert list(parts.list(key, upload)) == []
    urls = send(parts, key, upload)
    sent = parts.list(key, upload)
    assert [(part.number, part.size) for part in sent] == [(1, PART), (2, PART), (3, 77)]
    assert store.size(key) is None
    staged = parts.staged(key, upload, PART, sent)
    for _ in range(2):
        store.complete(staged)
    assert b"".join(store.read(key, 0, staged.size)) == b"".join(PARTS)
    with pytest.raises(Refused):
        parts.list(key, upload)
    assert put(urls[0], PARTS[1]) == 404
    assert b"".join(store.read(key, 0, 10)) == PARTS[0][:10]


def test_only_those_that_are_named(store: ObjectStore, parts: ClientParts) -> None:
    key = new_key()
    upload = parts.begin(key)
    send(parts, key, upload)
    sent = parts.list(key, upload)
    staged = parts.staged(key, upload, PART, [sent[0], sent[2]])
    store.complete(staged)
    assert b"".join(store.read(key, 0, PART + 77)) == PARTS[0] + PARTS[2]
    assert store.size(key) == PART + 77


@pytest.mark.parametrize("most", [1, 2, 3])
def test_more_than_a_page(
    store: S3Store, parts: ClientParts, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """AWS lists a thousand at once."""
    key = new_key()
    upload = parts.begin(key)
    send(parts, key, upload)
    s3 = store.client.s3
    paged = update_wrapper(partial(s3.list_parts, MaxParts=most), s3.list_parts)
    monkeypatch.setattr(s3, "list_parts", paged)
    assert [part.number for part in parts.list(key, upload)] == [1, 2, 3]


def test_they_are_discarded(store: ObjectStore, parts: ClientParts) -> None:
    key = new_key()
    upload = parts.begin(key)
    urls = send(parts, key, upload)
    assert list(store.list_staged()) == [key]
    store.discard(key)
    assert list(store.list_staged()) == []
    assert put(urls[0], PARTS[0]) == 404
    with pytest.raises(Refused):
        parts.list(key, upload)


@pytest.mark.parametrize(
    ("blob", "wanted", "size"),
    [
        (None, None, PART),
        (1, None, PART),
        (10_000 * PART, None, PART),
        (10_000 * PART + 1, None, PART + (1 << 20)),
        (None, PART + 1, PART + (1 << 20)),
        (10_000 * (128 << 20), None, 128 << 20),
        (10_000 * (128 << 20) + 1, None, None),
    ],
)
def test_how_large_they_are(
    parts: ClientParts, blob: int | None, wanted: int | None, size: int | None
) -> None:
    assert parts.size(blob, wanted) == size
    assert size is None or size % 128 == 0
