"""Engines for the tests of images, made when a test first asks for one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.deploy.engines import TAG, Engine, base
from tests.servers import DOCKER, stopping


@pytest.fixture(scope="session")
def engine(directory: Path) -> Iterator[Engine]:
    """An engine on this machine's network that has the registry's image, ``TAG``."""
    need(DOCKER, "docker.io")
    if os.geteuid() != 0:
        pytest.skip("dockerd runs as root only")
    tar = base()
    server = Engine(directory / "engine")
    with stopping(server):
        server.start()
        server.run("import", tar, "base:bookworm")
        server.build(TAG)
        yield server
