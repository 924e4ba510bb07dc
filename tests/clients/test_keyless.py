"""Workloads push with the token that their CI gave them, and people with GitHub's, by Docker."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.accounts import add_user, command
from tests.conftest import need
from tests.identity.doubles.browser import redirected
from tests.identity.doubles.github import GitHubDouble, User
from tests.identity.doubles.provider import Provider
from tests.images import make_image, write_docker_archive
from tests.servers import DockerEngine, Registry, run

pytestmark = pytest.mark.long

PASSWORD = "a password of alice's"


@pytest.fixture
def ci() -> Iterator[Provider]:
    with Provider() as provider:
        provider.rotate("RS256")
        yield provider


@pytest.fixture
def github() -> Iterator[GitHubDouble]:
    with GitHubDouble() as double:
        yield double


@pytest.fixture
def registry(serve: Callable[..., Registry], ci: Provider, github: GitHubDouble) -> Registry:
    app = github.register("Iv1.ours", "http://127.0.0.1/api/v1/sign-in/github/callback")
    server = serve(
        OPENREGISTRY_ACCESS="accounts",
        OPENREGISTRY_PRIVATE_ISSUERS=f"{ci.origin},{github.url}",
        OPENREGISTRY_GITHUB_URL=github.url,
        OPENREGISTRY_GITHUB_API_URL=github.api_url,
        OPENREGISTRY_GITHUB_CLIENT_ID=app.client_id,
        OPENREGISTRY_GITHUB_CLIENT_SECRET=app.client_secret,
    )
    add_user(server.settings, "alice", PASSWORD)
    command(server.settings, "org", "add", "acme", "--owner", "alice")
    return server


@pytest.fixture
def engine(docker: DockerEngine, registry: Registry) -> Iterator[DockerEngine]:
    yield docker
    docker.run("logout", registry.host)
    docker.run("image", "prune", "--all", "--force")


def load(engine: DockerEngine, folder: Path, tag: str) -> None:
    archive = write_docker_archive(folder / "image.tar", make_image((1000,), tag), tag)
    engine.run("load", "--input", archive)


def log_in(engine: DockerEngine, registry: Registry, token: str) -> None:
    said = engine.run("login", "--username", "ci", "--password", token, registry.host).stdout
    assert "Login Succeeded" in said


@pytest.mark.parametrize(
    ("shape", "claim"), [("github_actions", "repository"), ("gitlab_ci", "project_path")]
)
def test_keyless(
    engine: DockerEngine, registry: Registry, ci: Provider, shape: str, claim: str, tmp_path: Path
) -> None:
    """The commands of docs/accounts.md."""
    need("curl", "curl")
    rule = command(
        registry.settings,
        *("trust", "add", "acme", "--issuer", ci.issuer, "--audience", registry.url),
        *("--claim", f"{claim}=acme/app", "--scope", "repository:acme/app:pull,push"),
    )["id"]
    id_token = ci.token(getattr(ci, shape)(registry.url))
    curl = (
        *("curl", "--silent", "--show-error", "--fail-with-body", f"{registry.url}/token"),
        *("--data-urlencode", "grant_type=urn:ietf:params:oauth:grant-type:token-exchange"),
        *("--data-urlencode", "subject_token_type=urn:ietf:params:oauth:token-type:id_token"),
        *("--data-urlencode", f"subject_token={id_token}"),
        *("--data-urlencode", "scope=repository:acme/app:pull,push"),
    )
    token = json.loads(run(*curl).stdout)["access_token"]
    again = run(*curl, check=False)
    assert again.returncode == 22
    assert "exchanged before" in again.stdout

    tag = f"{registry.host}/acme/app:1"
    load(engine, tmp_path, tag)
    log_in(engine, registry, token)
    engine.run("push", tag)
    engine.run("image", "prune", "--all", "--force")
    engine.run("pull", tag)
    other = f"{registry.host}/acme/other:1"
    engine.run("tag", tag, other)
    assert engine.run("push", other, check=False).returncode != 0

    listed = command(registry.settings, "trust", "list", "acme")
    assert [each["id"] for each in listed] == [rule]
    command(registry.settings, "trust", "remove", "acme", rule)
    assert engine.run("push", tag, check=False).returncode != 0
    assert command(registry.settings, "trust", "list", "acme") == []


def test_a_github_token_as_a_password(
    engine: DockerEngine, registry: Registry, github: GitHubDouble, tmp_path: Path
) -> None:
    emails = ({"email": "mona@home.example", "primary": True, "verified": True},)
    github.user = mona = User(583231, "mona", emails)
    token = github.personal_token(mona)
    refused = engine.run("login", "-u", "mona", "-p", token, registry.host, check=False)
    assert refused.returncode != 0

    curl = ("curl", "--silent", "--show-error", "--fail-with-body")
    jar = ("--cookie", tmp_path / "cookies", "--cookie-jar", tmp_path / "cookies")
    api = f"{registry.url}/api/v1"
    body = json.dumps({"name": "alice", "password": PASSWORD})
    sent = ("--header", "Content-Type: application/json")
    run(*curl, *jar, *sent, "--data", body, f"{api}/session")
    begun = run(*curl, *jar, "--request", "POST", f"{api}/sign-in/github/link").stdout
    back = redirected(json.loads(begun)["location"])
    run(*curl, *jar, back)
    [identity] = json.loads(run(*curl, *jar, f"{api}/account/identities").stdout)["items"]

    tag = f"{registry.host}/alice/app:1"
    load(engine, tmp_path, tag)
    log_in(engine, registry, token)
    engine.run("push", tag)
    run(*curl, *jar, "--request", "DELETE", f"{api}/account/identities/{identity['id']}")
    assert engine.run("push", tag, check=False).returncode != 0
