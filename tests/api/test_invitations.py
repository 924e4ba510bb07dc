"""Invitations to organisations: by mail, and for whose email they are."""

import threading
from typing import Any

import pytest

from chalicelib.identity import organisations as domain
from chalicelib.metadata import organisations as rows
from tests.api.acme import Acme, add_organisation, add_user, events, mails, secret_in
from tests.api.conftest import World

OWN = "/organisation-invitations"


@pytest.fixture
def acme(world: World) -> Acme:
    return add_organisation(world, "acme")


def _invite(acme: Acme, email: str, role: str = "member") -> Any:
    body = {"email": email, "role": role}
    answer = acme.world.call("POST", f"{acme.path}/invitations", body, by="alice")
    assert answer.status == 201, answer
    return answer.json


def _accept(world: World, name: str, **chosen: Any) -> int:
    return world.call("POST", f"{OWN}/accept", chosen, by=name).status


def _open(acme: Acme) -> list[str]:
    answer = acme.world.call("GET", f"{acme.path}/invitations", by="alice")
    return [each["email"] for each in answer.json["items"]]


def _role(acme: Acme, name: str) -> str | None:
    found = rows.members(acme.world.context.database, acme.id, "", 100)
    return {each.name: each.role for each in found}.get(name)


def test_the_mailed_link_makes_its_holder_a_member(acme: Acme) -> None:
    world = acme.world
    invited = _invite(acme, "somebody@example.net")
    assert "secret" not in invited
    (mail,) = mails(world)
    assert mail["To"] == "somebody@example.net"
    text = mail.get_content()
    assert "acme" in text
    link = next(line for line in text.splitlines() if "#organisation=" in line)
    assert link.startswith("http://localhost:5000/account#organisation=")
    carol = add_user(world, "carol")  # whose email is another
    answer = world.call("POST", f"{OWN}/accept", {"secret": secret_in(text)}, by="carol")
    assert (answer.status, answer.json) == (200, {"name": "acme", "role": "member"})
    assert _role(acme, "carol") == "member"
    assert events(world, acme.id)[-2:] == [
        (
            "invitation.create",
            f"account:{world.ids['alice']}",
            {"invitation": invited["id"], "role": "member"},
        ),
        (
            "invitation.accept",
            f"account:{carol}",
            {"invitation": invited["id"], "user": carol, "role": "member"},
        ),
    ]


def test_an_invitation_works_once(acme: Acme) -> None:
    world = acme.world
    add_user(world, "carol")
    add_user(world, "dave")
    assert _accept(world, "carol", secret=acme.secret) == 200
    assert _accept(world, "dave", secret=acme.secret) == 404
    assert _role(acme, "dave") is None
    assert _open(acme) == []


def test_of_many_who_accept_at_once_one_does(acme: Acme) -> None:
    world = acme.world
    names = [f"user{number}" for number in range(4)]
    for name in names:
        add_user(world, name)
        assert world.call("GET", "/session", by=name).status == 200
    answers: list[int] = []
    ready = threading.Barrier(len(names))

    def run(name: str) -> None:
        ready.wait()
        answers.append(_accept(world, name, secret=acme.secret))

    threads = [threading.Thread(target=run, args=[name]) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, 404, 404, 404]
    assert len([name for name in names if _role(acme, name)]) == 1


def test_who_has_the_email_sees_the_invitation_and_accepts(acme: Acme) -> None:
    world = acme.world
    erin = add_user(world, "erin", email="Erin+ACME@example.org")
    (own,) = world.call("GET", OWN, by="erin").json["items"]
    assert own["organisation"] == "acme"
    assert own["id"] == acme.invitation
    assert world.call("GET", OWN, by="bob").json["items"] == []
    assert _accept(world, "bob", id=acme.invitation) == 404
    assert _accept(world, "erin", id=acme.invitation) == 200
    assert _role(acme, "erin") == "member"
    assert world.call("GET", OWN, by="erin").json["items"] == []
    assert events(world, acme.id)[-1][1] == f"account:{erin}"


def test_an_email_that_is_not_verified_sees_and_accepts_nothing(acme: Acme) -> None:
    world = acme.world
    add_user(world, "erin", email="erin+acme@example.org", verified=False)
    assert world.call("GET", OWN, by="erin").json["items"] == []
    for chosen in ({"id": acme.invitation}, {"secret": acme.secret}):
        assert _accept(world, "erin", **chosen) == 403
    answer = world.call("POST", f"{OWN}/decline", {"id": acme.invitation}, by="erin")
    assert answer.status == 404
    assert _open(acme) == ["erin+acme@example.org"]


def test_one_chooses_by_an_id_or_a_secret(acme: Acme) -> None:
    world = acme.world
    add_user(world, "erin", email="erin+acme@example.org")
    for chosen in ({}, {"id": acme.invitation, "secret": acme.secret}, {"id": 0}, {"secret": ""}):
        assert world.call("POST", f"{OWN}/accept", chosen, by="erin").status == 422
    for secret in ("x", "ü", "\ud800"):
        assert _accept(world, "erin", secret=secret) in (400, 404)
    assert _accept(world, "erin", id=2**53 - 1) == 404
    assert world.call("GET", f"{OWN}?after=x", by="erin").status == 422
    assert _open(acme) == ["erin+acme@example.org"]


def test_an_invitation_is_declined_or_revoked(acme: Acme) -> None:
    world = acme.world
    add_user(world, "erin", email="erin+acme@example.org")
    chosen = {"id": acme.invitation}
    assert world.call("POST", f"{OWN}/decline", chosen, by="erin").status == 204
    assert world.call("POST", f"{OWN}/decline", chosen, by="erin").status == 404
    assert _accept(world, "erin", secret=acme.secret) == 404
    again = _invite(acme, "erin+acme@example.org")
    path = f"{acme.path}/invitations/{again['id']}"
    beta = add_organisation(world, "beta")
    other = f"{beta.path}/invitations/{again['id']}"
    assert world.call("DELETE", other, by="alice").status == 404  # of another organisation
    assert world.call("DELETE", path, by="alice").status == 204
    assert world.call("DELETE", path, by="alice").status == 404
    for number in ("x", "-1", "9" * 40, "%00"):
        answer = world.call("DELETE", f"{acme.path}/invitations/{number}", by="alice")
        assert answer.status == 404
    assert _accept(world, "erin", id=again["id"]) == 404
    assert [event for event, _, _ in events(world, acme.id)][-3:] == [
        "invitation.decline", "invitation.create", "invitation.revoke",
    ]  # fmt: skip
    assert _role(acme, "erin") is None


def test_an_invitation_ends_after_a_week(acme: Acme) -> None:
    world, database = acme.world, acme.world.context.database
    add_user(world, "erin", email="erin+acme@example.org")
    (seconds,) = database.run("SELECT extract(epoch FROM expires_at - created_at) FROM invitations")
    assert seconds == [7 * 86400]
    database.run("UPDATE invitations SET expires_at = now()")
    assert world.call("GET", OWN, by="erin").json["items"] == []
    assert _open(acme) == []
    for chosen in ({"id": acme.invitation}, {"secret": acme.secret}):
        assert _accept(world, "erin", **chosen) == 404


def test_a_new_invitation_takes_the_place_of_the_former(acme: Acme) -> None:
    world = acme.world
    add_user(world, "erin", email="erin+acme@example.org")
    _invite(acme, "ERIN+acme@example.org", "owner")
    assert _open(acme) == ["ERIN+acme@example.org"]
    assert _accept(world, "erin", secret=acme.secret) == 404
    assert _accept(world, "erin", secret=secret_in(mails(world)[-1].get_content())) == 200
    assert _role(acme, "erin") == "owner"


def test_an_owner_who_accepts_stays_one(acme: Acme) -> None:
    assert _accept(acme.world, "alice", secret=acme.secret) == 200
    assert _role(acme, "alice") == "owner"


def test_nothing_tells_whether_an_email_has_an_account(acme: Acme) -> None:
    world = acme.world
    domain.remove_member(world.context.database, acme.id, world.ids["bob"], by="")
    answers = [_invite(acme, email) for email in ("bob@example.org", "nobody@example.org")]
    for answer in answers:
        for key in ("id", "email", "created_at", "expires_at"):
            del answer[key]
    assert answers[0] == answers[1] == {"organisation": "acme", "role": "member"}
    sent = [mail.get_content().partition("#")[0] for mail in mails(world)]
    assert sent[0] == sent[1]


def test_what_is_no_address_is_not_invited(acme: Acme) -> None:
    for email in ("x", "a@b@c", "a@b\r\nBcc: c@d", "<a@b.org>", "a b@c.org", "\0@example.org",
                  f"{'a' * 65}@example.org", "a..b@example.org"):  # fmt: skip
        body = {"email": email}
        answer = acme.world.call("POST", f"{acme.path}/invitations", body, by="alice")
        assert answer.status == 422, email
    assert mails(acme.world) == []


def test_nobody_is_mailed_without_end(acme: Acme) -> None:
    world = acme.world
    body = {"email": "victim@example.org"}
    path = f"{acme.path}/invitations"
    answers = [world.call("POST", path, body, by="alice").status for _ in range(6)]
    assert answers == [201] * 5 + [429]
    assert len(mails(world)) == 5


def test_a_deleted_organisation_admits_nobody(acme: Acme) -> None:
    world = acme.world
    add_user(world, "erin", email="erin+acme@example.org")
    assert world.call("DELETE", acme.path, by="alice").status == 204
    assert world.call("GET", OWN, by="erin").json["items"] == []
    assert _accept(world, "erin", secret=acme.secret) == 404


def test_secrets_are_kept_hashed(acme: Acme) -> None:
    dump = acme.world.context.database.run("SELECT CAST(i AS text) FROM invitations i")
    assert acme.secret not in str(dump)
