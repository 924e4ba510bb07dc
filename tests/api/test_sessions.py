"""Browsers that are signed in: cookies, other sites, and what strangers send instead."""

import json
import re
from dataclasses import replace
from http.cookies import SimpleCookie
from urllib.parse import urlsplit

import pytest

from chalicelib import endpoints
from chalicelib.http import Headers, Query, Request, Response
from chalicelib.identity import users
from chalicelib.identity.open import Open
from chalicelib.metadata import sessions
from tests.api.conftest import PASSWORD, World, basic
from tests.api.people import COOKIE, Browser, events, with_settings
from tests.client import Answer

SIGN_IN = {"name": "alice", "password": PASSWORD}


def set_cookie(answer: Answer) -> str:
    """The one cookie that an answer sets."""
    [value] = [value for name, value in answer.fields if name == "Set-Cookie"]
    return value


def by_tls(world: World, method: str, path: str, body: bytes = b"", **headers: str) -> Response:
    """A request that came by TLS."""
    fields = Headers({"Content-Type": "application/json", **headers})
    url = urlsplit(f"/api/v1{path}")
    request = Request(method, url.path, Query(url.query), fields, body, secure=True)
    return endpoints.answer(world.context, request)


def test_sign_in_and_out(world: World) -> None:
    browser = Browser(world)
    answer = browser.call("POST", "/session", SIGN_IN)
    assert answer.json == {
        "name": "alice",
        "email": "alice@example.org",
        "email_verified": True,
        "administrator": False,
    }
    assert browser.call("GET", "/session").json == answer.json
    cookie = browser.cookie
    [session] = browser.call("GET", "/sessions").json["items"]
    assert (session["method"], session["current"]) == ("password", True)
    assert browser.call("DELETE", "/session").status == 204
    assert browser.cookie == ""
    assert not Browser(world, cookie).is_signed_in()
    assert events(world, world.ids["alice"])[-2:] == ["session.begin", "session.end"]


@pytest.mark.parametrize("login", ["alice", "alice@example.org", "ALICE@example.ORG"])
def test_by_name_or_email(world: World, login: str) -> None:
    assert Browser(world).sign_in(login, PASSWORD).json["name"] == "alice"


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("alice", "wrong"),
        ("alice", PASSWORD + "\n"),
        ("alice", PASSWORD[:-1]),
        ("nobody", PASSWORD),
        ("Alice", PASSWORD),
        ("nobody@example.org", PASSWORD),
        ("", PASSWORD),
    ],
)
def test_wrong_credentials(world: World, name: str, password: str) -> None:
    answer = Browser(world).sign_in(name, password)
    assert answer.status == (401 if name else 422)
    if name:
        assert answer.json["detail"] == "The name or the password is wrong."
    assert "Set-Cookie" not in answer.headers


def test_what_the_cookie_may_do(world: World) -> None:
    plain = set_cookie(world.call("POST", "/session", SIGN_IN))
    assert re.fullmatch(
        COOKIE + r"=[\w-]{43}; Path=/; Max-Age=1209600; HttpOnly; SameSite=Lax", plain
    )
    response = by_tls(world, "POST", "/session", json.dumps(SIGN_IN).encode())
    secure = dict(response.headers)["Set-Cookie"]
    assert re.fullmatch(
        f"__Host-{COOKIE}" + r"=[\w-]{43}; Path=/; Max-Age=1209600; HttpOnly; SameSite=Lax; Secure",
        secure,
    )
    assert "Domain" not in secure
    assert dict(response.headers)["Strict-Transport-Security"]
    # By TLS the other cookie, which a neighbouring host could have set, is not looked at.
    value = next(iter(SimpleCookie(plain).values())).value
    assert by_tls(world, "GET", "/session", Cookie=f"{COOKIE}={value}").status == 401
    assert by_tls(world, "GET", "/session", Cookie=f"__Host-{COOKIE}={value}").status == 200


def test_a_cookie_that_was_there_before_is_not_signed_in(world: World) -> None:
    """Session fixation: who plants a cookie in a browser does not get what signs in there."""
    planted = "A" * 43
    browser = Browser(world, planted)
    browser.call("POST", "/session", SIGN_IN)
    assert browser.cookie != planted
    assert not Browser(world, planted).is_signed_in()
    # Not one's own either: the attacker's session ends when its browser signs in as another.
    attacker = Browser(world)
    attacker.sign_in("bob", PASSWORD)
    victim = Browser(world, attacker.cookie)
    victim.call("POST", "/session", SIGN_IN)
    assert victim.call("GET", "/session").json["name"] == "alice"
    assert not attacker.is_signed_in()


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Sec_Fetch_Site": "same-origin"}, 202),
        ({"Sec_Fetch_Site": "none"}, 202),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:5000"}, 202),
        ({"Origin": "http://localhost:5000.evil.example"}, 403),
        ({"Origin": "https://localhost:5000"}, 403),
        ({"Origin": "http://localhost:5000", "Sec_Fetch_Site": "cross-site"}, 403),
        ({}, 202),
    ],
)
def test_requests_that_other_sites_have_made(
    world: World, fields: dict[str, str], status: int
) -> None:
    browser = Browser(world)
    browser.call("POST", "/session", SIGN_IN)
    body = {"email": "new@example.org", "password": PASSWORD}
    headers = {"Host": "localhost:5000", **fields}
    assert browser.call("POST", "/account/email", body, **headers).status == status
    assert browser.call("GET", "/session", **headers).status == 200
    signed_in = Browser(world).call("POST", "/session", SIGN_IN, **headers)
    assert signed_in.status == (200 if status == 202 else 403)
    assert ("Set-Cookie" in signed_in.headers) == (status == 202)
    assert browser.call("DELETE", "/session", **headers).status == (204 if status == 202 else 403)


def test_a_form_of_another_site(world: World) -> None:
    """What a page can send without a question by the browser first, an old browser too."""
    for media_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = world.client.request(
            "POST",
            "/api/v1/session",
            b'{"name":"alice","password":"x"}',
            {"Content-Type": media_type},
        )
        assert answer.status == 415


@pytest.mark.parametrize(
    "cookie",
    ["", "x", "A" * 43, "ü", "' OR 1=1", '"', "a" * 5000, "=;;=", f'{COOKIE}="\\377"; a=b'],
)
def test_cookies_that_are_none(world: World, cookie: str) -> None:
    for field in (cookie, f"{COOKIE}={cookie}"):
        assert world.call("GET", "/session", Cookie=field).status == 401


def test_sessions_end_by_themselves(world: World) -> None:
    browser = Browser(world)
    browser.call("POST", "/session", SIGN_IN)
    database = world.context.database
    database.run(
        "UPDATE sessions SET used_at = now() - interval '11 minutes',"
        " expires_at = now() + interval '1 minute'"
    )
    assert browser.is_signed_in()
    [[days]] = database.run("SELECT extract(day FROM expires_at - now())::int FROM sessions")
    assert days in (13, 14)
    database.run("UPDATE sessions SET expires_at = now() - interval '1 second'")
    assert not browser.is_signed_in()


def test_cookies_are_kept_hashed(world: World) -> None:
    browser = Browser(world)
    browser.call("POST", "/session", SIGN_IN)
    rows = world.context.database.run("SELECT hash, id, method FROM sessions")
    assert browser.cookie not in str(rows)


def test_another_browser_is_signed_out(world: World) -> None:
    here, there, bob = Browser(world), Browser(world), Browser(world)
    for browser, name in ((here, "alice"), (there, "alice"), (bob, "bob")):
        browser.sign_in(name, PASSWORD)
    found = here.call("GET", "/sessions").json["items"]
    [other] = [each["id"] for each in found if not each["current"]]
    assert len(found) == 2
    # Not by somebody else, whoever knows its id.
    assert bob.call("DELETE", f"/sessions/{other}").status == 404
    assert there.is_signed_in()
    assert here.call("DELETE", f"/sessions/{other}").status == 204
    assert not there.is_signed_in()
    assert here.is_signed_in()
    for none in (other, "x", "0", "' OR 1=1"):
        assert here.call("DELETE", f"/sessions/{none}").status == 404


@pytest.mark.parametrize("changed", [False, True])
def test_a_lock_out_holds_for_the_right_password_too(world: World, changed: bool) -> None:
    """Even for one that this process remembers: else who may guess no more would still learn it."""
    assert Browser(world).sign_in("alice", PASSWORD).status == 200
    world.context.database.run("DELETE FROM rates")  # what makes the address a known one
    statuses = [Browser(world).sign_in("alice", f"wrong {number}").status for number in range(11)]
    assert statuses == [401] * 10 + [429]
    if changed:
        users.suspend(world.context.database, world.ids["bob"], suspended=True, by="")
    answer = Browser(world).sign_in("alice", PASSWORD)
    assert answer.status == 429
    assert int(answer.headers["Retry-After"]) > 0
    # Elsewhere the owner goes on.
    request = Request(
        "GET",
        "/api/v1/session",
        headers=Headers({"Authorization": basic("alice", PASSWORD)}),
        client="192.0.2.7",
    )
    assert endpoints.answer(world.context, request).status == 200


def test_a_registry_with_no_accounts(world: World) -> None:
    context = replace(world.context, access=Open(world.context.database))
    answer = replace(world, context=context, client=type(world.client)(context)).call(
        "GET", "/session"
    )
    assert (answer.status, answer.headers["Content-Type"]) == (404, "application/problem+json")


def test_answers_are_for_no_cache_and_no_frame(world: World) -> None:
    for answer in (world.call("GET", "/session"), world.call("POST", "/session", SIGN_IN)):
        assert answer.headers["Cache-Control"] == "no-store"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_session_says_nothing_to_the_registry_itself(world: World) -> None:
    """Cookies are for the API alone: no page can have a browser push."""
    browser = Browser(world)
    browser.call("POST", "/session", SIGN_IN)
    fields = {"Cookie": f"{COOKIE}={browser.cookie}"}
    assert world.client.request("GET", "/v2/", b"", fields).status == 401
    assert sessions.find(world.context.database, browser.cookie)
    path = "/v2/alice/hello/blobs/uploads/"
    assert world.client.request("POST", path, b"", fields).status == 401


def test_a_host_behind_a_public_url(world: World) -> None:
    world = with_settings(world, public_url="https://registry.example")
    headers = {"Host": "evil.example", "Origin": "http://evil.example"}
    assert world.call("POST", "/session", SIGN_IN, **headers).status == 403
    headers["Origin"] = "https://registry.example"
    assert world.call("POST", "/session", SIGN_IN, **headers).status == 200
