"""Fixtures for the tests of hosts."""

import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.hosts.proxies import Proxy
from tests.servers import stopping


@pytest.fixture
def name() -> str:
    """What a test calls its requests to a program that others use too (`/stream?name=…`), so that
    it sees their events alone."""
    return uuid.uuid4().hex


@pytest.fixture
def proxy(directory: Path) -> Iterator[Callable[[str], Proxy]]:
    """Start proxies: `proxy("127.0.0.1:5000")`."""
    with ExitStack() as stack:

        def start(registry: str) -> Proxy:
            server = Proxy(Path(tempfile.mkdtemp(prefix="proxy-", dir=directory)), registry)
            stack.enter_context(stopping(server))
            return server.start()

        yield start
