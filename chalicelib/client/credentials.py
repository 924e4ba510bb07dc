"""Credentials that `docker login` and `podman login` left on this machine: files of JSON, and
programs that keep secrets (docker's "credential helpers", containers-auth.json(5))."""

import base64
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chalicelib.client.names import DOCKER_HUB, Registry

_HUB_KEY = "https://index.docker.io/v1/"
"""What docker keeps Docker Hub's credentials under."""

_TOKEN_USER = "<token>"  # noqa: S105
"""A helper says by this name that its secret is an identity token."""

_HELPER_SECONDS = 60
"""A helper may take so long: it may ask the person for a password."""


class CredentialsError(Exception):
    """Credentials are there and cannot be had. The text is a sentence without secrets."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's name and password, or an identity token, which stands in for both."""

    username: str
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The Authorization of HTTP's Basic scheme (RFC 7617)."""
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode()


def find(registry: Registry, repository: str = "") -> Credentials | None:
    """Those for a repository, or for the whole registry; None where nobody logged in. Raises
    ``CredentialsError``."""
    for path in _files(os.environ):
        held = _read(path)
        found = None if held is None else _in_file(held, path, registry, repository)
        if found is not None:
            return found
    return None


def _files(environment: Mapping[str, str]) -> Iterator[Path]:
    """Where they may be, the likeliest first. A file that is named is the only one."""
    home = Path(environment.get("HOME") or Path.home())
    if named := environment.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
        return
    if folder := environment.get("DOCKER_CONFIG"):
        yield Path(folder, "config.json")
    else:
        yield home / ".docker" / "config.json"
    if folder := environment.get("XDG_RUNTIME_DIR"):
        yield Path(folder, "containers", "auth.json")
    yield Path(environment.get("XDG_CONFIG_HOME") or home / ".config", "containers", "auth.json")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        held = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CredentialsError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise CredentialsError(f"{path} holds something else than JSON.") from None
    if not isinstance(held, dict):
        raise CredentialsError(f"{path} holds something else than credentials.")
    return held


def _in_file(
    held: dict[str, Any], path: Path, registry: Registry, repository: str
) -> Credentials | None:
    key = _HUB_KEY if registry.host == DOCKER_HUB else registry.host
    helpers = held.get("credHelpers") or {}
    # A helper is asked for what the file calls the registry, and a store for what docker does.
    asked = next((each for each in (registry.host, key) if each in helpers), key)
    if helper := helpers.get(asked) or held.get("credsStore"):
        found = _ask(str(helper), asked)
        if found is not None:
            return found
    auths = held.get("auths") or {}
    names = repository.split("/") if repository else []
    for count in range(len(names), -1, -1):
        # The most particular first: HOST/GROUP/APP, HOST/GROUP, HOST.
        entry = auths.get("/".join((registry.host, *names[:count])))
        if entry:
            return _decoded(entry, path, registry)
    for other, entry in auths.items():
        if entry and (other == key or _host(other) == registry.host):
            return _decoded(entry, path, registry)
    return None


def _host(key: str) -> str:
    """The host of a key that older releases of docker wrote as a URL."""
    scheme, separator, rest = key.partition("://")
    return rest.partition("/")[0] if separator and scheme in ("http", "https") else ""


def _decoded(entry: dict[str, Any], path: Path, registry: Registry) -> Credentials | None:
    username, password = str(entry.get("username", "")), str(entry.get("password", ""))
    if entry.get("auth"):
        try:
            text = base64.b64decode(entry["auth"], validate=True).decode()
        except (ValueError, TypeError):
            text = ""
        username, colon, password = text.partition(":")
        if not colon:
            raise CredentialsError(
                f"What {path} holds for {registry.host} is damaged: log in again."
            )
        # Docker's older releases ended it by a NUL.
        password = password.rstrip("\0")
    token = str(entry.get("identitytoken", ""))
    return Credentials(username, password, token) if username or token else None


def _ask(helper: str, key: str) -> Credentials | None:
    """What the program ``docker-credential-…`` keeps for a registry: it reads the registry and
    writes JSON."""
    program = f"docker-credential-{helper}"
    try:
        answer = subprocess.run(
            [program, "get"],
            input=key.encode(),
            capture_output=True,
            timeout=_HELPER_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise CredentialsError(
            f"Credentials for {key} are kept by {program}, which is not on PATH."
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CredentialsError(f"{program} did not answer: {type(error).__name__}.") from None
    if answer.returncode:
        said = (answer.stdout or answer.stderr).decode(errors="replace").strip()
        if "credentials not found" in said.lower():
            return None
        # A helper's own sentence about what is wrong; it prints secrets only when it succeeds.
        raise CredentialsError(f"{program} failed: {said[:300] or answer.returncode}")
    try:
        held = json.loads(answer.stdout)
        username, secret = str(held["Username"]), str(held["Secret"])
    except (ValueError, KeyError, TypeError):
        raise CredentialsError(f"{program} wrote something else than credentials.") from None
    if username == _TOKEN_USER:
        return Credentials("", identity_token=secret)
    return Credentials(username, secret) if username or secret else None
