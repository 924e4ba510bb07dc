"""Clients that know nothing of direct uploads push large layers through the proxy, into a registry
that is nothing but functions behind API Gateway."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.hosts.lambda_registry import PASSWORD, USER, LambdaRegistry
from tests.hosts.proxies import Proxy
from tests.images import make_image, write_docker_archive, write_layout
from tests.servers import DockerEngine, run, stopping

pytestmark = pytest.mark.long

SIZES = (1000, 3 << 20, 21 << 20)


@pytest.fixture(scope="module")
def near(lambda_registry: LambdaRegistry, directory: Path) -> Iterator[Proxy]:
    """A proxy of the registry on functions."""
    server = Proxy(directory / "lambda-proxy", lambda_registry.host)
    with stopping(server):
        yield server.start()


def test_skopeo(near: Proxy, tmp_path: Path) -> None:
    need("skopeo", "skopeo")
    image = make_image(SIZES, "skopeo through the proxy")
    layout = write_layout(tmp_path / "pushed", [image])
    name = f"docker://{near.host}/proxied/skopeo:1"
    auth = str(tmp_path / "auth.json")
    login = (f"--username={USER}", f"--password={PASSWORD}", near.host)
    run("skopeo", "login", "--tls-verify=false", *login, REGISTRY_AUTH_FILE=auth)
    run(
        "skopeo",
        "copy",
        "--dest-tls-verify=false",
        f"oci:{layout}:latest",
        name,
        REGISTRY_AUTH_FILE=auth,
    )
    pulled = tmp_path / "pulled"
    run("skopeo", "copy", "--src-tls-verify=false", name, f"dir:{pulled}", REGISTRY_AUTH_FILE=auth)
    for blob in image.blobs:
        assert (pulled / blob.digest.partition(":")[2]).read_bytes() == blob.data


def test_podman(near: Proxy, directory: Path, tmp_path: Path) -> None:
    need("podman", "podman")
    name = f"{near.host}/proxied/podman:1"
    image = make_image(SIZES, "podman through the proxy")
    archive = write_docker_archive(tmp_path / "image.tar", image, name)
    auth = str(tmp_path / "auth.json")
    home = Path(tempfile.mkdtemp(prefix="p-", dir=directory))  # it takes no long path
    storage = (f"--root={home / 'root'}", f"--runroot={home / 'run'}")

    def podman(*words: str | Path) -> str:
        return run(
            "podman", *storage, "--storage-driver=vfs", *words, REGISTRY_AUTH_FILE=auth
        ).stdout

    login = (f"--username={USER}", f"--password={PASSWORD}", near.host)
    podman("login", "--tls-verify=false", *login)
    podman("load", "--input", archive)
    podman("push", "--tls-verify=false", name)
    podman("rmi", "--all", "--force")
    podman("pull", "--tls-verify=false", name)
    assert name in podman("images", "--format={{.Repository}}:{{.Tag}}")


def test_docker(near: Proxy, docker: DockerEngine, tmp_path: Path) -> None:
    name = f"localhost:{near.port}/proxied/docker:1"
    image = make_image(SIZES, "docker through the proxy")
    archive = write_docker_archive(tmp_path / "image.tar", image, name)
    docker.run("login", "--username", USER, "--password", PASSWORD, f"localhost:{near.port}")
    docker.run("load", "--input", archive)
    docker.run("push", name)
    docker.run("rmi", name)
    docker.run("image", "prune", "--all", "--force")
    docker.run("pull", name)
    assert docker.run("image", "inspect", name).returncode == 0
