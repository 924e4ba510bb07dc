"""The specification's own conformance program, at 1.1 and at its development version."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.accounts import add_user
from tests.clients.programs import built
from tests.conformance.program import ALL_ON, Report, run_conformance
from tests.servers import S3, Registry

pytestmark = pytest.mark.long

PASSWORD = "every check: passed"


@pytest.fixture(scope="module")
def program() -> Path:
    return built("conformance")


def check(report: Report, least: int) -> None:
    """Everything passed, and it was not too little."""
    if report.not_passed:
        pytest.fail(str(report), pytrace=False)
    assert report.passed >= least


def test_1_1(program: Path, registry: Registry, tmp_path: Path) -> None:
    # Manifests that name what is missing are refused, unless a setting admits them.
    options = ALL_ON | {"OCI_DATA_SPARSE": False}
    check(run_conformance(program, registry.host, "1.1", options, tmp_path), 980)


def test_development_version(program: Path, serve: Callable[..., Registry], tmp_path: Path) -> None:
    registry = serve(OPENREGISTRY_SPARSE_MANIFESTS="true")
    check(run_conformance(program, registry.host, "dev", ALL_ON, tmp_path), 1030)


def test_development_version_on_s3(
    program: Path, serve: Callable[..., Registry], s3_server: S3, tmp_path: Path
) -> None:
    registry = serve(
        OPENREGISTRY_SPARSE_MANIFESTS="true",
        OPENREGISTRY_STORAGE_URL=s3_server.new_storage_url(),
        **s3_server.environment(),
    )
    # The program looks for Docker-Content-Digest on the answer after the redirect, which S3 gives.
    options = ALL_ON | {"OCI_API_BLOBS_DIGEST_HEADER": False}
    check(run_conformance(program, registry.host, "dev", options, tmp_path), 1030)


def test_with_accounts(program: Path, serve: Callable[..., Registry], tmp_path: Path) -> None:
    registry = serve(OPENREGISTRY_ACCESS="accounts", OPENREGISTRY_SPARSE_MANIFESTS="true")
    add_user(registry.settings, "conformance", PASSWORD)
    credentials = ("conformance", PASSWORD)
    check(run_conformance(program, registry.host, "dev", ALL_ON, tmp_path, credentials), 1030)
