"""Signing in by GitHub and by an OpenID provider, in a browser that the tests play."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chalicelib.api import operations
from chalicelib.http import Request
from chalicelib.identity import external
from chalicelib.identity.external import Person
from chalicelib.identity.users import Refused
from chalicelib.metadata import audit, rates
from tests.api.conftest import PASSWORD, World, opened
from tests.client import Answer
from tests.identity.doubles.browser import query, redirected
from tests.identity.doubles.github import Answer as GitHubAnswer
from tests.identity.doubles.github import GitHubDouble, User
from tests.identity.doubles.openid import OpenIDProvider
from tests.servers import Postgres

HOST = "http://registry.test:5000"
COOKIE = "openregistry-sign-in"
SESSION = "openregistry-session"
CALLBACK = f"{HOST}/api/v1/sign-in/{{}}/callback"
MONA = User(583231, "Mona", ({"email": "mona@home.example", "primary": True, "verified": True},))


class Browser:
    """Keeps cookies as browsers do, and goes where it is sent."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.cookies: dict[str, str] = {}

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        answer = self.world.call(method, path, body, **headers)
        for name, field in answer.fields:
            if name == "Set-Cookie":
                parts = field.split("; ")
                assert {"Path=/", "HttpOnly", "SameSite=Lax"} < set(parts)
                key, _, value = parts[0].partition("=")
                if "Max-Age=0" in parts:
                    self.cookies.pop(key, None)
                else:
                    self.cookies[key] = value
        return answer

    def begin(self, provider: str) -> str:
        """Where the provider sends the browser back to, as a path of the API."""
        answer = self.call("GET", f"/sign-in/{provider}")
        assert answer.status == 302, answer
        return self.granted(answer.location, provider)

    def granted(self, location: str, provider: str) -> str:
        back = redirected(location)
        assert back.startswith(CALLBACK.format(provider) + "?")
        return back.removeprefix(f"{HOST}/api/v1")

    def sign_in(self, provider: str) -> str:
        """Where the browser comes out at the end."""
        return self.come_back(self.begin(provider))

    def come_back(self, path: str) -> str:
        answer = self.call("GET", path)
        assert answer.status == 302
        assert answer.body == b""
        return answer.location

    def link(self, provider: str) -> str:
        answer = self.call("POST", f"/sign-in/{provider}/link")
        assert answer.status == 200, answer
        return self.come_back(self.granted(answer.json["location"], provider))

    @property
    def name(self) -> str | None:
        """Who is signed in."""
        answer = self.call("GET", "/session")
        return answer.json["name"] if answer.status == 200 else None


@pytest.fixture
def github() -> Iterator[GitHubDouble]:
    with GitHubDouble() as double:
        double.user = MONA
        yield double


@pytest.fixture
def openid() -> Iterator[OpenIDProvider]:
    with OpenIDProvider() as provider:
        provider.user |= {
            "preferred_username": "mona",
            "email": "mona@work.example",
            "email_verified": True,
        }
        yield provider


@pytest.fixture(params=["open"])
def world(
    request: pytest.FixtureRequest,
    postgres: Postgres,
    tmp_path: Path,
    github: GitHubDouble,
    openid: OpenIDProvider,
) -> Iterator[World]:
    app = github.register("Iv1.ours", CALLBACK.format("github"))
    client = openid.register("ours", CALLBACK.format("openid"))
    with opened(
        postgres,
        tmp_path,
        OPENREGISTRY_PUBLIC_URL=HOST,
        OPENREGISTRY_SIGN_UP=request.param,
        OPENREGISTRY_PRIVATE_ISSUERS=f"{github.url},{openid.origin}",
        OPENREGISTRY_GITHUB_URL=github.url,
        OPENREGISTRY_GITHUB_API_URL=github.api_url,
        OPENREGISTRY_GITHUB_CLIENT_ID=app.client_id,
        OPENREGISTRY_GITHUB_CLIENT_SECRET=app.client_secret,
        OPENREGISTRY_OIDC_ISSUER=openid.issuer,
        OPENREGISTRY_OIDC_CLIENT_ID=client.id,
        OPENREGISTRY_OIDC_CLIENT_SECRET=client.secret,
    ) as registry:
        yield registry


closed = pytest.mark.parametrize("world", ["invitation", "closed"], indirect=True)


@pytest.fixture
def browser(world: World) -> Browser:
    return Browser(world)


def alices_browser(world: World) -> Browser:
    browser = Browser(world)
    answer = browser.call("POST", "/session", {"name": "alice", "password": PASSWORD})
    assert answer.status == 200
    return browser


def events(world: World) -> list[str]:
    return [each.event for each in audit.page(world.context.database, 50)][::-1][3:]


HOME = f"{HOST}/account"


def error(code: str) -> str:
    return f"{HOME}?error={code}"


@pytest.mark.parametrize(
    ("provider", "email"), [("github", "mona@home.example"), ("openid", "mona@work.example")]
)
def test_the_first_sign_in_makes_an_account_and_the_next_one_finds_it(
    world: World, browser: Browser, provider: str, email: str
) -> None:
    assert browser.call("GET", "/sign-in").json == {"providers": ["github", "openid"]}
    assert browser.sign_in(provider) == HOME
    assert set(browser.cookies) == {SESSION}
    assert browser.call("GET", "/session").json == {
        "name": "mona",
        "email": email,
        "email_verified": True,
        "administrator": False,
    }
    [session] = browser.call("GET", "/sessions").json["items"]
    assert session["method"] == provider
    [identity] = browser.call("GET", "/account/identities").json["items"]
    assert identity["provider"] == provider
    again = Browser(world)
    assert again.sign_in(provider) == HOME
    assert again.name == "mona"
    assert events(world) == ["user.create", "identity.link", "session.begin", "session.begin"]


def test_the_address_is_known_from_then_on(
    world: World, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bytes] = []
    monkeypatch.setattr(rates, "keep", lambda _runner, key, _seconds: kept.append(key))
    assert browser.sign_in("github") == HOME
    assert len(kept) == 2  # by the name, and by the email


@closed
def test_where_sign_up_is_not_open_a_link_is_needed(
    world: World, browser: Browser, github: GitHubDouble
) -> None:
    assert browser.sign_in("github") == error("not-linked")
    assert browser.name is None
    alice = alices_browser(world)
    assert alice.link("github") == HOME
    assert browser.sign_in("github") == HOME
    assert browser.name == "alice"


@pytest.mark.parametrize("provider", ["github", "openid"])
def test_an_email_links_nobody(
    world: World, browser: Browser, github: GitHubDouble, openid: OpenIDProvider, provider: str
) -> None:
    taken = "ALICE@example.org"
    github.user = User(7, "mallory", ({"email": taken, "primary": True, "verified": True},))
    openid.user |= {"preferred_username": "mallory", "email": taken}
    assert browser.sign_in(provider) == error("email")
    assert browser.name is None
    assert events(world) == []


def test_an_unverified_email_makes_no_account(
    world: World, browser: Browser, openid: OpenIDProvider
) -> None:
    openid.user |= {"email_verified": False}
    assert browser.sign_in("openid") == error("no-email")
    openid.user |= {"email_verified": True, "email": "no address"}
    assert browser.sign_in("openid") == error("email")


def test_a_name_that_cannot_be_had(world: World, browser: Browser, openid: OpenIDProvider) -> None:
    for name in ("alice", "a b", "mona@example.org", ""):
        openid.user |= {"preferred_username": name}
        assert browser.sign_in("openid") == error("name")
    assert events(world) == []


def test_an_account_is_linked_by_who_is_signed_in(world: World) -> None:
    alice = alices_browser(world)
    assert alice.link("github") == HOME
    assert alice.link("openid") == HOME
    assert alice.name == "alice"
    listed = alice.call("GET", "/account/identities").json["items"]
    assert [each["provider"] for each in listed] == ["github", "openid"]
    assert [each["subject"] for each in listed] == ["583231", "24400320"]
    # Once more changes nothing.
    assert alice.link("github") == HOME
    assert events(world).count("identity.link") == 2

    other = Browser(world)
    assert other.sign_in("openid") == HOME
    assert other.name == "alice"
    bob = world.call("GET", "/account/identities", by="bob")
    assert bob.json["items"] == []


def test_nobody_is_linked_to_two_accounts(world: World, browser: Browser) -> None:
    assert browser.sign_in("github") == HOME
    alice = alices_browser(world)
    assert alice.link("github") == error("linked-elsewhere")
    assert alice.call("GET", "/account/identities").json["items"] == []


def test_linking_ends_with_the_session_that_began_it(world: World, browser: Browser) -> None:
    alice = alices_browser(world)
    answer = alice.call("POST", "/sign-in/github/link")
    back = alice.granted(answer.json["location"], "github")
    # Somebody else has signed in in this browser meanwhile.
    browser.sign_in("openid")
    alice.cookies[SESSION] = browser.cookies[SESSION]
    assert alice.come_back(back) == error("signed-out")
    assert alice.name == "mona"
    assert len(browser.call("GET", "/account/identities").json["items"]) == 1


def test_another_site_cannot_begin_to_link(world: World) -> None:
    alice = alices_browser(world)
    for headers in ({"Sec_Fetch_Site": "cross-site"}, {"Origin": "https://evil.example"}):
        answer = alice.call("POST", "/sign-in/github/link", **headers)
        assert answer.status == 403
        assert COOKIE not in alice.cookies
    # And what a GET begins only ever signs in.
    other = Browser(world)
    other.cookies = dict(alice.cookies)
    assert other.sign_in("github") == HOME
    assert other.name == "mona"


def test_another_browser_cannot_finish_a_sign_in(world: World, browser: Browser) -> None:
    """Nobody is signed in as a stranger by a link that they follow."""
    back = browser.begin("github")
    victim = Browser(world)
    assert victim.come_back(back) == error("begin-again")
    assert victim.name is None
    # Nor with a cookie of a sign-in of their own.
    back = browser.begin("github")
    victim.call("GET", "/sign-in/github")
    assert COOKIE in victim.cookies
    assert victim.come_back(back) == error("begin-again")
    assert victim.name is None


def test_a_state_is_for_one_use_of_one_provider(
    world: World, browser: Browser, openid: OpenIDProvider
) -> None:
    back = browser.begin("github")
    cookie = browser.cookies[COOKIE]
    assert browser.come_back(back) == HOME
    again = Browser(world)
    again.cookies[COOKIE] = cookie
    assert again.come_back(back) == error("begin-again")

    back = again.begin("github")
    assert again.come_back(back.replace("github", "openid")) == error("begin-again")
    assert not openid.fetches
    for forged in ("", "?state=", "?state=a&code=b", "?code=b"):
        again.begin("github")
        assert again.come_back(f"/sign-in/github/callback{forged}") == error("begin-again")


def test_a_sign_in_takes_ten_minutes_at_most(world: World, browser: Browser) -> None:
    back = browser.begin("openid")
    world.context.database.run(
        "UPDATE one_time_secrets SET expires_at = expires_at - interval '600 seconds'"
    )
    assert browser.come_back(back) == error("begin-again")


def test_what_the_browser_brings_is_bound_to_it_at_the_provider(
    world: World, browser: Browser, openid: OpenIDProvider
) -> None:
    """A code that was given to somebody else does not fit: PKCE."""
    mine, theirs = query(browser.begin("openid")), query(Browser(world).begin("openid"))
    injected = f"/sign-in/openid/callback?state={mine['state']}&code={theirs['code']}"
    assert browser.come_back(injected) == error("begin-again")
    openid.claims = {"nonce": "another"}
    assert browser.sign_in("openid") == error("begin-again")
    openid.claims = {"aud": "another"}
    assert browser.sign_in("openid") == error("begin-again")


def test_a_person_presses_cancel(world: World, browser: Browser, github: GitHubDouble) -> None:
    github.denies = True
    assert browser.sign_in("github") == error("cancelled")
    assert COOKIE not in browser.cookies


def test_a_provider_is_out_of_order(
    world: World, browser: Browser, github: GitHubDouble, openid: OpenIDProvider
) -> None:
    back = browser.begin("github")
    github.trouble = GitHubAnswer(500, {})
    assert browser.come_back(back) == error("unavailable")
    openid.described = {"issuer": "https://another.example"}
    answer = browser.call("GET", "/sign-in/openid")
    assert (answer.status, answer.location) == (302, error("unavailable"))


@pytest.mark.parametrize("path", ["/sign-in/gitlab", "/sign-in/gitlab/callback?state=a&code=b"])
def test_an_unknown_provider(world: World, path: str) -> None:
    assert world.call("GET", path).status == 404


def test_a_provider_that_is_not_set(postgres: Postgres, tmp_path: Path) -> None:
    with opened(postgres, tmp_path) as registry:
        assert registry.call("GET", "/sign-in").json == {"providers": []}
        assert registry.call("GET", "/sign-in/github").status == 404
        assert registry.call("POST", "/sign-in/openid/link", by="alice").status == 404


def test_nothing_in_a_request_says_where_the_browser_comes_out(
    world: World, browser: Browser
) -> None:
    evil = "https://evil.example"
    parameters = f"redirect_uri={evil}&next={evil}&return_to={evil}"
    answer = browser.call(
        "GET",
        f"/sign-in/github?{parameters}",
        Host="evil.example",
        X_Forwarded_Host="evil.example",
    )
    assert query(answer.location)["redirect_uri"] == CALLBACK.format("github")
    back = browser.granted(answer.location, "github")
    answer = browser.call("GET", f"{back}&{parameters}", Host="evil.example")
    assert answer.location == HOME


def test_unlinking(world: World) -> None:
    alice = alices_browser(world)
    alice.link("github")
    elsewhere = Browser(world)
    elsewhere.sign_in("github")
    assert elsewhere.name == "alice"
    [identity] = alice.call("GET", "/account/identities").json["items"]
    path = f"/account/identities/{identity['id']}"
    assert world.call("DELETE", path, by="bob").status == 404
    assert world.call("DELETE", "/account/identities/x", by="alice").status == 404
    assert alice.call("DELETE", path).status == 204
    assert alice.name == "alice"
    assert elsewhere.name is None
    assert "identity.unlink" in events(world)
    assert elsewhere.sign_in("github") == HOME
    assert elsewhere.name == "mona"


def test_the_last_way_to_sign_in_stays(world: World, browser: Browser) -> None:
    browser.sign_in("github")
    browser.link("openid")
    first, second = browser.call("GET", "/account/identities").json["items"]
    assert browser.call("DELETE", f"/account/identities/{first['id']}").status == 204
    answer = browser.call("DELETE", f"/account/identities/{second['id']}")
    assert answer.status == 409
    assert len(browser.call("GET", "/account/identities").json["items"]) == 1


def test_the_last_two_ways_are_not_removed_at_once(world: World, browser: Browser) -> None:
    browser.sign_in("github")
    browser.link("openid")
    links = browser.call("GET", "/account/identities").json["items"]
    account = world.context.database.run("SELECT id FROM accounts WHERE name = 'mona'")[0][0]
    barrier = threading.Barrier(2)

    def unlink(identity: dict[str, str]) -> bool:
        barrier.wait()
        database = world.context.database
        try:
            return external.unlink(database, account, identity["id"], None, "https://github.com")
        except Refused:
            return False

    with ThreadPoolExecutor() as pool:
        assert sorted(pool.map(unlink, links)) == [False, True]


def test_of_two_first_sign_ins_at_once_one_makes_the_account(world: World) -> None:
    person = Person("https://issuer.example", "1", "twin", "twin@example.org")
    barrier = threading.Barrier(2)

    def sign_up(_: int) -> int | None:
        barrier.wait()
        try:
            return external.sign_up(world.context.database, person)
        except Refused:
            return None

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(sign_up, range(2))).count(None) == 1


def test_a_suspended_account_is_not_signed_in(world: World, browser: Browser) -> None:
    browser.sign_in("github")
    world.context.database.run("UPDATE accounts SET suspended_at = now() WHERE name = 'mona'")
    assert browser.sign_in("github") == error("name")
    assert browser.name is None


def test_cookies_are_bound_to_the_host_by_tls(world: World) -> None:
    request = Request("GET", "/api/v1/sign-in/github")
    response = operations.answer(world.context, replace(request, secure=True))
    [field] = [value for name, value in response.headers if name == "Set-Cookie"]
    assert field.startswith(f"__Host-{COOKIE}=")
    assert field.endswith("; Secure")
