"""Clients log in to a registry that asks who they are, and are told so when they do not."""

from collections.abc import Callable, Iterator
from pathlib import Path

import bcrypt
import pytest

from tests.conftest import need
from tests.images import make_image, write_docker_archive, write_layout
from tests.servers import DockerEngine, Registry, run

USER, PASSWORD = "ada", "difference : engine"
LOGIN = ("login", "--username", USER, "--password")


@pytest.fixture
def guarded(serve: Callable[..., Registry], tmp_path: Path) -> Registry:
    """A registry that lets in one account."""
    file = tmp_path / "htpasswd"
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(5)).decode()
    file.write_text(f"{USER}:{hashed}\n")
    return serve(OPENREGISTRY_HTPASSWD=str(file))


@pytest.fixture
def logged_out(docker: DockerEngine, guarded: Registry) -> Iterator[DockerEngine]:
    """The engine, which forgets the password in the end."""
    yield docker
    docker.run("logout", guarded.host)
    docker.run("image", "prune", "--all", "--force")


def test_docker(logged_out: DockerEngine, guarded: Registry, tmp_path: Path) -> None:
    docker = logged_out
    tag = f"{guarded.host}/ada/secret:1"
    archive = write_docker_archive(tmp_path / "image.tar", make_image((1000,), "secret"), tag)
    docker.run("load", "--input", archive)
    refused = docker.run("push", tag, check=False)
    assert refused.returncode != 0
    assert "no basic auth credentials" in refused.stdout

    wrong = docker.run(*LOGIN, "wrong", guarded.host, check=False)
    assert wrong.returncode != 0
    assert "unauthorized" in wrong.stdout.lower()

    assert "Login Succeeded" in docker.run(*LOGIN, PASSWORD, guarded.host).stdout
    docker.run("push", tag)
    docker.run("image", "prune", "--all", "--force")
    docker.run("pull", tag)


@pytest.mark.parametrize("client", ["buildah", "podman", "skopeo"])
def test_containers(client: str, guarded: Registry, tmp_path: Path) -> None:
    need(client, client)
    need("skopeo", "skopeo")
    layout = write_layout(tmp_path / "layout", [make_image((1000,), "secret")])
    auth = ("--authfile", tmp_path / "auth.json")
    target = f"docker://{guarded.host}/ada/secret:1"
    push = ("skopeo", "copy", "--dest-tls-verify=false", *auth, f"oci:{layout}:latest", target)
    (tmp_path / "auth.json").write_text("{}")
    refused = run(*push, check=False)
    assert refused.returncode != 0
    assert "unauthorized" in refused.stdout.lower()

    login = (client, *LOGIN)
    rest = ("--tls-verify=false", *auth, guarded.host)
    wrong = run(*login, "wrong", *rest, check=False)
    assert wrong.returncode != 0
    assert "invalid username/password" in wrong.stdout

    assert "Login Succeeded" in run(*login, PASSWORD, *rest).stdout
    run(*push)
    run("skopeo", "inspect", "--tls-verify=false", *auth, target)
