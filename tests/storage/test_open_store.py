"""STORAGE_URL: what it may say, and what is said about a wrong one."""

from pathlib import Path
from typing import Any

import pytest

from chalicelib.settings import Settings, SettingsError
from chalicelib.storage import open_store
from chalicelib.storage.filesystem import FileStore
from chalicelib.storage.s3 import Bucket, S3Store


def bucket(url: str) -> Bucket:
    store = open_store(Settings(storage_url=url))
    assert isinstance(store, S3Store)
    return store.bucket


def test_default_is_a_folder_of_the_data(tmp_path: Path) -> None:
    store = open_store(Settings(data_dir=tmp_path / "a folder"))
    assert isinstance(store, FileStore)
    assert store.folder == tmp_path / "a folder" / "blobs"
    assert not store.folder.exists()


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("file:///var/lib/blobs", "/var/lib/blobs"),
        ("file:///var/lib/blobs/", "/var/lib/blobs"),
        ("file://localhost/blobs", "/blobs"),
        ("file:///a%20folder/50%25", "/a folder/50%"),
    ],
)
def test_file(url: str, folder: str) -> None:
    store = open_store(Settings(storage_url=url))
    assert isinstance(store, FileStore)
    assert store.folder == Path(folder)


def test_s3() -> None:
    assert bucket("s3://blobs") == Bucket("blobs")
    assert bucket("s3://blobs/") == Bucket("blobs")
    assert bucket("s3://blobs/a/b/?region=eu-west-1") == Bucket(
        "blobs", prefix="a/b/", region="eu-west-1"
    )
    assert bucket("s3://blobs?path_style=true").path_style
    inside = "http://minio:9000"
    assert bucket(f"s3://blobs/x?endpoint={inside}") == Bucket(
        "blobs", prefix="x/", endpoint=inside, region="us-east-1", path_style=True
    )
    assert bucket(
        "s3://blobs?endpoint=https%3A%2F%2Fr2.example.org/&path_style=False&region=auto"
        "&public_endpoint=https://blobs.example.org"
    ) == Bucket(
        "blobs",
        endpoint="https://r2.example.org",
        public_endpoint="https://blobs.example.org",
        region="auto",
    )
    assert not bucket("s3://blobs?endpoint=https://s3.filebase.io").filebase
    assert bucket("s3://blobs?endpoint=https://s3.filebase.com").filebase
    assert bucket("s3://blobs?endpoint=http://minio:9000&filebase=true").filebase


@pytest.mark.parametrize("given", ["storage_access_key", "storage_secret_key"])
def test_half_an_access_key(given: str) -> None:
    [missing] = {"storage_access_key", "storage_secret_key"} - {given}
    half: dict[str, Any] = {given: "half a key"}
    with pytest.raises(SettingsError) as caught:
        open_store(Settings(storage_url="s3://bucket", **half))
    assert caught.value.name == f"OPENREGISTRY_{missing.upper()}"
    assert caught.value.sentence == f"is needed with OPENREGISTRY_{given.upper()}"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("gs://bucket", "must begin with file:// or s3://"),
        ("file://", "whole path"),
        ("file:///", "whole path"),
        ("file:relative/path", "whole path"),
        ("file://host/path", "whole path"),
        ("file:///path?region=x", "parameters"),
        ("file:///path#1", "#"),
        ("s3://", "must name a bucket"),
        ("s3:///prefix", "must name a bucket"),
        ("s3://x", "must name a bucket"),
        ("s3://bucket/a//b", "prefix"),
        ("s3://bucket/a%0Ab", "prefix"),
        ("s3://key:secret@bucket", "holds credentials"),
        ("s3://bucket?region=a&region=b", "region more than once"),
        ("s3://bucket?region=EU West", "region"),
        ("s3://bucket?regoin=x", "unknown parameter 'regoin'"),
        ("s3://bucket?access_key=x", "unknown parameter"),
        ("s3://bucket?endpoint=minio:9000", "endpoint"),
        ("s3://bucket?endpoint=http://minio:x", "port"),
        ("s3://bucket?endpoint=http://k:s@minio", "credentials"),
        ("s3://bucket?public_endpoint=ftp://x", "public_endpoint"),
        ("s3://bucket?path_style=maybe", "path_style"),
        ("s3://bucket?filebase=maybe", "filebase"),
    ],
)
def test_wrong(url: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_store(Settings(storage_url=url))
    assert caught.value.name == "OPENREGISTRY_STORAGE_URL"
    assert sentence in caught.value.sentence
    assert "secret" not in str(caught.value)
