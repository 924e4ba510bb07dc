"""helm: a chart is packaged, pushed, shown and pulled."""

import re
from pathlib import Path

import pytest

from tests.clients.programs import Run, client
from tests.servers import Registry

pytestmark = pytest.mark.long


@pytest.fixture
def helm(tmp_path: Path) -> Run:
    return client("helm", tmp_path)


def test_push_show_and_pull(helm: Run, registry: Registry, tmp_path: Path) -> None:
    helm("create", "hello")
    helm("package", "hello", "--version=1.2.3+build.4")
    package = tmp_path / "hello-1.2.3+build.4.tgz"
    charts = f"oci://{registry.host}/helm/charts"
    helm("push", package, charts, "--plain-http")

    shown = helm("show", "chart", f"{charts}/hello", "--version=1.2.3+build.4", "--plain-http")
    assert "version: 1.2.3+build.4" in shown
    pulled = tmp_path / "pulled"
    pulled.mkdir()
    # A range of versions makes helm read the tags.
    helm("pull", f"{charts}/hello", "--version=^1.0.0", "--plain-http", f"--destination={pulled}")
    assert (pulled / package.name).read_bytes() == package.read_bytes()


def test_pull_by_digest(helm: Run, registry: Registry, tmp_path: Path) -> None:
    helm("create", "hello")
    helm("package", "hello")
    charts = f"oci://{registry.host}/helm/by-digest"
    output = helm("push", "hello-0.1.0.tgz", charts, "--plain-http")
    digest = re.findall(r"sha256:[0-9a-f]{64}", output)[0]
    pulled = tmp_path / "pulled"
    pulled.mkdir()
    helm("pull", f"{charts}/hello@{digest}", "--plain-http", f"--destination={pulled}")
    [package] = pulled.iterdir()
    assert package.read_bytes() == (tmp_path / "hello-0.1.0.tgz").read_bytes()
