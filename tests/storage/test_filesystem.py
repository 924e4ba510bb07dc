"""What is special to a folder: files that survive, and a disk that fills up."""

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from chalicelib.http import FileRegion
from chalicelib.storage import StorageError
from chalicelib.storage.filesystem import FileStore
from tests.contract.stores import Upload, content, everything, same

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "blobs")


def files(store: FileStore) -> list[str]:
    return sorted(file.name for file in store.folder.rglob("*") if file.is_file())


def test_read_is_a_region_of_an_open_file(store: FileStore) -> None:
    upload = Upload(store)
    upload.send(b"0123456789")
    region = store.read(upload.complete(), 2, 5)
    assert isinstance(region, FileRegion)
    assert (region.offset, region.length) == (2, 5)
    store.delete(upload.keys)
    assert os.pread(region.file.fileno(), 5, 2) == b"23456"
    assert b"".join(region) == b"23456"


def test_bytes_are_on_the_disk_before_they_have_a_name(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def name(file: int) -> str:
        return str(Path(f"/proc/self/fd/{file}").readlink().relative_to(store.folder.parent))

    def fsync(file: int, really: object = os.fsync) -> None:
        assert callable(really)
        really(file)
        done.append(f"fsync {name(file)}")

    def rename(source: Path, target: Path, really: object = Path.rename) -> None:
        assert callable(really)
        really(source, target)
        done.append(f"rename {source.name} {target.name}")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    writer = store.writer(None, "ab01", int)
    writer.write([b"bytes"])
    first = writer.close(final=False)
    assert done == [
        "fsync .",
        "fsync blobs",
        "fsync blobs/ab/ab01.part",
        "rename ab01.part ab01",
        "fsync blobs/ab",
    ]
    done.clear()
    writer = store.writer(first, "ab02", int)
    writer.write([b" and more"])
    second = writer.close(final=True)
    store.complete(second)
    assert done == [
        "fsync blobs/ab/ab02.part",
        "rename ab02.part ab02.piece",
        "fsync blobs/ab",
        "fsync blobs/ab/ab02.join",
        "rename ab02.join ab02",
        "fsync blobs/ab",
    ]


def test_completion_after_a_crash_in_the_middle(store: FileStore) -> None:
    upload = Upload(store)
    upload.send(b"first")
    key = upload.send(b"second").key
    store.path(key, ".join").write_bytes(b"fir and longer than the whole")
    assert upload.complete() == key
    assert everything(store, key) == b"firstsecond"
    upload.complete()
    store.discard_leftovers(key)
    assert files(store) == sorted(upload.keys)


def test_completion_when_a_piece_lost_bytes(store: FileStore) -> None:
    upload = Upload(store)
    upload.send(b"first")
    key = upload.send(b"second").key
    store.path(key, ".piece").write_bytes(b"sec")
    with pytest.raises(StorageError, match="shorter"):
        upload.complete()
    assert store.size(key) is None


def test_aborted_bytes_are_gone_at_once(store: FileStore) -> None:
    writer = Upload(store).writer()
    writer.write([b"bytes"])
    assert len(files(store)) == 1
    writer.abort()
    assert files(store) == []


def test_list_knows_its_own_files(store: FileStore) -> None:
    upload = Upload(store)
    upload.send(b"bytes")
    (store.folder / "lost+found").mkdir()
    (store.folder / "README").write_text("about")
    (store.folder / upload.keys[0][:2] / "note.txt").write_text("about")
    assert [found[0] for found in store.list()] == upload.keys


@pytest.mark.parametrize("key", ["", "a", "../../etc/passwd", "ab/cd", "ab\0cd", ".ab", "ab.part"])
def test_a_key_names_nothing_else(store: FileStore, key: str) -> None:
    with pytest.raises(ValueError, match="is no key"):
        store.size(key)
    with pytest.raises(ValueError, match="is no key"):
        store.writer(None, key, int).close(final=True)


def test_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = FileStore(tmp_path / "file" / "blobs")
    with pytest.raises(StorageError, match="folder of blobs cannot be used"):
        store.check()
    with pytest.raises(StorageError, match="folder of blobs cannot be used"):
        Upload(store).send(b"bytes")


def test_folder_that_vanished_comes_back(store: FileStore) -> None:
    upload = Upload(store)
    upload.send(b"bytes")
    store.delete(upload.keys)
    for folder in (store.folder / upload.keys[0][:2], store.folder):
        folder.rmdir()
    store.check()
    upload = Upload(store)
    upload.send(b"bytes")
    assert everything(store, upload.complete()) == b"bytes"


def test_largest_file_that_may_be(store: FileStore) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    try:
        _fill(store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(store) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mount may not mount a tmpfs here (root may)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(small_disk: Path) -> None:
    store = FileStore(small_disk / "blobs")
    kept = Upload(store)
    kept.send(content(2 * MIB))
    _fill(store)
    same(everything(store, kept.complete()), kept.sent)
    assert files(store) == kept.keys
    # Joining needs room for a copy, and can be tried again once there is some.
    kept.send(content(MIB, 1))
    with pytest.raises(StorageError, match="full"):
        kept.complete()
    assert store.size(kept.staged.key) is None
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    same(everything(store, kept.complete()), kept.sent)


def _fill(store: FileStore) -> None:
    """Write more than there is room for."""
    writer = Upload(store).writer()
    with pytest.raises(StorageError, match="full") as caught:
        writer.write([bytes(MIB)] * 8)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno in (errno.ENOSPC, errno.EFBIG)
    writer.abort()


def test_pieces_are_joined_where_the_kernel_does_not_copy(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "not between these")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    staged = None
    for key in ("first0", "second"):
        writer = store.writer(staged, key, lambda _: 1)
        writer.write([key.encode() * 1000])
        staged = writer.close(final=False)
    assert staged is not None
    store.complete(staged)
    region = store.read(staged.key, 0, staged.size)
    assert b"".join(region) == b"first0" * 1000 + b"second" * 1000
