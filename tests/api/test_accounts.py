"""Accounts of people: sign-up, emails, passwords, deletion, and what administrators do."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from chalicelib.identity import access_tokens, emails, scopes, users
from chalicelib.identity.access import Accounts
from chalicelib.identity.keys import Keys
from chalicelib.mail import open_mailer
from chalicelib.metadata import accounts, audit, one_time, registry_invitations
from tests.api.conftest import PASSWORD, World, basic
from tests.api.people import Browser, events, mails, secret_in, secret_to, with_settings
from tests.client import Answer
from tests.mail.mailers import Inbox, mail_server

CAROL = {"name": "carol", "email": "carol@example.org", "password": "pass: wörd, 密码 ✓"}
EVIL = {"Host": "evil.example.net", "X_Forwarded_Host": "evil.example.net"}


@pytest.fixture
def open_world(world: World) -> World:
    """A registry where everyone may sign up."""
    return with_settings(world, sign_up="open")


def expire(world: World) -> None:
    """Let every link be too old."""
    for table in ("one_time_secrets", "invitations"):
        world.context.database.run(f"UPDATE {table} SET expires_at = now() - interval '1 second'")


def may_push(world: World, name: str, password: str) -> int:
    """The status of the begin of a push into one's own namespace."""
    path = f"/v2/{name}/hello/blobs/uploads/"
    return world.client.request("POST", path, b"", {"Authorization": basic(name, password)}).status


def reset(world: World, email: str) -> str:
    """Ask for another password; the secret that was sent."""
    assert world.call("POST", "/password-resets", {"email": email}).status == 202
    return secret_to(world, email)


def field(answer: Answer) -> str:
    """The field that a problem is about."""
    [error] = answer.json["errors"]
    return str(error["field"])


# Sign-up.


def test_sign_up_from_the_form_to_the_first_push(open_world: World) -> None:
    world = open_world
    answer = world.call("POST", "/accounts", CAROL)
    assert answer.status == 201
    assert answer.json.pop("created_at")
    assert {**answer.json, "created_at": ""} == {
        "name": "carol",
        "kind": "user",
        "created_at": "",
        "email": "carol@example.org",
        "email_verified": False,
        "administrator": False,
        "suspended": False,
        "new_repositories_public": None,
    }
    browser = Browser(world)
    assert browser.sign_in("carol", CAROL["password"]).json["email_verified"] is False
    assert may_push(world, "carol", CAROL["password"]) == 403
    assert world.call("GET", "/accounts/carol").json.keys() == {"name", "kind", "created_at"}

    [mail] = mails(world)
    assert (mail.to, mail.subject) == ("carol@example.org", "OpenRegistry: verify your email")
    assert "the account carol" in mail.text
    assert world.call("POST", "/email-verifications", {"secret": secret_in(mail)}).status == 204
    assert browser.call("GET", "/session").json["email_verified"] is True
    assert may_push(world, "carol", CAROL["password"]) == 202
    # And the email signs in now too.
    assert browser.sign_in("Carol@Example.org", CAROL["password"]).status == 200


def test_a_taken_email_is_not_told(open_world: World) -> None:
    """Not by the answer, not by whether the account is there afterwards, nor by what it can do: who
    owns the email is told by mail."""
    world = open_world
    free = world.call("POST", "/accounts", CAROL)
    taken = world.call(
        "POST", "/accounts", {**CAROL, "name": "mallory", "email": "Bob@example.org"}
    )

    def seen(name: str, answer: Answer) -> Any:
        browser = Browser(world)
        email = CAROL["email"] if name == "carol" else "Bob@example.org"
        answers = [
            answer,
            world.call("GET", f"/accounts/{name}"),
            browser.sign_in(name, CAROL["password"]),
            browser.call("GET", f"/accounts/{name}"),
            Browser(world).sign_in(email, CAROL["password"]),
            browser.call("POST", "/email-verifications/resend"),
        ]
        world.context.afterwards.wait()
        return [
            (each.status, [name for name, _ in each.fields], *(
                [] if not each.body else [
                    {k: v for k, v in each.json.items() if k not in ("name", "email", "created_at")}
                ]
            ))
            for each in answers
        ]  # fmt: skip

    assert seen("carol", free) == seen("mallory", taken)
    told = mails(world, "bob@example.org")
    assert [each.subject for each in told] == ["OpenRegistry: you have an account already"] * 2
    assert "mallory" in told[0].text
    assert not mails(world, "Bob@example.org")
    assert accounts.by_email(world.context.database, "bob@example.org").name == "bob"  # type: ignore[union-attr]
    assert (
        world.context.database.run(
            "SELECT FROM one_time_secrets WHERE account_id = (SELECT id FROM accounts WHERE name ="
            " 'mallory')"
        )
        == []
    )


def test_a_taken_email_is_not_told_by_time(
    open_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long mail takes, and whatever is done for it: the answers are out before."""
    world = open_world
    gate = threading.Event()
    begun: list[str] = []
    by_email = accounts.by_email

    def slow(runner: Any, email: str) -> Any:
        begun.append(email)
        assert gate.wait(10)
        return by_email(runner, email)

    monkeypatch.setattr(accounts, "by_email", slow)
    statuses = [
        world.call("POST", "/accounts", CAROL).status,
        world.call(
            "POST", "/accounts", {**CAROL, "name": "dan", "email": "bob@example.org"}
        ).status,
        world.call("POST", "/password-resets", {"email": "bob@example.org"}).status,
        world.call("POST", "/password-resets", {"email": "nobody@example.org"}).status,
    ]
    gate.set()
    assert statuses == [201, 201, 202, 202]
    assert len(mails(world)) == 3
    assert len(begun) == 4


def test_two_claim_an_email_and_one_reads_its_mail(open_world: World) -> None:
    """Who signs up with another's email neither gets it nor keeps its owner from it."""
    world = open_world
    world.call("POST", "/accounts", {**CAROL, "name": "mallory"})
    first = secret_to(world, CAROL["email"])
    world.call("POST", "/accounts", CAROL)
    second = secret_to(world, CAROL["email"])
    assert first != second
    assert world.call("POST", "/email-verifications", {"secret": second}).status == 204
    late = world.call("POST", "/email-verifications", {"secret": first})
    assert (late.status, field(late)) == (409, "email")
    assert accounts.by_email(world.context.database, CAROL["email"]).name == "carol"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "status", "wrong"),
    [
        ({"name": "alice"}, 409, "name"),
        ({"name": "Carol"}, 422, "name"),
        ({"name": "carol/x"}, 422, "name"),
        ({"name": "c" * 65}, 422, ""),
        ({"email": "carol"}, 422, "email"),
        ({"email": "carol@example.org\r\nBcc: x@example.org"}, 422, "email"),
        ({"email": "carol@example.org, x@example.org"}, 422, "email"),
        ({"password": "7 chars"}, 422, ""),
        ({"password": "x" * 1025}, 422, ""),
    ],
)
def test_what_no_account_can_have(
    open_world: World, change: dict[str, str], status: int, wrong: str
) -> None:
    answer = open_world.call("POST", "/accounts", {**CAROL, **change})
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    if wrong:
        assert field(answer) == wrong
    assert not mails(open_world)
    assert accounts.by_name(open_world.context.database, "carol") is None


@pytest.mark.parametrize("sign_up", ["invitation", "closed"])
def test_sign_up_that_is_not_open(world: World, sign_up: str) -> None:
    world = with_settings(world, sign_up=sign_up)
    assert world.call("POST", "/accounts", CAROL).status == 403
    _, secret = emails.invite(world.context.database, CAROL["email"], invited_by=None, by="")
    answer = world.call("POST", "/accounts", {**CAROL, "invitation": secret})
    assert answer.status == (201 if sign_up == "invitation" else 403)
    assert world.call(
        "POST", "/admin/invitations", {"email": "x@example.org"}, by="root"
    ).status == (201 if sign_up == "invitation" else 409)


# Invitations.


def test_an_invitation(world: World) -> None:
    answer = world.call("POST", "/admin/invitations", {"email": "Carol@example.org"}, by="root")
    assert answer.status == 201, answer.body
    assert "secret" not in str(answer.json)
    [listed] = world.call("GET", "/admin/invitations", by="root").json["items"]
    assert listed == answer.json
    secret = secret_to(world, "Carol@example.org")
    # What goes wrong does not use it up.
    taken = {**CAROL, "name": "bob", "invitation": secret}
    assert world.call("POST", "/accounts", taken).status == 409
    answer = world.call("POST", "/accounts", {**CAROL, "invitation": secret})
    assert answer.status == 201
    assert answer.json["email_verified"] is True
    assert may_push(world, "carol", CAROL["password"]) == 202
    again = world.call("POST", "/accounts", {**CAROL, "name": "dan", "invitation": secret})
    assert (again.status, field(again)) == (422, "invitation")
    assert world.call("GET", "/admin/invitations", by="root").json["items"] == []
    assert len(mails(world)) == 1


def test_an_invitation_that_is_used_with_another_email(world: World) -> None:
    _, secret = emails.invite(world.context.database, "work@example.org", invited_by=None, by="")
    answer = world.call("POST", "/accounts", {**CAROL, "invitation": secret})
    assert (answer.status, answer.json["email_verified"]) == (201, False)
    assert may_push(world, "carol", CAROL["password"]) == 403
    verification = {"secret": secret_to(world, CAROL["email"])}
    assert world.call("POST", "/email-verifications", verification).status == 204


def test_invitations_that_no_longer_hold(world: World) -> None:
    database = world.context.database
    invitation, revoked = emails.invite(database, "a@example.org", invited_by=None, by="")
    path = f"/admin/invitations/{invitation.id}"
    assert world.call("DELETE", path, by="alice").status == 403
    assert world.call("DELETE", path, by="root").status == 204
    assert world.call("DELETE", path, by="root").status == 404
    assert world.call("DELETE", "/admin/invitations/x", by="root").status == 404
    assert world.call("DELETE", f"/admin/invitations/{'9' * 30}", by="root").status == 404
    _, replaced = emails.invite(database, "b@example.org", invited_by=None, by="")
    _, kept = emails.invite(database, "B@example.org", invited_by=None, by="")
    assert registry_invitations.holds(database, kept)
    for secret in (revoked, replaced, "", "x", kept[:-1]):
        answer = world.call("POST", "/accounts", {**CAROL, "invitation": secret})
        assert answer.status == 422, secret
    expire(world)
    assert world.call("POST", "/accounts", {**CAROL, "invitation": kept}).status == 422
    assert world.call("GET", "/admin/invitations", by="root").json["items"] == []
    assert accounts.by_name(database, "carol") is None


def test_an_invitation_of_an_organisation_makes_no_account(world: World) -> None:
    from chalicelib.identity import organisations
    from chalicelib.metadata import invitations

    database = world.context.database
    acme = organisations.create(database, "acme", world.ids["alice"], by="")
    _, secret = invitations.add(database, acme, CAROL["email"], "owner", world.ids["alice"])
    assert world.call("POST", "/accounts", {**CAROL, "invitation": secret}).status == 422


def test_an_invitation_is_used_once_by_many_at_once(world: World) -> None:
    _, secret = emails.invite(world.context.database, CAROL["email"], invited_by=None, by="")

    def use(number: int) -> int:
        body = {**CAROL, "name": f"carol{number}", "email": f"c{number}@example.org"}
        return world.call("POST", "/accounts", {**body, "invitation": secret}).status

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(use, range(4))) == [201, 422, 422, 422]


# Profiles and settings.


def test_who_sees_what_of_an_account(world: World) -> None:
    public = {"name", "kind", "created_at"}
    path = "/accounts/alice"
    assert world.call("GET", path).json.keys() == public
    assert world.call("GET", path, by="bob").json.keys() == public
    for by in ("alice", "root"):
        assert world.call("GET", path, by=by).json["email"] == "alice@example.org"
    # An access token that leaks tells nobody's email.
    keys = Keys(world.context.settings.secret_key)
    token = access_tokens.create(
        world.context.database, keys, world.ids["alice"], "ci", scopes.parse(["repository:*:pull"])
    ).token
    headers = {"Authorization": f"Bearer {token}"}
    assert world.client.request("GET", f"/api/v1{path}", b"", headers).json.keys() == public
    assert world.call("GET", "/accounts/nobody").status == 404
    assert world.call("GET", "/accounts/Alice").status == 404


def test_settings_of_ones_own(world: World) -> None:
    path, key = "/account", "new_repositories_public"
    assert world.call("PATCH", path, {}).status == 401
    for value in (True, False, None):
        assert world.call("PATCH", path, {key: value}, by="alice").json[key] is value
    world.call("PATCH", path, {key: True}, by="alice")
    assert world.call("PATCH", path, {}, by="alice").json[key] is True
    assert world.call("PATCH", path, {key: "yes"}, by="alice").status == 422
    assert world.call("GET", "/accounts/bob", by="bob").json[key] is None


# Passwords.


def test_another_password(world: World) -> None:
    here, elsewhere = Browser(world), Browser(world)
    for browser in (here, elsewhere):
        browser.sign_in("alice", PASSWORD)
    before = here.cookie
    body = {"current": PASSWORD, "new": CAROL["password"]}
    assert here.call("POST", "/account/password", body).status == 204
    assert here.is_signed_in()
    assert here.cookie != before
    assert not elsewhere.is_signed_in()
    assert not Browser(world, before).is_signed_in()
    assert Browser(world).sign_in("alice", PASSWORD).status == 401
    assert Browser(world).sign_in("alice", CAROL["password"]).status == 200
    assert may_push(world, "alice", CAROL["password"]) == 202
    [mail] = mails(world)
    assert (mail.to, mail.subject) == (
        "alice@example.org",
        "OpenRegistry: your account was changed",
    )
    assert CAROL["password"] not in mail.text
    assert "user.password" in events(world, world.ids["alice"])


def test_a_wrong_current_password_is_a_failed_sign_in(world: World) -> None:
    browser = Browser(world)
    browser.sign_in("alice", PASSWORD)
    bodies: list[tuple[str, str, dict[str, str]]] = [
        ("POST", "/account/password", {"current": "wrong", "new": "another password"}),
        ("POST", "/account/email", {"password": "wrong", "email": "x@example.org"}),
        ("DELETE", "/account", {"password": "wrong"}),
    ]
    for method, path, body in bodies:
        answer = browser.call(method, path, body)
        assert (answer.status, answer.headers["Content-Type"]) == (403, "application/problem+json")
    statuses = [browser.call(*bodies[0]).status for _ in range(10)]
    assert statuses[-1] == 429
    # And the right one is refused there too, until the time is over.
    right = {"current": PASSWORD, "new": "another password"}
    assert browser.call("POST", "/account/password", right).status == 429
    assert not mails(world, "x@example.org")


def test_a_short_new_password_changes_nothing(world: World) -> None:
    body = {"current": PASSWORD, "new": "short"}
    assert world.call("POST", "/account/password", body, by="alice").status == 422
    assert Browser(world).sign_in("alice", PASSWORD).status == 200


def test_a_forgotten_password(world: World) -> None:
    browser = Browser(world)
    browser.sign_in("alice", PASSWORD)
    secret = reset(world, "alice@example.org")
    assert browser.is_signed_in()
    body = {"secret": secret, "password": "short"}
    assert world.call("POST", "/password-resets/complete", body).status == 422
    body["password"] = CAROL["password"]
    assert world.call("POST", "/password-resets/complete", body).status == 204
    assert not browser.is_signed_in()
    assert browser.sign_in("alice", PASSWORD).status == 401
    assert browser.sign_in("alice", CAROL["password"]).status == 200
    body["password"] = "a third password"
    assert world.call("POST", "/password-resets/complete", body).status == 422
    assert [each.subject for each in mails(world)] == [
        "OpenRegistry: choose a new password",
        "OpenRegistry: your account was changed",
    ]
    assert events(world, world.ids["alice"])[-4:] == [
        "user.reset",
        "user.password",
        "sign_in.failed",
        "session.begin",
    ]


def test_resets_that_do_not_hold(world: World) -> None:
    first = reset(world, "alice@example.org")
    second = reset(world, "alice@example.org")
    path = "/password-resets/complete"

    def status(secret: str) -> int:
        return world.call("POST", path, {"secret": secret, "password": "another one"}).status

    assert status(first) == 422  # only the newest link works
    expire(world)
    assert status(second) == 422
    third = reset(world, "alice@example.org")
    users.change_password(world.context.database, world.ids["alice"], "a new one!", by="")
    assert status(third) == 422
    # A secret for something else.
    database = world.context.database
    assert (
        status(one_time.put(database, "verify email", 60, world.ids["alice"], email="x@y.z")) == 422
    )
    assert status("") == 422
    assert Browser(world).sign_in("alice", "a new one!").status == 200


def test_a_reset_for_nobody(world: World) -> None:
    some = world.call("POST", "/password-resets", {"email": "alice@example.org"})
    none = world.call("POST", "/password-resets", {"email": "nobody@example.org"})
    users.suspend(world.context.database, world.ids["bob"], suspended=True, by="")
    suspended = world.call("POST", "/password-resets", {"email": "bob@example.org"})
    assert some == none == suspended
    assert some.status == 202
    assert [each.to for each in mails(world)] == ["alice@example.org"]


def test_a_reset_for_an_email_that_was_never_verified(open_world: World) -> None:
    """It cannot be had: whoever signed up there need not read that mail. They verify it first."""
    world = open_world
    world.call("POST", "/accounts", CAROL)
    mails(world)
    assert world.call("POST", "/password-resets", {"email": CAROL["email"]}).status == 202
    assert [each.subject for each in mails(world)] == ["OpenRegistry: verify your email"] * 2
    assert (
        world.call(
            "POST", "/email-verifications", {"secret": secret_to(world, CAROL["email"])}
        ).status
        == 204
    )
    reset(world, CAROL["email"])


def test_links_lead_to_the_registry_whatever_the_host_field_says(open_world: World) -> None:
    world = open_world
    browser = Browser(world)
    browser.sign_in("bob", PASSWORD)
    world.call("POST", "/accounts", CAROL, **EVIL)
    world.call("POST", "/password-resets", {"email": "alice@example.org"}, **EVIL)
    world.call("POST", "/admin/invitations", {"email": "x@example.org"}, by="root", **EVIL)
    body = {"email": "new@example.org", "password": PASSWORD}
    world.call("POST", "/account/email", body, by="bob", **EVIL)
    found = mails(world)
    assert len(found) == 4
    for mail in found:
        assert "evil" not in mail.text
        assert "http://localhost:5000/account#" in mail.text


def test_links_lead_to_the_public_url(world: World) -> None:
    world = with_settings(world, public_url="https://registry.example")
    world.call("POST", "/password-resets", {"email": "alice@example.org"}, **EVIL)
    [mail] = mails(world)
    assert "\nhttps://registry.example/account#reset=" in mail.text


# Emails.


def test_another_email(world: World) -> None:
    body = {"email": "alice@new.example", "password": PASSWORD}
    assert world.call("POST", "/account/email", body, by="alice").status == 202
    assert world.call("GET", "/session", by="alice").json["email"] == "alice@example.org"
    secret = secret_to(world, "alice@new.example")
    stale = reset(world, "alice@example.org")
    assert world.call("POST", "/email-verifications", {"secret": secret}).status == 204
    who = world.call("GET", "/session", by="alice").json
    assert (who["email"], who["email_verified"]) == ("alice@new.example", True)
    assert "is another one now" in mails(world, "alice@example.org")[-1].text
    assert world.call("POST", "/email-verifications", {"secret": secret}).status == 422
    # A link that went to the former address gives nobody the account.
    complete = {"secret": stale, "password": "another one"}
    assert world.call("POST", "/password-resets/complete", complete).status == 422
    world.call("POST", "/password-resets", {"email": "alice@example.org"})
    assert len(mails(world, "alice@example.org")) == 2


def test_an_email_that_is_anothers(world: World) -> None:
    body = {"email": "BOB@example.org", "password": PASSWORD}
    assert world.call("POST", "/account/email", body, by="alice").status == 202
    [told] = mails(world)
    assert (told.to, told.subject) == (
        "bob@example.org",
        "OpenRegistry: you have an account already",
    )
    assert "#" not in told.text
    assert world.call("GET", "/session", by="alice").json["email"] == "alice@example.org"


def test_a_change_of_email_ends_when_the_password_changes(world: World) -> None:
    """Who knew the former password, and began it, does not get the account."""
    body = {"email": "mallory@example.net", "password": PASSWORD}
    world.call("POST", "/account/email", body, by="alice")
    secret = secret_to(world, "mallory@example.net")
    reset_body = {"secret": reset(world, "alice@example.org"), "password": "another one"}
    assert world.call("POST", "/password-resets/complete", reset_body).status == 204
    assert world.call("POST", "/email-verifications", {"secret": secret}).status == 422


def test_a_verification_that_is_sent_again(open_world: World) -> None:
    world = open_world
    world.call("POST", "/accounts", CAROL)
    first = secret_to(world, CAROL["email"])
    browser = Browser(world)
    assert browser.call("POST", "/email-verifications/resend").status == 401
    browser.sign_in("carol", CAROL["password"])
    assert browser.call("POST", "/email-verifications/resend").status == 202
    second = secret_to(world, CAROL["email"])
    assert world.call("POST", "/email-verifications", {"secret": first}).status == 422
    # A slip of the pen at sign-up is mended.
    body = {"email": "carol@right.example", "password": CAROL["password"]}
    assert browser.call("POST", "/account/email", body).status == 202
    assert browser.call("GET", "/session").json["email"] == "carol@right.example"
    third = secret_to(world, "carol@right.example")
    assert world.call("POST", "/email-verifications", {"secret": second}).status == 422
    assert world.call("POST", "/email-verifications", {"secret": third}).status == 204
    assert browser.call("POST", "/email-verifications/resend").status == 409


def test_mail_is_limited_whoever_it_is_for(world: World) -> None:
    for email in ("alice@example.org", "nobody@example.org"):
        statuses = [
            world.call("POST", "/password-resets", {"email": each}).status
            for each in [email, email.upper().replace("@EXAMPLE.ORG", "@example.org")] * 3
        ]
        assert statuses == [202] * 5 + [429]
        answer = world.call("POST", "/password-resets", {"email": email})
        assert int(answer.headers["Retry-After"]) > 3000
        assert "mail-by-recipient" in answer.headers["RateLimit-Policy"]
    assert len(mails(world)) == 5
    # The newest link holds for longer than nobody can ask for another.
    [[seconds]] = world.context.database.run(
        "SELECT extract(epoch FROM expires_at - now())::int FROM one_time_secrets"
        " WHERE purpose = 'reset password'"
    )
    assert seconds > 3600
    statuses = [
        world.call("POST", "/password-resets", {"email": f"x{number}@example.org"}).status
        for number in range(30)
    ]
    assert statuses[0] == 202
    assert statuses[-1] == 429


# Deletion.


def test_an_account_is_deleted(world: World) -> None:
    database, alice = world.context.database, world.ids["alice"]
    browser, other = Browser(world), Browser(world)
    for each in (browser, other):
        each.sign_in("alice", PASSWORD)
    secret = reset(world, "alice@example.org")
    world.call("POST", "/account/email", {"email": "a@b.example", "password": PASSWORD}, by="alice")
    assert browser.call("DELETE", "/account", {"password": PASSWORD}).status == 204
    assert browser.cookie == ""
    assert not other.is_signed_in()
    assert Browser(world).sign_in("alice", PASSWORD).status == 401
    assert world.call("GET", "/accounts/alice").status == 404
    complete = {"secret": secret, "password": "another one"}
    assert world.call("POST", "/password-resets/complete", complete).status == 422
    # Nobody is called that any more, and nobody is again.
    open_world = with_settings(world, sign_up="open")
    again = open_world.call("POST", "/accounts", {**CAROL, "name": "alice"})
    assert (again.status, field(again)) == (409, "name")
    assert (
        world.call(
            "POST", "/admin/accounts", {"name": "alice", "email": "a@example.org"}, by="root"
        ).status
        == 409
    )
    assert (
        open_world.call("POST", "/accounts", {**CAROL, "email": "alice@example.org"}).status == 201
    )
    # The log knows an id, and no name.
    assert events(world, alice)[-1] == "account.delete"
    entries = audit.page(database, 100, None, alice)
    assert entries[0].subject == f"account:{alice}"
    assert "alice" not in str(entries)
    [row] = database.run("SELECT name, email, password_hash FROM accounts WHERE id = :id", id=alice)
    assert row == [None, None, None]


def test_an_account_that_cannot_be_deleted(world: World) -> None:
    answer = world.call("DELETE", "/account", {"password": PASSWORD}, by="root")
    assert (answer.status, "only administrator" in answer.json["detail"]) == (409, True)
    world.context.database.run(
        "INSERT INTO repositories (name, created_by) VALUES ('alice/hello', 'account:1')"
    )
    answer = world.call("DELETE", "/account", {"password": PASSWORD}, by="alice")
    assert (answer.status, "repositories" in answer.json["detail"]) == (409, True)
    assert Browser(world).sign_in("alice", PASSWORD).status == 200


def test_an_access_token_is_no_person(world: World) -> None:
    access = world.context.access
    assert isinstance(access, Accounts)
    token = access_tokens.create(
        world.context.database,
        access.keys,
        world.ids["root"],
        "ci",
        scopes.parse(["repository:*:*", "account:*:*"]),
    ).token
    for credential in (f"Bearer {token}", basic("root", token)):
        for method, path, body in (
            ("PATCH", "/account", {"new_repositories_public": True}),
            ("DELETE", "/account", {"password": PASSWORD}),
            ("POST", "/account/password", {"current": PASSWORD, "new": "another one"}),
            ("POST", "/account/email", {"email": "x@example.org", "password": PASSWORD}),
            ("POST", "/email-verifications/resend", None),
            ("POST", "/passkeys/registration-options", None),
            ("GET", "/passkeys", None),
            ("GET", "/admin/accounts", None),
            ("POST", "/admin/accounts", {"name": "x", "email": "x@example.org"}),
            ("POST", "/admin/invitations", {"email": "x@example.org"}),
        ):
            assert world.call(method, path, body, Authorization=credential).status == 403, path


# Administration.


def test_administrators_alone(world: World) -> None:
    for method, path, body in (
        ("GET", "/admin/accounts", None),
        ("POST", "/admin/accounts", {"name": "x", "email": "x@example.org"}),
        ("POST", "/admin/accounts/bob/suspension", None),
        ("DELETE", "/admin/accounts/bob/suspension", None),
        ("GET", "/admin/invitations", None),
        ("POST", "/admin/invitations", {"email": "x@example.org"}),
        ("DELETE", "/admin/invitations/1", None),
    ):
        assert world.call(method, path, body).status == 401
        assert world.call(method, path, body, by="alice").status == 403
    assert not mails(world)


def test_accounts_page_by_page(world: World) -> None:
    names: list[str] = []
    after = ""
    while True:
        page = world.call("GET", f"/admin/accounts?limit=2&after={after}", by="root").json
        names += [each["name"] for each in page["items"]]
        assert all("email" in each for each in page["items"])
        if page["next"] is None:
            break
        after = page["next"]
    assert names == ["alice", "bob", "root"]


def test_an_account_for_somebody(world: World) -> None:
    body = {"name": "carol", "email": CAROL["email"], "administrator": True}
    answer = world.call("POST", "/admin/accounts", body, by="root")
    assert (answer.status, answer.json["email_verified"]) == (201, True)
    assert answer.json["administrator"] is True
    assert Browser(world).sign_in("carol", "").status == 422
    complete = {"secret": secret_to(world, CAROL["email"]), "password": CAROL["password"]}
    assert world.call("POST", "/password-resets/complete", complete).status == 204
    assert may_push(world, "carol", CAROL["password"]) == 202
    body = {"name": "dan", "email": "dan@example.org", "password": "a good one"}
    assert world.call("POST", "/admin/accounts", body, by="root").status == 201
    assert may_push(world, "dan", "a good one") == 202
    taken = world.call("POST", "/admin/accounts", {**body, "name": "erin"}, by="root")
    assert (taken.status, field(taken)) == (409, "email")


def test_suspension(world: World) -> None:
    browser = Browser(world)
    browser.sign_in("bob", PASSWORD)
    path = "/admin/accounts/bob/suspension"
    assert may_push(world, "bob", PASSWORD) == 202
    assert world.call("POST", path, by="root").status == 204
    assert not browser.is_signed_in()
    assert may_push(world, "bob", PASSWORD) == 401
    assert world.call("GET", "/accounts/bob", by="root").json["suspended"] is True
    assert world.call("DELETE", path, by="root").status == 204
    assert may_push(world, "bob", PASSWORD) == 202
    assert world.call("POST", "/admin/accounts/root/suspension", by="root").status == 409
    assert world.call("POST", "/admin/accounts/nobody/suspension", by="root").status == 404
    assert events(world, world.ids["bob"])[-2:] == ["account.suspend", "account.resume"]


# The first administrator.


def test_the_first_administrator(world: World) -> None:
    database = world.context.database
    secret = one_time.put(database, users.FIRST_ADMINISTRATOR, 60)
    body = {**CAROL, "secret": secret}
    assert users.needs_administrator(database) is None
    assert world.call("POST", "/first-administrator", body).status == 409
    users.suspend(database, world.ids["root"], suspended=True, by="")
    first, second = (users.needs_administrator(database) for _ in range(2))
    assert first
    assert world.call("POST", "/first-administrator", {**CAROL, "secret": "wrong"}).status == 422
    short = {**CAROL, "secret": first, "name": "alice"}
    assert world.call("POST", "/first-administrator", short).status == 409

    with ThreadPoolExecutor(2) as pool:
        answers = list(
            pool.map(
                lambda number: world.call(
                    "POST",
                    "/first-administrator",
                    {
                        "secret": (first, second)[number],
                        "name": f"boss{number}",
                        "email": f"boss{number}@example.org",
                        "password": CAROL["password"],
                    },
                ),
                range(2),
            )
        )
    assert sorted(each.status for each in answers) == [201, 409]
    [made] = [each for each in answers if each.status == 201]
    assert (made.json["administrator"], made.json["email_verified"]) == (True, True)
    name = made.json["name"]
    answer = world.client.request(
        "GET", "/api/v1/admin/accounts", b"", {"Authorization": basic(name, CAROL["password"])}
    )
    assert answer.status == 200


def test_a_link_for_the_first_administrator_that_is_too_old(world: World) -> None:
    users.suspend(world.context.database, world.ids["root"], suspended=True, by="")
    secret = users.needs_administrator(world.context.database)
    expire(world)
    assert world.call("POST", "/first-administrator", {**CAROL, "secret": secret}).status == 422


# Mail that really goes.


def test_mail_by_a_server(open_world: World) -> None:
    inbox = Inbox()
    with mail_server(inbox) as port:
        world = with_settings(open_world, mail_url=f"smtp://127.0.0.1:{port}")
        context = world.context
        object.__setattr__(context, "mailer", open_mailer(context.settings))
        assert world.call("POST", "/accounts", CAROL).status == 201
        context.afterwards.wait()
        [mail] = inbox.received()
    assert mail.to == CAROL["email"]
    secret = {"secret": secret_in(mail)}
    assert world.call("POST", "/email-verifications", secret).status == 204


def test_mail_that_cannot_be_sent(open_world: World, caplog: pytest.LogCaptureFixture) -> None:
    world = with_settings(open_world, mail_url="smtp://127.0.0.1:1")
    object.__setattr__(world.context, "mailer", open_mailer(world.context.settings))
    assert world.call("POST", "/accounts", CAROL).status == 201
    assert world.call("POST", "/password-resets", {"email": "alice@example.org"}).status == 202
    world.context.afterwards.wait()
    assert caplog.text.count("a mail could not be sent") == 2
    assert "example.org" not in caplog.text
    answer = world.call("POST", "/admin/invitations", {"email": "x@example.org"}, by="root")
    assert answer.status == 503
