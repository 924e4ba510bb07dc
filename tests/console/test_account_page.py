"""The account page in a real browser, Debian's Chromium, with its virtual authenticator."""

import email
import itertools
import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from email.policy import default
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from playwright.sync_api import Browser, CDPSession, Page, expect, sync_playwright

from chalicelib import console
from chalicelib.context import Context
from chalicelib.http import Headers, Request
from chalicelib.identity import users
from chalicelib.metadata.database import Database
from tests.client import HTTPClient
from tests.conftest import need
from tests.servers import Postgres, Registry, stopping, wait_until

pytestmark = pytest.mark.long

CHROMIUM = "/usr/bin/chromium"
PASSWORD = "correct:horse ünd battery"
CONTEXT = cast(Context, SimpleNamespace(head_by_redirect=False))
FILES = {
    "/account": console.page,
    "/account.js": console.script,
    "/account.css": console.style,
}
_numbers = itertools.count(1)


class Place:
    """A registry with accounts, and the mails that it sends."""

    def __init__(self, registry: Registry, database: Database) -> None:
        self.registry = registry
        self.database = database
        self.url = registry.url.replace("127.0.0.1", "localhost")

    def user(self) -> str:
        """The name of a new user."""
        name = f"user-{next(_numbers)}"
        users.create(
            self.database, name, address(name), PASSWORD, by="operator", email_verified=True
        )
        return name

    def call(self, method: str, path: str, body: Any = None, *, by: str = "root") -> Any:
        """Call the API."""
        answer = HTTPClient(self.registry.host).request(
            method,
            f"/api/v1/{path}",
            json.dumps(body).encode() if body is not None else b"",
            {
                "Authorization": "Basic " + b64encode(f"{by}:{PASSWORD}".encode()).decode(),
                "Content-Type": "application/json",
            },
        )
        assert answer.status < 300, answer
        return answer.json if answer.body else None

    def link(self, name: str) -> str:
        """The path of the link in the newest mail to a user, once it has come."""
        links: list[str] = []

        def come() -> bool:
            links[:] = [link for to, link in map(_link, self._mails()) if to == address(name)]
            return bool(links)

        wait_until(come, 10, lambda: f"a mail with a link to {name}")
        return links[-1].removeprefix(self.url)

    def _mails(self) -> list[Path]:
        return sorted((self.registry.data_dir / "mail").glob("*.eml"))


def address(name: str) -> str:
    return f"{name}@example.org"


def _link(file: Path) -> tuple[str, str]:
    mail = email.message_from_bytes(file.read_bytes(), policy=default)
    body = mail.get_body()
    assert body is not None
    found = re.search(r"\S+/account#\S+", body.get_content())
    return str(mail["To"]), found.group() if found else ""


@pytest.fixture(scope="module")
def place(directory: Path, postgres: Postgres) -> Iterator[Place]:
    url = postgres.new_database()
    settings = {
        "ACCESS": "accounts",
        "SIGN_UP": "open",
        "DATABASE_URL": url,
        "ADMIN_NAME": "root",
        "ADMIN_EMAIL": address("root"),
        "ADMIN_PASSWORD": PASSWORD,
    }
    registry = Registry(
        directory / "account-page",
        {f"OPENREGISTRY_{name}": value for name, value in settings.items()},
    )
    with stopping(registry):
        registry.start()
        database = Database(url)
        yield Place(registry, database)
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
def page(browser: Browser, place: Place, errors: list[str]) -> Iterator[Page]:
    """A page that may have no errors; a problem of the API is none."""
    context = browser.new_context(base_url=place.url)
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


@pytest.fixture
def alice(place: Place) -> str:
    return place.user()


def sign_in(page: Page, name: str, password: str = PASSWORD) -> None:
    page.goto("/account")
    fill(page, name, password)


def fill(page: Page, name: str, password: str = PASSWORD) -> None:
    form = page.locator("#sign-in")
    form.get_by_label("Name").fill(name)
    form.get_by_label("Password").fill(password)
    form.get_by_role("button").click()


def sign_out(page: Page) -> None:
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in", exact=True)).to_be_visible()


def add_passkey(page: Page, name: str) -> None:
    page.get_by_label("Name of the new passkey").fill(name)
    page.get_by_role("button", name="Add a passkey").click()


def use_passkey(page: Page) -> None:
    page.get_by_role("button", name="Sign in with a passkey").click()


def signed_in(page: Page, name: str) -> None:
    expect(page.get_by_role("heading", name=f"Signed in as {name}", exact=True)).to_be_visible()


def message(page: Page, text: str) -> None:
    expect(page.get_by_role("status")).to_contain_text(text)


def test_a_password(page: Page, alice: str) -> None:
    sign_in(page, alice, "wrong")
    expect(page.get_by_role("status")).to_contain_text("wrong")
    sign_in(page, alice)
    signed_in(page, alice)
    page.reload()
    signed_in(page, alice)
    sign_out(page)
    expect(page.get_by_role("heading", name="Passkeys")).to_be_hidden()
    page.reload()
    expect(page.get_by_role("heading", name="Sign in", exact=True)).to_be_visible()


def test_a_passkey_from_registration_to_removal(page: Page, phone: Phone, alice: str) -> None:
    sign_in(page, alice)
    add_passkey(page, "<b>My phone</b>")
    item = page.get_by_role("listitem")
    expect(item).to_contain_text("<b>My phone</b>added")
    expect(item).to_contain_text("not used yet")
    [key] = phone.keys()
    assert key["isResidentCredential"]
    assert key["rpId"] == "localhost"

    sign_out(page)
    use_passkey(page)
    signed_in(page, alice)
    expect(item).to_contain_text(", used")

    add_passkey(page, "Again")
    message(page, "This device has a passkey for your account already.")

    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Remove <b>My phone</b>").click()
    message(page, "The passkey is removed.")
    expect(item).to_have_count(0)
    sign_out(page)
    use_passkey(page)
    message(page, "This passkey is not known here")


def test_a_passkey_that_does_not_know_its_user(page: Page, phone: Phone, alice: str) -> None:
    sign_in(page, alice)
    add_passkey(page, "Phone")
    expect(page.get_by_role("listitem")).to_have_count(1)
    sign_out(page)
    phone.knows_user(False)
    use_passkey(page)
    message(page, "No passkey was used")
    phone.knows_user(True)
    use_passkey(page)
    signed_in(page, alice)


def test_a_passkey_that_was_copied(page: Page, phone: Phone, alice: str) -> None:
    sign_in(page, alice)
    add_passkey(page, "Phone")
    expect(page.get_by_role("listitem")).to_have_count(1)
    sign_out(page)
    use_passkey(page)
    signed_in(page, alice)
    sign_out(page)
    phone.set_counter(0)
    use_passkey(page)
    message(page, "as if the passkey had been copied")


@pytest.fixture(params=[False, True], ids=["afresh", "page open already"])
def open_link(
    request: pytest.FixtureRequest, page: Page, place: Place
) -> Iterator[Callable[[str], None]]:
    """Follows a link, and sees that its secret does not stay in the address, is in no request but
    the one that uses it, and in that one in the body; and that it is used by nothing but a click,
    since programs that look into mails open links too."""
    urls: list[str] = []
    bodies: list[str] = []
    secrets: list[str] = []
    page.on("request", lambda sent: urls.append(sent.url))
    page.on("request", lambda sent: bodies.append(sent.post_data or ""))

    def follow(link: str) -> None:
        if request.param:
            page.goto("/account")
        kind, _, secret = link.partition("#")[2].partition("=")
        secrets.append(secret)
        page.goto(link)
        expect(page.locator("section:visible")).to_have_count(1)
        expect(page).to_have_url(f"{place.url}/account")
        page.wait_for_load_state("networkidle")
        assert not any(secret in body for body in bodies), kind

    yield follow
    for secret in secrets:
        assert sum(secret in body for body in bodies) == 1
        assert not any(secret in url.partition("#")[0] for url in urls)


def enter_account(page: Page, section: str, name: str) -> None:
    form = page.locator(f"#{section}")
    form.get_by_label("Name").fill(name)
    form.get_by_label("Email").fill(address(name))
    form.get_by_label("Password").fill(PASSWORD)
    form.get_by_role("button").click()


def test_sign_up_and_verification(
    page: Page, place: Place, open_link: Callable[[str], None]
) -> None:
    name = f"user-{next(_numbers)}"
    page.goto("/account")
    page.get_by_text("Make an account").click()
    enter_account(page, "sign-up", name)
    message(page, "Open the link in the mail")
    assert not place.call("GET", f"accounts/{name}", by=name)["email_verified"]
    open_link(place.link(name))
    page.get_by_role("button", name="Verify").click()
    message(page, "Your email is verified.")
    assert place.call("GET", f"accounts/{name}", by=name)["email_verified"]
    fill(page, name)
    signed_in(page, name)


def test_a_forgotten_password(
    page: Page, place: Place, alice: str, open_link: Callable[[str], None]
) -> None:
    page.goto("/account")
    page.get_by_text("Forgotten password").click()
    page.locator("#forgotten").get_by_label("Email").fill(address(alice))
    page.get_by_role("button", name="Send me a link").click()
    message(page, "a mail with a link was sent")
    open_link(place.link(alice))
    page.get_by_label("New password").fill("quite another one")
    page.get_by_role("button", name="Set the password").click()
    message(page, "Your password is set.")
    fill(page, alice, "quite another one")
    signed_in(page, alice)


def test_an_invitation(page: Page, place: Place, open_link: Callable[[str], None]) -> None:
    name = f"user-{next(_numbers)}"
    place.call("POST", "admin/invitations", {"email": address(name)})
    open_link(place.link(name))
    enter_account(page, "invitation", name)
    message(page, "Your account is made.")
    fill(page, name)
    signed_in(page, name)


def test_an_invitation_to_an_organisation(
    page: Page, place: Place, alice: str, open_link: Callable[[str], None]
) -> None:
    organisation = f"org-{next(_numbers)}"
    place.call("POST", "organisations", {"name": organisation})
    place.call("POST", f"organisations/{organisation}/invitations", {"email": address(alice)})
    open_link(place.link(alice))
    message(page, "Sign in to accept the invitation.")
    fill(page, alice)
    page.get_by_role("button", name="Accept").click()
    message(page, "You are a member of the organisation.")
    signed_in(page, alice)
    members = place.call("GET", f"organisations/{organisation}/members")["items"]
    assert alice in [each["name"] for each in members]


def test_a_link_that_was_used(page: Page, place: Place, alice: str) -> None:
    place.call("POST", "password-resets", {"email": address(alice)})
    link = place.link(alice)
    for said in ("Your password is set.", "This link was used already, or is too old."):
        page.goto("about:blank")
        page.goto(link)
        page.get_by_label("New password").fill(PASSWORD)
        page.get_by_role("button", name="Set the password").click()
        message(page, said)


def test_the_first_administrator(
    page: Page, serve: Callable[..., Registry], errors: list[str]
) -> None:
    registry = serve(OPENREGISTRY_ACCESS="accounts")
    found = re.search(r"\S+/account#first=\S+", registry.output())
    assert found is not None
    page.goto(found.group())
    enter_account(page, "first", "root")
    message(page, "The administrator is made.")
    fill(page, "root")
    signed_in(page, "root")


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
