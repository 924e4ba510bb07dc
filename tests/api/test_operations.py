"""How a request comes to an operation, who may call it, and how errors are told."""

import socket
from collections.abc import Callable
from dataclasses import replace
from http.client import HTTPResponse
from typing import Any
from urllib.parse import quote

import pytest

from chalicelib.api import operations
from chalicelib.api.operations import LARGEST_BODY, PREFIX, Needs, Operation
from chalicelib.hosts import build_context
from chalicelib.http import Headers, Request
from tests.api.conftest import PASSWORD, World, basic
from tests.client import Answer, CoreClient, HTTPClient
from tests.servers import Registry, free_port

OPERATIONS = operations.table()
CHANGES = [row for row in OPERATIONS if row.method != "GET"]
PARTS = {
    "account": "alice", "repository": "alice/app", "provider": "github", "identity": "x",
    "session": "x", "passkey": "x", "team": "x", "member": "x", "robot": "x", "token": "x",
    "login": "x", "rule": "x", "invitation": "1", "grantee": "bob",
    "webhook": "x", "delivery": "x", "trigger": "x", "resolver": "x",
    "tag": "x", "reference": "x", "digest": "sha256:" + "0" * 64, "job": "1",
}  # fmt: skip


def path_of(row: Operation) -> str:
    return row.path.format(**PARTS)


def problem(answer: Answer) -> int:
    """The status of an answer, which tells a problem."""
    assert answer.headers["Content-Type"] == "application/problem+json", answer
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    told = answer.json
    assert (told["status"], bool(told["title"]), bool(told["detail"])) == (
        answer.status,
        True,
        True,
    )
    return answer.status


@pytest.fixture
def app(world: World) -> World:
    assert world.call("POST", "/repositories", {"name": "alice/app"}, by="alice").status == 201
    return world


# Who may call.


def test_a_row_that_needs_what_its_path_lacks_is_none() -> None:
    for needs in (Needs.ACCOUNT_READ, Needs.ACCOUNT_ADMIN):
        with pytest.raises(ValueError, match="account"):
            Operation("GET", "/things/{repository}", operations.table, needs, "Things")
    for needs in (Needs.REPOSITORY_READ, Needs.REPOSITORY_PUSH, Needs.REPOSITORY_ADMIN):
        with pytest.raises(ValueError, match="repository"):
            Operation("GET", "/things/{account}", operations.table, needs, "Things")


def test_what_anybody_may_do() -> None:
    """Whatever is to be added here needs a reason."""
    assert {row.id for row in OPERATIONS if row.needs is Needs.NOTHING} == {
        "sign_in", "passkey_options", "sign_in_with_passkey", "list_providers", "begin_sign_in",
        "finish_sign_in", "sign_up", "create_first_administrator", "verify_email", "ask_for_reset",
        "complete_reset", "show_account", "list_repositories", "list_account_repositories",
        "describe",
    }  # fmt: skip


def test_what_nobody_may_do_is_not_done(app: World) -> None:
    for row in OPERATIONS:
        answer = app.call(row.method, path_of(row))
        if row.needs is Needs.NOTHING:
            assert answer.status != 403, row
        else:
            assert problem(answer) == 401, row
            assert answer.headers["WWW-Authenticate"].startswith("Bearer "), row


@pytest.mark.parametrize("credentials", ["Bearer eyJ.forged.token", "Basic !", "Digest a", "x"])
def test_wrong_credentials_are_never_no_credentials(app: World, credentials: str) -> None:
    for row in OPERATIONS:
        answer = app.call(row.method, path_of(row), Authorization=credentials)
        assert problem(answer) == 401, row


def test_others_may_do_nothing_with_an_account_and_its_private_repository(app: World) -> None:
    for row in OPERATIONS:
        if ":" in row.needs.value:
            assert problem(app.call(row.method, path_of(row), by="bob")) == 404, row


def test_users_do_not_administer_the_registry(app: World) -> None:
    rows = [row for row in OPERATIONS if row.path.startswith("/admin/")]
    assert rows
    for row in rows:
        assert row.needs is Needs.ADMINISTRATOR
        assert problem(app.call(row.method, path_of(row), by="alice")) == 403, row


def test_access_tokens_are_no_persons(app: World) -> None:
    wanted = {"name": "all", "scopes": ["repository:*:*", "account:*:*"]}
    made = app.call("POST", "/accounts/root/tokens", wanted, by="root")
    field = f"Bearer {made.json['token']}"
    for row in OPERATIONS:
        if row.needs in (Needs.PERSON, Needs.ADMINISTRATOR):
            answer = app.call(row.method, path_of(row), Authorization=field)
            assert problem(answer) == 403, row


# What other sites make browsers ask for.


@pytest.mark.parametrize(
    "fields",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:5000"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:5000.evil.example"},
    ],
)
def test_other_sites_change_nothing(app: World, fields: dict[str, str]) -> None:
    for row in CHANGES:
        answer = app.call(row.method, path_of(row), by="root", **fields)
        assert (problem(answer), "another site" in answer.json["detail"]) == (403, True), row


@pytest.mark.parametrize(
    "fields", [{"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://127.0.0.1:5000"}]
)
def test_our_own_pages_may(app: World, fields: dict[str, str]) -> None:
    body = {"new_repositories_public": True}
    answer = app.call("PATCH", "/account", body, by="alice", **fields)
    assert answer.status == 200, answer


# Cookies.


@pytest.mark.parametrize(
    "field",
    [
        "{}",
        "other=1; {}",
        "o[t]her=<b>; {}; theme=dark",
        '  broken ; ="; {}',
        "xopenregistry-session=bad; {}",
        "{}; openregistry-session=later",
    ],
)
def test_other_cookies_hide_no_session(world: World, field: str) -> None:
    answer = world.call("POST", "/session", {"name": "alice", "password": PASSWORD})
    cookie = answer.headers["Set-Cookie"].partition(";")[0]
    assert world.call("GET", "/session", Cookie=field.format(cookie)).status == 200


@pytest.mark.parametrize(
    "field", ["", "openregistry-session", "openregistry-session=", "openregistry-session=x;", ";=;"]
)
def test_cookies_of_no_session(world: World, field: str) -> None:
    assert problem(world.call("GET", "/session", Cookie=field)) == 401


def test_over_tls_a_cookie_is_bound_to_the_host(world: World) -> None:
    answer = world.call("POST", "/session", {"name": "alice", "password": PASSWORD})
    value = answer.headers["Set-Cookie"].partition(";")[0].partition("=")[2]
    for name, status in (("__Host-openregistry-session", 200), ("openregistry-session", 401)):
        request = Request(
            "GET", f"{PREFIX}/session", headers=Headers({"Cookie": f"{name}={value}"}), secure=True
        )
        response = operations.answer(world.context, request)
        assert response.status == status
        assert "max-age=" in Headers(list(response.headers))["Strict-Transport-Security"]


# Methods and paths.


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/accounts", {"POST"}),
        ("/accounts/alice", {"GET", "HEAD"}),
        ("/account", {"PATCH", "DELETE"}),
        ("/passkeys/registration-options", {"POST"}),
        ("/passkeys/x", {"PATCH", "DELETE"}),
        ("/repositories/alice/app", {"GET", "HEAD", "PATCH", "DELETE"}),
        ("/repositories/alice/app/-/grants", {"GET", "HEAD"}),
        ("/repositories/alice/app/-/grants/bob", {"PUT", "DELETE"}),
        ("/repositories/alice/app/-/rename", {"POST"}),
    ],
)
@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"]
)
def test_a_path_names_all_its_methods(
    world: World, path: str, allowed: set[str], method: str
) -> None:
    answer = world.call(method, path, by="root")
    if method in allowed:
        assert answer.status != 405
        return
    assert answer.status == 405
    assert set(answer.headers["Allow"].split(", ")) == allowed
    if method != "HEAD":
        problem(answer)


def test_head_is_get_without_a_body(app: World) -> None:
    for row in OPERATIONS:
        if row.method == "GET":
            got = app.call("GET", path_of(row), by="alice")
            head = app.call("HEAD", path_of(row), by="alice")
            assert (head.status, head.body) == (got.status, b"")
            assert head.headers.get("Content-Type") == got.headers.get("Content-Type")


def test_slashes_of_repositories_may_be_encoded(app: World) -> None:
    for path in (
        "/repositories/alice/app",
        "/repositories/alice%2Fapp",
        "/repositories/alice%2fapp",
    ):
        assert app.call("GET", path, by="alice").json["name"] == "alice/app"
    path = f"/repositories/{quote('alice/app', safe='')}/-/grants/bob"
    assert app.call("PUT", path, {"role": "read"}, by="alice").status == 200


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "//", "/nothing", "/accounts/", "/accounts//", "/accounts/alice/",
        "//accounts/alice",
        "/accounts/alice%2Faudit%2F", "/accounts/a%00b", "/accounts/../session", "/./session",
        "/repositories/", "/repositories/alice/app/-/", "/repositories/alice/app/-/nothing",
        "/repositories/-/grants", "/repositories/alice/app/", "/repositories/alice//app",
        "/repositories/alice/app/-/grants/bob/-/grants", "/session%0A", "/sessions/x/y",
    ],
)  # fmt: skip
def test_paths_at_which_there_is_nothing(app: World, path: str) -> None:
    assert problem(app.call("GET", path, by="alice")) == 404


@pytest.mark.parametrize("path", ["/api", "/api/", "/api/v1", "/api/v2/accounts"])
def test_paths_below_api_that_are_none_of_it(world: World, path: str) -> None:
    assert problem(world.client.request("GET", path)) == 404
    assert problem(world.client.request("POST", path, b"{}")) == 404


# Bodies and queries.


@pytest.mark.parametrize(
    ("body", "fields", "status"),
    [
        (b"", {}, 400),
        (b"{", {}, 400),
        (b'{"name": "\xff"}', {}, 400),
        (b'{"name": "\\ud800"}', {}, 400),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, {}, 422),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{}", {"Content-Type": ""}, 415),
        (b"name=acme", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b'{"name": "' + b"a" * LARGEST_BODY + b'"}', {}, 413),
        (b"{}", {}, 422),
        (b"[]", {}, 422),
        (b'{"name": 1}', {}, 422),
        (b'{"name": "a\\u0000"}', {}, 422),
        (b'{"name": "acme"}', {"Content-Type": "Application/JSON; charset=utf-8"}, 201),
        (b'{"name": "acme", "more": 1}', {}, 422),
    ],
)
def test_bodies(world: World, body: bytes, fields: dict[str, str], status: int) -> None:
    headers = {
        "Authorization": basic("alice", PASSWORD), "Content-Type": "application/json", **fields,
    }  # fmt: skip
    answer = world.client.request("POST", f"{PREFIX}/organisations", body, headers)
    assert (answer.status if status == 201 else problem(answer)) == status


def test_a_text_may_have_what_looks_like_an_escaped_nul(world: World) -> None:
    description = r"\u0000 and \\u0000"
    made = {"name": "alice/app", "description": description}
    assert world.call("POST", "/repositories", made, by="alice").json["description"] == description


def test_a_problem_names_the_field(world: World) -> None:
    for body, field in (
        ({"name": 1}, "name"),
        ({}, ""),
        ({"name": "\0"}, "name"),
        ({"name": "UPPER"}, "name"),
    ):
        answer = world.call("POST", "/organisations", body, by="alice")
        assert problem(answer) == 422
        assert [each["field"] for each in answer.json.get("errors", [])] == ([field] * bool(field))
    answer = world.call("GET", "/repositories?limit=0", by="alice")
    assert [each["field"] for each in answer.json["errors"]] == ["limit"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "limit=1e400", "after=%00", "search=%00"]
)
def test_queries_that_are_wrong(world: World, query: str) -> None:
    assert problem(world.call("GET", f"/repositories?{query}")) == 422


# Errors that are nobody's in particular.


def test_too_many_failures(world: World) -> None:
    wrong = {"name": "alice", "password": "wrong"}
    answers = [world.call("POST", "/session", wrong) for _ in range(12)]
    assert problem(answers[0]) == 401
    assert problem(answers[-1]) == 429
    assert int(answers[-1].headers["Retry-After"]) > 0
    assert problem(world.call("GET", "/session", by="alice")) == 429


def test_postgres_is_down(world: World) -> None:
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/none"
    context = build_context(replace(world.context.settings, database_url=url))
    client = CoreClient(context)
    try:
        answer = client.request("GET", f"{PREFIX}/accounts/alice")
        assert problem(answer) == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert client.request("GET", f"{PREFIX}/openapi.json").status == 200
    finally:
        context.database.close()


def test_a_fault_tells_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("chalicelib.metadata.accounts.by_name", fail)
    answer = world.call("GET", "/accounts/alice")
    assert problem(answer) == 500
    assert b"secret" not in answer.body


def test_what_the_harness_refuses(serve: Callable[..., Registry]) -> None:
    """Before a function is asked, or instead of it."""
    registry = serve(OPENREGISTRY_ACCESS="accounts")
    client = HTTPClient(registry.host)
    assert problem(client.request("GET", "/api/v1/nothing")) == 404
    assert problem(client.request("OPTIONS", "/api/v1/session")) == 405
    head = client.request("HEAD", "/api/v1/openapi.json")
    assert (head.status, int(head.headers["Content-Length"]) > 10_000) == (200, True)
    json = {"Content-Type": "application/json"}
    assert problem(client.request("POST", "/api/v1/session", b"x" * (5 << 20), json)) == 413
    large = "Expect: 100-continue\r\nContent-Length: 99999999\r\n"
    for lines, status in (
        ("POST /api/v1/session HTTP/1.1\r\nHost: x\r\n" + large, 413),
        ("GET /api/v1/session HTTP/1.1\r\n", 400),
        ("POST /api/v1/session HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n", 501),
    ):  # fmt: skip
        assert problem(_sent(registry, lines)) == status


def _sent(registry: Registry, lines: str) -> Answer:
    host, _, port = registry.host.partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(lines.encode() + b"\r\n")
        response = HTTPResponse(connection)
        response.begin()
        return Answer(response.status, response.getheaders(), response.read())


def test_a_page_begins_after_something_of_the_listed_kind(app: World) -> None:
    """A newline at its end is no part of a number, a UUID or a digest."""
    nouns = ("immutable-tags", "webhooks", "triggers", "manifest-pulls")
    values = ("1", "00000000-0000-0000-0000-000000000000", "sha256:" + "0" * 64)
    for noun in nouns:
        path = f"/repositories/alice/app/-/{noun}"
        answers = [app.call("GET", f"{path}?after={value}", by="alice") for value in values]
        assert sorted(answer.status for answer in answers) == [200, 422, 422], noun
        for value in values:
            answer = app.call("GET", f"{path}?after={value}%0A", by="alice")
            assert (problem(answer), answer.json["errors"][0]["field"]) == (422, "after")
