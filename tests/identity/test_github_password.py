"""A GitHub token in place of a password: whose it is, how long, and what it is not good for."""

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from chalicelib.identity import external
from chalicelib.identity.external import Person
from chalicelib.metadata import external_identities
from tests.api.conftest import World, basic, opened
from tests.client import Answer
from tests.identity.doubles.github import GitHubDouble, User, primary_limit
from tests.servers import Postgres

MONA = User(583231, "mona")


@pytest.fixture
def github() -> Iterator[GitHubDouble]:
    with GitHubDouble() as double:
        yield double


@pytest.fixture
def world(postgres: Postgres, tmp_path: Path, github: GitHubDouble) -> Iterator[World]:
    with opened(
        postgres,
        tmp_path,
        OPENREGISTRY_PRIVATE_ISSUERS=github.url,
        OPENREGISTRY_GITHUB_URL=github.url,
        OPENREGISTRY_GITHUB_API_URL=github.api_url,
    ) as registry:
        yield registry


def link(world: World, github: GitHubDouble, name: str = "alice", user: User = MONA) -> None:
    person = Person(github.url, str(user.id), user.login, "")
    external.link(world.context.database, world.ids[name], person)


def push(world: World, token: str, repository: str = "alice/app") -> int:
    path = f"/v2/{repository}/blobs/uploads/"
    headers = {"Authorization": basic("anybody", token)}
    return world.client.request("POST", path, b"", headers).status


def get_token(world: World, token: str) -> Answer:
    headers = {"Authorization": basic("anybody", token)}
    return world.client.request("GET", "/token?scope=repository:alice/app:*", b"", headers)


@pytest.mark.parametrize("prefix", ["ghp_", "github_pat_"])
def test_whoever_is_linked_may_do_what_the_account_may(
    world: World, github: GitHubDouble, prefix: str
) -> None:
    token = github.personal_token(MONA, prefix)
    assert push(world, token) == 401
    link(world, github)
    assert push(world, token) == 202
    assert push(world, token, "bob/app") == 403
    assert push(world, github.personal_token(User(2, "mona"), prefix)) == 401
    assert get_token(world, token).json["scope"] == "repository:alice/app:pull,push,delete"


def test_a_login_ends_at_once_with_the_link(world: World, github: GitHubDouble) -> None:
    link(world, github)
    token = github.personal_token(MONA)
    registry_token = get_token(world, token).json["token"]
    assert push(world, token) == 202
    assert push(world, registry_token) == 202
    [identity] = external_identities.listed(world.context.database, world.ids["alice"])
    assert external.unlink(
        world.context.database, world.ids["alice"], identity.id, None, github.url
    )
    assert push(world, token) == 401
    assert push(world, registry_token) == 401


def test_a_token_that_is_revoked_at_github_is_believed_for_a_minute(
    world: World, github: GitHubDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    link(world, github)
    token = github.personal_token(MONA)
    assert push(world, token) == 202
    del github.tokens[token]
    asked = len(github.requests)
    assert push(world, token) == 202
    assert len(github.requests) == asked
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 61)
    assert push(world, token) == 401


def test_a_github_token_does_not_manage_the_account(world: World, github: GitHubDouble) -> None:
    """It is made for something else, often with no scope at all, and often leaked."""
    link(world, github)
    password = basic("alice", github.personal_token(MONA))
    for method, path, body in [
        ("GET", "/sessions", None),
        ("GET", "/account/identities", None),
        ("POST", "/sign-in/github/link", None),
        ("GET", "/accounts/alice/trust-rules", None),
        ("GET", "/passkeys", None),
    ]:
        answer = world.call(method, path, body, Authorization=password)
        assert answer.status == 403, (path, answer)


def test_no_refresh_token_outlives_it(world: World, github: GitHubDouble) -> None:
    link(world, github)
    form = {
        "grant_type": "password",
        "username": "alice",
        "password": github.personal_token(MONA),
        "access_type": "offline",
    }
    answer = world.client.request("POST", "/token", urlencode(form).encode())
    assert answer.status == 200
    assert "refresh_token" not in answer.json


def test_guesses_are_counted_by_address_and_lock_out_nobody(
    world: World, github: GitHubDouble
) -> None:
    link(world, github)
    token = github.personal_token(MONA)
    wrong = [f"ghp_{number:036}" for number in range(100)]
    assert {push(world, each) for each in wrong[:99]} == {401}
    assert push(world, token) == 202
    assert push(world, wrong[99]) in (401, 429)
    asked = len(github.requests)
    assert push(world, f"ghp_{'x' * 36}") == 429
    assert len(github.requests) == asked
    # The rightful one's address is known by now.
    assert push(world, token) == 202


def test_github_is_out_of_order(world: World, github: GitHubDouble) -> None:
    link(world, github)
    github.trouble = primary_limit()
    assert push(world, github.personal_token(MONA)) == 503
    github.trouble = None
    assert push(world, github.personal_token(MONA)) == 202


def test_nobody_takes_anothers_place_in_what_is_remembered(
    world: World, github: GitHubDouble
) -> None:
    link(world, github)
    token = github.personal_token(MONA)
    assert push(world, token) == 202
    headers = {"Authorization": basic(github.url, str(MONA.id))}
    assert world.client.request("GET", "/v2/", b"", headers).status == 401
