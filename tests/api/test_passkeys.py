"""Passkeys through the API, with an authenticator in software."""

from typing import Any

import pytest

from tests.api.conftest import PASSWORD, World
from tests.api.people import Browser, events, mails, with_settings
from tests.client import Answer
from tests.identity.doubles.authenticator import Authenticator

HOST = "localhost:5000"
ORIGIN = f"http://{HOST}"


@pytest.fixture
def alice(world: World) -> Browser:
    """A browser in which alice is signed in with her password."""
    browser = Browser(world)
    assert browser.sign_in("alice", PASSWORD).status == 200
    return browser


@pytest.fixture
def phone() -> Authenticator:
    return Authenticator()


def begin(browser: Browser, path: str, host: str = HOST) -> dict[str, Any]:
    answer = browser.call("POST", path, {}, Host=host)
    assert answer.status == 200, answer.body
    begun: dict[str, Any] = answer.json
    return begun


def register(browser: Browser, phone: Authenticator, name: str = "Phone") -> Answer:
    begun = begin(browser, "/passkeys/registration-options")
    credential = phone.create(begun["options"], ORIGIN)
    body = {"state": begun["state"], "credential": credential, "name": name}
    return browser.call("POST", "/passkeys", body, Host=HOST)


def assertion(browser: Browser, phone: Authenticator, origin: str = ORIGIN) -> dict[str, Any]:
    begun = begin(browser, "/session/passkey-options")
    return {"state": begun["state"], "credential": phone.get(begun["options"], origin)}


def sign_in(browser: Browser, body: dict[str, Any]) -> Answer:
    return browser.call("POST", "/session/passkey", body, Host=HOST)


def test_from_registration_to_removal(world: World, alice: Browser, phone: Authenticator) -> None:
    made = register(alice, phone)
    assert made.status == 201
    assert alice.call("GET", "/passkeys").json == {"items": [made.json], "next": None}
    assert (made.json["name"], made.json["used_at"]) == ("Phone", None)
    [mail] = mails(world)
    assert (mail.to, "another passkey" in mail.text) == ("alice@example.org", True)

    browser = Browser(world)
    answer = sign_in(browser, assertion(browser, phone))
    assert (answer.status, answer.json["name"]) == (200, "alice")
    assert "HttpOnly" in answer.headers["Set-Cookie"]
    sessions = browser.call("GET", "/sessions").json["items"]
    assert [each["method"] for each in sessions] == ["passkey", "password"]

    path = f"/passkeys/{made.json['id']}"
    assert browser.call("PATCH", path, {"name": "Tablet"}).status == 204
    [shown] = browser.call("GET", "/passkeys").json["items"]
    assert shown["name"] == "Tablet"
    assert shown["used_at"] is not None
    assert browser.call("PATCH", path, {"name": " "}).status == 422
    assert browser.call("DELETE", path).status == 204
    assert browser.call("DELETE", path).status == 404
    assert browser.call("PATCH", path, {"name": "x"}).status == 404
    assert browser.is_signed_in()
    assert sign_in(Browser(world), assertion(browser, phone)).status == 401
    assert [name for name in events(world, world.ids["alice"]) if "passkey" in name] == [
        "passkey.add",
        "passkey.remove",
    ]


def test_whose_a_passkey_is(world: World, alice: Browser, phone: Authenticator) -> None:
    passkey = register(alice, phone).json["id"]
    bob = Browser(world)
    bob.sign_in("bob", PASSWORD)
    assert bob.call("GET", "/passkeys").json["items"] == []
    assert bob.call("PATCH", f"/passkeys/{passkey}", {"name": "mine"}).status == 404
    assert bob.call("DELETE", f"/passkeys/{passkey}").status == 404
    # Nor is a registration that one began another's to end.
    begun = begin(alice, "/passkeys/registration-options")
    credential = Authenticator().create(begun["options"], ORIGIN)
    body = {"state": begun["state"], "credential": credential, "name": "x"}
    assert bob.call("POST", "/passkeys", body, Host=HOST).status == 422
    assert [each["id"] for each in alice.call("GET", "/passkeys").json["items"]] == [passkey]


def test_nobody_registers_for_nobody(world: World) -> None:
    browser = Browser(world)
    assert browser.call("POST", "/passkeys/registration-options", {}).status == 401
    assert browser.call("GET", "/passkeys").status == 401


def test_an_answer_is_taken_once(world: World, alice: Browser, phone: Authenticator) -> None:
    register(alice, phone)
    body = assertion(Browser(world), phone)
    assert sign_in(Browser(world), body).status == 200
    again = sign_in(Browser(world), body)
    assert (again.status, "Set-Cookie" in again.headers) == (401, False)
    late = assertion(Browser(world), phone)
    world.context.database.run("UPDATE one_time_secrets SET expires_at = now()")
    assert sign_in(Browser(world), late).status == 401


def test_an_answer_for_another_site(world: World, alice: Browser, phone: Authenticator) -> None:
    register(alice, phone)
    body = assertion(Browser(world), phone, "http://localhost:5001")
    assert sign_in(Browser(world), body).status == 401
    assert events(world, world.ids["alice"])[-1] == "passkey.refuse"


@pytest.mark.parametrize("host", ["registry.example", "127.0.0.1:5000", ""])
def test_hosts_that_have_no_passkeys(world: World, alice: Browser, host: str) -> None:
    """A request's Host decides nothing unless it is this machine."""
    for path in ("/passkeys/registration-options", "/session/passkey-options"):
        assert alice.call("POST", path, {}, Host=host).status == 422


def test_the_public_url_decides(world: World, alice: Browser) -> None:
    alice.world = with_settings(world, public_url="https://registry.example")
    begun = begin(alice, "/passkeys/registration-options", "evil.example")
    assert begun["options"]["rp"]["id"] == "registry.example"


def test_a_suspended_account(world: World, alice: Browser, phone: Authenticator) -> None:
    register(alice, phone)
    assert world.call("POST", "/admin/accounts/alice/suspension", by="root").status == 204
    assert sign_in(Browser(world), assertion(Browser(world), phone)).status == 401


@pytest.mark.parametrize("credential", [{}, {"id": "x"}, {"id": 1, "response": None}])
def test_what_is_no_credential(world: World, alice: Browser, credential: dict[str, Any]) -> None:
    state = begin(alice, "/passkeys/registration-options")["state"]
    body = {"state": state, "credential": credential, "name": "x"}
    assert alice.call("POST", "/passkeys", body, Host=HOST).status == 422
    state = begin(alice, "/session/passkey-options")["state"]
    assert sign_in(alice, {"state": state, "credential": credential}).status == 401
