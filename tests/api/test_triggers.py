"""Triggers: a signed message starts a job, once, and no other message does."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from standardwebhooks import Webhook as Signer

from chalicelib.identity import signatures, users
from chalicelib.identity.keys import Keys
from chalicelib.jobs import retention, triggers
from chalicelib.metadata import jobs
from tests.api.acme import Acme, add_organisation
from tests.api.conftest import World
from tests.client import CoreClient

BODY = b'{"any": "thing"}'


@pytest.fixture
def acme(world: World) -> Acme:
    acme = add_organisation(world, "acme")
    for name in ("acme/app", "acme/lib", "alice/x"):
        assert world.call("POST", "/repositories", {"name": name}, by="alice").status == 201
    return acme


def made(acme: Acme, place: str) -> dict[str, Any]:
    body = {"starts": "retention"}
    answer = acme.world.call("POST", f"{place}/triggers", body, by="alice")
    assert answer.status == 201, answer
    found: dict[str, Any] = answer.json
    return found


def send(
    acme: Acme,
    trigger: dict[str, Any],
    message: str = "msg_1",
    *,
    secret: str = "",
    age: float = 0,
    body: bytes = BODY,
    **fields: str,
) -> int:
    at = datetime.now(UTC) - timedelta(seconds=age)
    signature = Signer(secret or trigger["secret"]).sign(message, at, BODY.decode())
    headers = {
        "webhook-id": message,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": signature,
        **{name.replace("_", "-"): value for name, value in fields.items()},
    }
    path = "/hooks/" + trigger["url"].rpartition("/hooks/")[2]
    return acme.world.client.request("POST", path, body, headers).status


def started(acme: Acme) -> list[str]:
    database = acme.world.context.database
    names = {
        f"retention:{number}": name
        for number, name in database.run("SELECT id, name FROM repositories")
    }
    found = jobs.page(database, 0, 100, kind=retention.KIND)
    assert all(entry.subject == f"retention:{entry.data['repository']}" for entry in found)
    return sorted(names[entry.subject] for entry in found)


def test_a_message_starts_something_once(acme: Acme) -> None:
    trigger = made(acme, "/repositories/acme/app/-")
    assert started(acme) == []
    assert send(acme, trigger) == 202
    assert started(acme) == ["acme/app"]
    acme.world.context.database.run("DELETE FROM jobs")
    assert send(acme, trigger) == 202
    assert started(acme) == []
    assert send(acme, trigger, "msg_2") == 202
    assert send(acme, trigger, "msg_3") == 202
    assert started(acme) == ["acme/app"]
    [listed] = acme.world.call("GET", "/repositories/acme/app/-/triggers", by="alice").json["items"]
    assert listed["used_at"] is not None
    assert "secret" not in listed


def test_one_of_an_account_is_for_all_its_repositories(acme: Acme) -> None:
    trigger = made(acme, "/accounts/acme")
    assert send(acme, trigger) == 202
    assert started(acme) == ["acme/app", "acme/lib"]


def test_no_other_message_starts_anything(acme: Acme) -> None:
    trigger, other = made(acme, "/accounts/acme"), made(acme, "/accounts/alice")
    refused = [
        send(acme, trigger, secret=other["secret"]),
        send(acme, trigger, body=b"{}"),
        send(acme, trigger, age=301),
        send(acme, trigger, age=-301),
        send(acme, trigger, webhook_id="msg_2"),
        send(acme, trigger, webhook_id=""),
        send(acme, trigger, webhook_signature=""),
        send(acme, trigger, webhook_signature="v1,"),
        send(acme, trigger, webhook_signature="v1,AAAA v1a,BBBB nonsense"),
        send(acme, trigger, webhook_timestamp="soon"),
        send(acme, trigger, "m" * 257),
    ]
    assert refused == [401] * len(refused)
    for trigger_id in ("00000000-0000-0000-0000-000000000000", "x", "%00"):
        answer = acme.world.client.request("POST", f"/hooks/{trigger_id}", BODY)
        assert answer.status == 404
    assert started(acme) == []
    # What was refused may still come rightly.
    assert send(acme, trigger) == 202


def test_a_message_may_bear_several_signatures(acme: Acme) -> None:
    trigger = made(acme, "/accounts/acme")
    now = datetime.now(UTC)
    right = Signer(trigger["secret"]).sign("msg_1", now, BODY.decode())
    stranger = Signer(signatures.shown(signatures.new_secret())).sign("msg_1", now, BODY.decode())
    both = f"{stranger} {right}"
    at = str(int(now.timestamp()))
    assert send(acme, trigger, webhook_timestamp=at, webhook_signature=both) == 202


def test_one_that_was_taken_away_starts_nothing(acme: Acme) -> None:
    trigger = made(acme, "/accounts/acme")
    path = f"/accounts/acme/triggers/{trigger['id']}"
    assert acme.world.call("DELETE", path, by="alice").status == 204
    assert acme.world.call("DELETE", path, by="alice").status == 404
    assert send(acme, trigger) == 404


def test_a_suspended_accounts_start_nothing(acme: Acme) -> None:
    triggers = [made(acme, place) for place in ("/accounts/acme", "/repositories/acme/app/-")]
    database = acme.world.context.database
    users.suspend(database, acme.id, suspended=True, by="")
    assert [send(acme, each) for each in triggers] == [404, 404]
    users.suspend(database, acme.id, suspended=False, by="")
    assert [send(acme, each) for each in triggers] == [202, 202]


def test_it_starts_what_there_is(acme: Acme) -> None:
    answer = acme.world.call("POST", "/accounts/acme/triggers", {"starts": "war"}, by="alice")
    assert answer.status == 422


def test_a_secret_outlives_the_key_that_sealed_it(acme: Acme) -> None:
    trigger, context = made(acme, "/accounts/acme"), acme.world.context
    keys = Keys("another secret", context.settings.secret_key)
    triggers.expire(replace(context, keys=keys), jobs.Job(0, "", "", {}, 0, 0))
    alone = replace(context, keys=Keys("another secret"))
    renewed = replace(acme, world=replace(acme.world, context=alone, client=CoreClient(alone)))
    assert send(renewed, trigger) == 202
    assert send(acme, trigger) == 500
