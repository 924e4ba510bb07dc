"""What `docker login` and `podman login` leave is found; helpers are real programs on the PATH."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from chalicelib.client.credentials import Credentials, CredentialsError, find
from chalicelib.client.names import Registry

HOST = Registry.parse("registry.example.org")

HELPER = """#!/bin/sh
[ "$1" = get ] || exit 2
read -r server
case "$server" in
registry.example.org) echo '{"ServerURL": "x", "Username": "ada", "Secret": "from the store"}' ;;
token.example.org) echo '{"ServerURL": "x", "Username": "<token>", "Secret": "identity"}' ;;
locked.example.org) echo 'the store is locked'; exit 1 ;;
broken.example.org) echo 'hello' ;;
*) echo 'credentials not found in native keychain'; exit 1 ;;
esac
"""


def auth(username: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, with the helper `docker-credential-shell` on the PATH."""
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    program = tmp_path / "bin" / "docker-credential-shell"
    program.parent.mkdir()
    program.write_text(HELPER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path


def write(path: Path, **held: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(held))
    return path


def test_nobody_is_logged_in(home: Path) -> None:
    assert find(HOST) is None


def test_what_docker_login_leaves(home: Path) -> None:
    write(home / ".docker/config.json", auths={HOST.host: auth("ada", "a:b")})
    assert find(HOST, "group/app") == Credentials("ada", "a:b")
    assert find(Registry.parse("other.example.org")) is None


def test_identity_tokens(home: Path) -> None:
    entry = {**auth("00000000", ""), "identitytoken": "identity"}
    write(home / ".docker/config.json", auths={HOST.host: entry})
    assert find(HOST) == Credentials("00000000", "", "identity")


def test_docker_hub_has_a_name_of_its_own(home: Path) -> None:
    hub = Registry.parse("docker.io")
    write(home / ".docker/config.json", auths={"https://index.docker.io/v1/": auth("ada", "1")})
    assert find(hub) == Credentials("ada", "1")
    write(home / ".docker/config.json", auths={"docker.io": auth("ada", "2")})
    assert find(hub) == Credentials("ada", "2")


def test_keys_that_are_urls(home: Path) -> None:
    write(home / ".docker/config.json", auths={f"https://{HOST.host}/v2/": auth("ada", "1")})
    assert find(HOST) == Credentials("ada", "1")


def test_the_most_particular_of_podmans_keys(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    write(
        home / "run/containers/auth.json",
        auths={
            HOST.host: auth("all", "1"),
            f"{HOST.host}/group": auth("group", "2"),
            f"{HOST.host}/group/app": auth("app", "3"),
        },
    )
    found = [find(HOST, name) for name in ("group/app", "group/other", "groups/app", "")]
    assert [each and each.username for each in found] == ["app", "group", "all", "all"]


def test_the_order_of_files(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def user() -> str | None:
        found = find(HOST)
        return found.username if found else None

    write(home / ".config/containers/auth.json", auths={HOST.host: auth("config", "")})
    assert user() == "config"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    write(home / "run/containers/auth.json", auths={HOST.host: auth("run", "")})
    assert user() == "run"
    write(home / ".docker/config.json", auths={HOST.host: auth("docker", "")})
    assert user() == "docker"
    monkeypatch.setenv("DOCKER_CONFIG", str(home / "other"))
    assert user() == "run"
    write(home / "other/config.json", auths={HOST.host: auth("other", "")})
    assert user() == "other"
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(home / "named.json"))
    assert user() is None
    write(home / "named.json", auths={HOST.host: auth("named", "")})
    assert user() == "named"


@pytest.mark.parametrize(
    "held",
    [
        {"credsStore": "shell", "auths": {"registry.example.org": {}}},
        {"credHelpers": {"registry.example.org": "shell"}},
        {"credHelpers": {"registry.example.org": "shell"}, "credsStore": "missing"},
    ],
)
def test_helpers(home: Path, held: dict[str, Any]) -> None:
    write(home / ".docker/config.json", **held)
    assert find(HOST) == Credentials("ada", "from the store")


def test_what_a_helper_says(home: Path) -> None:
    write(home / ".docker/config.json", credsStore="shell")
    token = find(Registry.parse("token.example.org"))
    assert token == Credentials("", identity_token="identity")
    assert find(Registry.parse("unknown.example.org")) is None
    with pytest.raises(CredentialsError, match="docker-credential-shell failed: the store is lock"):
        find(Registry.parse("locked.example.org"))
    with pytest.raises(CredentialsError, match="wrote something else"):
        find(Registry.parse("broken.example.org"))


def test_a_helper_that_is_missing(home: Path) -> None:
    write(home / ".docker/config.json", credsStore="gone")
    with pytest.raises(CredentialsError, match="docker-credential-gone, which is not on PATH"):
        find(HOST)


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": {"registry.example.org": {"auth": "?"}}}'])
def test_damaged_files(home: Path, text: str) -> None:
    file = home / ".docker/config.json"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(CredentialsError, match=r"config\.json"):
        find(HOST)


def test_secrets_are_not_shown() -> None:
    shown = repr(Credentials("ada", "secret one", "secret two"))
    assert "ada" in shown
    assert "secret" not in shown
