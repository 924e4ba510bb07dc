"""Clients that learn to log in from the answers to their requests, behind API Gateway."""

from pathlib import Path

import pytest

from tests.clients.programs import client
from tests.hosts.lambda_registry import PASSWORD, USER, LambdaRegistry
from tests.images import layout_contents, make_bytes, make_image, write_layout

pytestmark = pytest.mark.long


def test_crane(lambda_registry: LambdaRegistry, tmp_path: Path) -> None:
    crane = client("crane", tmp_path)
    image = make_image((1000, 0, 3 << 20), "crane on Lambda")
    name = f"{lambda_registry.host}/clients/crane:1"
    crane("auth", "login", lambda_registry.host, "-u", USER, "-p", PASSWORD)
    crane("push", write_layout(tmp_path / "pushed", [image]), name)
    crane("pull", "--format=oci", name, "pulled")
    contents = {content.digest: content.data for content in (image.manifest, *image.blobs)}
    assert layout_contents(tmp_path / "pulled") == contents


def test_oras(lambda_registry: LambdaRegistry, tmp_path: Path) -> None:
    oras = client("oras", tmp_path)
    data = make_bytes(1 << 20, "oras on Lambda")
    (tmp_path / "file").write_bytes(data)
    name = f"{lambda_registry.host}/clients/oras:1"
    oras("login", "--plain-http", "-u", USER, "-p", PASSWORD, lambda_registry.host)
    oras("push", "--plain-http", name, "file:application/vnd.example.data")
    oras("pull", "--plain-http", "--output=pulled", name)
    assert (tmp_path / "pulled" / "file").read_bytes() == data


def test_regctl(lambda_registry: LambdaRegistry, tmp_path: Path) -> None:
    """It sends what is larger than a chunk in chunks, of any number that fits."""
    regctl = client("regctl", tmp_path)
    image = make_image((1000, 11 << 20), "regctl on Lambda")
    layout = write_layout(tmp_path / "pushed", [image])
    name = f"{lambda_registry.host}/clients/regctl:1"
    chunks = (f"--blob-chunk={4 << 20}", f"--blob-max={4 << 20}")
    plain = ("--tls=disabled", "--skip-check")
    regctl("registry", "set", *plain, *chunks, lambda_registry.host)
    regctl("registry", "login", "-u", USER, "-p", PASSWORD, lambda_registry.host)
    regctl("image", "copy", f"ocidir://{layout}:latest", name)
    regctl("image", "copy", name, f"ocidir://{tmp_path / 'pulled'}:1")
    contents = {content.digest: content.data for content in (image.manifest, *image.blobs)}
    assert layout_contents(tmp_path / "pulled") == contents
