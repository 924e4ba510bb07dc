"""Fixtures for the tests of single stores: those of the contract suite, and a proxy with faults."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from chalicelib.settings import Settings
from chalicelib.storage import open_store
from chalicelib.storage.s3 import S3Store
from tests.contract.stores import PART, aws_credentials, s3
from tests.servers import S3
from tests.storage.faults import FaultyProxy

__all__ = ["s3"]


@pytest.fixture
def open_s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> Callable[..., S3Store]:
    """Open a store in an unused prefix of the tests' bucket, with settings of one's own."""
    aws_credentials(monkeypatch, s3_server)

    def open_one(url: str = "", **settings: Any) -> S3Store:
        settings = {"part_size": PART} | settings
        made = open_store(Settings(storage_url=url or s3_server.new_storage_url(), **settings))
        assert isinstance(made, S3Store)
        return made

    return open_one


@pytest.fixture
def proxy(s3_server: S3) -> Iterator[FaultyProxy]:
    """Stands before the S3 server."""
    with closing(FaultyProxy(s3_server.endpoint)) as made:
        yield made
