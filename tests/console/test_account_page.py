"""The account page in a real browser, Debian's Chromium, with its virtual authenticator."""

import json
import threading
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, cast

import pytest
from playwright.sync_api import Browser, CDPSession, Page, expect, sync_playwright

from chalicelib import console
from chalicelib.context import Context
from chalicelib.http import Headers, Request
from chalicelib.identity import passkeys
from chalicelib.identity.passkeys import PasskeyRefused, RelyingParty, relying_party
from chalicelib.metadata.database import Database
from chalicelib.metadata.migrate import migrate
from chalicelib.settings import Settings
from tests.conftest import need
from tests.servers import Postgres

CHROMIUM = "/usr/bin/chromium"
PASSWORD = "correct:horse ünd battery"
CONTEXT = cast(Context, SimpleNamespace(head_by_redirect=False))
FILES = {
    "/account": console.page,
    "/account.js": console.script,
    "/account.css": console.style,
}


LINKS = {
    "POST accounts",
    "POST email-verifications",
    "POST password-resets",
    "POST first-administrator",
}


class Problem(Exception):
    """An answer that is none of success."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


def challenge(found: tuple[dict[str, Any], str]) -> dict[str, Any]:
    return {"options": found[0], "state": found[1]}


class Server(ThreadingHTTPServer):
    """The page, and as much of the API as it speaks to, for one user, alice."""

    def __init__(self, database: Database) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.database = database
        [[self.alice]] = database.run(
            "INSERT INTO accounts (kind, name) VALUES ('user', 'alice') RETURNING id"
        )
        self.session: int | None = None
        self.url = f"http://localhost:{self.server_port}"
        self.asked: list[tuple[str, Any]] = []

    def call(self, method: str, path: str, host: str, body: Any) -> Any:
        us = relying_party(Settings(), host)
        endpoint = f"{method} {path.removeprefix('/api/v1/')}"
        self.asked.append((endpoint, body))
        match endpoint.split("/"):
            case ["POST session"]:
                if body != {"name": "alice", "password": PASSWORD}:
                    raise Problem(401, "The name or the password is wrong.")
                self.session = self.alice
            case ["DELETE session"]:
                self.session = None
            case ["POST session", "passkey-options"]:
                return challenge(passkeys.sign_in_options(self.database, us))
            case ["POST session", "passkey"]:
                self.session = passkeys.sign_in(
                    self.database, body["state"], body["credential"], us
                )
            case [first, *_] if first in LINKS:
                pass
            case rest if self.session is not None:
                return self.signed_in(rest, self.session, us, body)
            case _:
                raise Problem(401, "Sign in first.")
        return None

    def signed_in(self, endpoint: list[str], account: int, us: RelyingParty, body: Any) -> Any:
        match endpoint:
            case ["GET session"]:
                return {"name": "alice"}
            case ["GET passkeys"]:
                items = [each._asdict() for each in passkeys.listed(self.database, account)]
                return {"items": items}
            case ["POST passkeys", "registration-options"]:
                return challenge(passkeys.registration_options(self.database, account, "alice", us))
            case ["POST passkeys"]:
                made = passkeys.register(
                    self.database, account, body["state"], body["credential"], body["name"], us
                )
                return {"id": made.id}
            case ["DELETE passkeys", number]:
                passkeys.remove(self.database, account, number)
                return None
        raise Problem(404, "There is nothing at this path.")


class Handler(BaseHTTPRequestHandler):
    """Carries requests to the server's functions."""

    server: Server

    def do_GET(self) -> None:
        if self.path in FILES:
            request = Request("GET", self.path, headers=Headers(self.headers.items()))
            response = FILES[self.path](CONTEXT, request)
            assert isinstance(response.body, bytes)
            self.answer(response.status, dict(response.headers), response.body)
        else:
            self.call()

    def do_POST(self) -> None:
        self.call()

    def do_DELETE(self) -> None:
        self.call()

    def call(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.command != "GET":
            assert self.headers["Content-Type"] == "application/json"
        status, kind = 200, "application/json"
        try:
            found = self.server.call(
                self.command, self.path, self.headers["Host"], json.loads(text) if text else None
            )
        except Problem as problem:
            status, kind = problem.status, "application/problem+json"
            found = {"status": problem.status, "title": "No", "detail": str(problem)}
        except PasskeyRefused as refusal:
            status, kind = 403, "application/problem+json"
            found = {"status": 403, "title": "Refused", "detail": refusal.sentence}
        body = b"" if found is None else json.dumps(found, default=datetime.isoformat).encode()
        self.answer(status if body else 204, {"Content-Type": kind}, body)

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(postgres: Postgres) -> Iterator[Server]:
    url = postgres.new_database()
    migrate(url)
    database = Database(url)
    with Server(database) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    database.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    need(CHROMIUM, "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def errors() -> list[str]:
    """What the page's script, and what the page's policy forbade."""
    return []


@pytest.fixture
def page(browser: Browser, server: Server, errors: list[str]) -> Iterator[Page]:
    """A page that may have no errors; a problem of the API is none."""
    context = browser.new_context(base_url=server.url)
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console",
        lambda message: (
            None
            if message.type != "error" or message.text.startswith("Failed to load resource")
            else errors.append(message.text)
        ),
    )
    yield page
    context.close()
    assert errors == []


class Phone:
    """Chromium's virtual authenticator (WebDriver's, by the DevTools protocol)."""

    def __init__(self, page: Page) -> None:
        self.devtools: CDPSession = page.context.new_cdp_session(page)
        self.devtools.send("WebAuthn.enable")
        self.id = self.devtools.send(
            "WebAuthn.addVirtualAuthenticator",
            {
                "options": {
                    "protocol": "ctap2",
                    "transport": "internal",
                    "hasResidentKey": True,
                    "hasUserVerification": True,
                    "isUserVerified": True,
                    "automaticPresenceSimulation": True,
                }
            },
        )["authenticatorId"]

    def keys(self) -> list[dict[str, Any]]:
        found = self.devtools.send("WebAuthn.getCredentials", {"authenticatorId": self.id})
        return cast(list[dict[str, Any]], found["credentials"])

    def knows_user(self, known: bool) -> None:
        self.devtools.send(
            "WebAuthn.setUserVerified", {"authenticatorId": self.id, "isUserVerified": known}
        )

    def set_counter(self, count: int) -> None:
        [key] = self.keys()
        self.devtools.send("WebAuthn.clearCredentials", {"authenticatorId": self.id})
        self.devtools.send(
            "WebAuthn.addCredential",
            {"authenticatorId": self.id, "credential": {**key, "signCount": count}},
        )


@pytest.fixture
def phone(page: Page) -> Phone:
    return Phone(page)


def sign_in(page: Page, password: str = PASSWORD) -> None:
    page.goto("/account")
    form = page.locator("#sign-in")
    form.get_by_label("Name").fill("alice")
    form.get_by_label("Password").fill(password)
    form.get_by_role("button").click()


def add_passkey(page: Page, name: str) -> None:
    page.get_by_label("Name of the new passkey").fill(name)
    page.get_by_role("button", name="Add a passkey").click()


def use_passkey(page: Page) -> None:
    page.get_by_role("button", name="Sign in with a passkey").click()


def signed_in(page: Page) -> None:
    expect(page.get_by_role("heading", name="Signed in as alice")).to_be_visible()


def message(page: Page, text: str) -> None:
    expect(page.get_by_role("status")).to_contain_text(text)


def test_a_password(page: Page) -> None:
    sign_in(page, "wrong")
    message(page, "The name or the password is wrong.")
    sign_in(page)
    signed_in(page)
    page.reload()
    signed_in(page)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    expect(page.get_by_role("heading", name="Passkeys")).to_be_hidden()


def test_a_passkey_from_registration_to_removal(page: Page, phone: Phone) -> None:
    sign_in(page)
    add_passkey(page, "<b>My phone</b>")
    item = page.get_by_role("listitem")
    expect(item).to_contain_text("<b>My phone</b>added")
    expect(item).to_contain_text("not used yet")
    [key] = phone.keys()
    assert key["isResidentCredential"]
    assert key["rpId"] == "localhost"

    page.get_by_role("button", name="Sign out").click()
    use_passkey(page)
    signed_in(page)
    expect(item).to_contain_text(", used")

    add_passkey(page, "Again")
    message(page, "This device has a passkey for your account already.")

    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Remove <b>My phone</b>").click()
    message(page, "The passkey is removed.")
    expect(item).to_have_count(0)
    page.get_by_role("button", name="Sign out").click()
    use_passkey(page)
    message(page, "This passkey is not known here")


def test_a_passkey_that_does_not_know_its_user(page: Page, phone: Phone) -> None:
    sign_in(page)
    add_passkey(page, "Phone")
    expect(page.get_by_role("listitem")).to_have_count(1)
    page.get_by_role("button", name="Sign out").click()
    phone.knows_user(False)
    use_passkey(page)
    message(page, "No passkey was used")
    phone.knows_user(True)
    use_passkey(page)
    signed_in(page)


def test_a_passkey_that_was_copied(page: Page, phone: Phone) -> None:
    sign_in(page)
    add_passkey(page, "Phone")
    expect(page.get_by_role("listitem")).to_have_count(1)
    page.get_by_role("button", name="Sign out").click()
    use_passkey(page)
    signed_in(page)
    page.get_by_role("button", name="Sign out").click()
    phone.set_counter(0)
    use_passkey(page)
    message(page, "as if the passkey had been copied")


ACCOUNT = {"name": "carol", "email": "carol@example.com", "password": PASSWORD}


@pytest.mark.parametrize(
    ("kind", "entered", "button", "endpoint", "body", "said"),
    [
        (
            "verify", {}, "Verify", "POST email-verifications", {"secret": "s-_3"},
            "Your email is verified.",
        ),
        (
            "reset", {"password": PASSWORD}, "Set the password", "POST password-resets/complete",
            {"secret": "s-_3", "password": PASSWORD}, "Your password is set.",
        ),
        (
            "invitation", ACCOUNT, "Make the account", "POST accounts",
            {"invitation": "s-_3", **ACCOUNT}, "Your account is made.",
        ),
        (
            "first", ACCOUNT, "Make the administrator", "POST first-administrator",
            {"secret": "s-_3", **ACCOUNT}, "The administrator is made.",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("open_already", [False, True])
def test_links_in_mails(
    page: Page,
    server: Server,
    kind: str,
    entered: dict[str, str],
    button: str,
    endpoint: str,
    body: dict[str, str],
    said: str,
    open_already: bool,
) -> None:
    """The secret is in no request but the one that uses it, and does not stay in the address. What
    a link does needs a click: programs that look into mails open links too."""
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    if open_already:
        page.goto("/account")
    page.goto(f"/account#{kind}=s-_3")
    section = page.locator(f"section#{kind}")
    expect(section).to_be_visible()
    assert page.url == f"{server.url}/account"
    for name, value in entered.items():
        section.get_by_label(name).fill(value)
    assert endpoint not in [asked for asked, _ in server.asked]
    section.get_by_role("button", name=button).click()
    message(page, said)
    assert (endpoint, body) in server.asked
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert not any("s-_3" in url.partition("#")[0] for url in urls)


def test_sign_up(page: Page, server: Server) -> None:
    page.goto("/account")
    page.get_by_text("Make an account").click()
    form = page.locator("#sign-up")
    for name, value in ACCOUNT.items():
        form.get_by_label(name).fill(value)
    form.get_by_role("button").click()
    message(page, "Open the link in the mail")
    assert ("POST accounts", ACCOUNT) in server.asked


@pytest.mark.parametrize("file", FILES)
def test_security_headers(file: str) -> None:
    headers = Headers(list(FILES[file](CONTEXT, Request("GET", file)).headers))
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "Strict-Transport-Security" not in headers
    secure = FILES[file](CONTEXT, Request("GET", file, secure=True)).headers
    assert int(Headers(list(secure))["Strict-Transport-Security"].removeprefix("max-age="))


def test_nothing_inline_runs(page: Page, errors: list[str]) -> None:
    page.goto("/account")
    page.evaluate(
        "() => { const script = document.createElement('script');"
        " script.textContent = 'window.ran = true'; document.body.append(script); }"
    )
    assert page.evaluate("window.ran") is None
    [error] = errors
    assert "Content Security Policy" in error
    errors.clear()


@pytest.mark.parametrize("file", FILES)
def test_files_are_sent_once(file: str) -> None:
    def ask(method: str, **headers: str) -> Any:
        request = Request(method, file, headers=Headers(headers))
        response = FILES[file](CONTEXT, request)
        return response.status, Headers(list(response.headers)), response.body

    status, headers, body = ask("GET")
    assert (status, headers["Content-Length"]) == (200, str(len(body)))
    status, head, nothing = ask("HEAD")
    assert (status, dict(head), nothing) == (200, dict(headers), b"")
    status, again, nothing = ask("GET", **{"If-None-Match": headers["ETag"]})
    assert (status, again["ETag"], nothing) == (304, headers["ETag"], b"")
    assert "Content-Length" not in again
