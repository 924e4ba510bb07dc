"""Webhooks: whose they are, who may see them, and what a push has them told."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from standardwebhooks import Webhook as Verifier

from chalicelib.jobs.kinds import KINDS
from chalicelib.jobs.worker import Worker
from chalicelib.registry import webhooks
from tests.accounts import command
from tests.api.acme import Acme, As, add_organisation, add_token, add_user, call, events
from tests.api.conftest import World
from tests.client import CoreClient, push_image
from tests.images import make_image
from tests.jobs import receiver
from tests.jobs.receiver import Receiver

URL = "https://hooks.example.org/registry"
NEW = {"url": URL, "events": ["push", "tag"]}


@pytest.fixture
def server() -> Iterator[Receiver]:
    with closing(Receiver()) as started:
        yield started


@pytest.fixture
def acme(world: World, server: Receiver) -> Acme:
    settings = replace(world.context.settings, private_webhooks=(server.origin,))
    context = replace(world.context, settings=settings)
    world = replace(world, context=context, client=CoreClient(context))
    acme = add_organisation(world, "acme")
    answer = world.call("POST", "/repositories", {"name": "acme/app"}, by="alice")
    assert answer.status == 201
    return acme


PLACES = ["/accounts/acme", "/repositories/acme/app/-"]


def work(acme: Acme) -> None:
    """Deliver all there is, each at least once."""
    database = acme.world.context.database
    kinds = [kind for kind in KINDS if kind.every is None]
    for _ in range(30):
        Worker(acme.world.context, kinds).drain()
        if not database.run("SELECT FROM jobs WHERE tries = 0"):
            return
        database.run("UPDATE jobs SET due_at = now() WHERE tries = 0")
    raise AssertionError("deliveries are put off for ever")


def made(acme: Acme, place: str, **body: Any) -> dict[str, Any]:
    answer = acme.world.call("POST", f"{place}/webhooks", {**NEW, **body}, by="alice")
    assert answer.status == 201, answer
    found: dict[str, Any] = answer.json
    return found


def put_manifest(acme: Acme, name: str, tag: str, seed: int = 1) -> str:
    client = As(acme.world.client, "alice")
    return push_image(client, name, make_image([100], seed=seed), tag)


@pytest.mark.parametrize("place", PLACES)
def test_a_webhooks_life(acme: Acme, place: str) -> None:
    hook = made(acme, place)
    one = f"{place}/webhooks/{hook['id']}"
    secret = hook.pop("secret")
    assert secret.startswith("whsec_")
    assert hook["enabled"] is True
    assert (hook["format"], hook["events"]) == ("cloudevents", ["push", "tag"])
    world = acme.world
    assert world.call("GET", one, by="alice").json == hook
    assert world.call("GET", f"{place}/webhooks", by="alice").json["items"] == [hook]

    changes = {"events": ["delete"], "format": "docker", "enabled": False}
    changed = world.call("PATCH", one, changes, by="alice").json
    assert (changed["events"], changed["format"], changed["url"]) == (["delete"], "docker", URL)
    assert (changed["enabled"], changed["disabled_reason"]) == (False, "")
    changed = world.call("PATCH", one, {"enabled": True}, by="alice").json
    assert (changed["enabled"], changed["disabled_at"]) == (True, None)

    rotated = world.call("POST", f"{one}/secret", by="alice")
    assert rotated.status == 200
    assert rotated.json["secret"] not in ("", secret)
    assert world.call("GET", one, by="alice").json["rotating_until"] is not None

    assert world.call("DELETE", one, by="alice").status == 204
    assert world.call("GET", one, by="alice").status == 404
    assert world.call("DELETE", one, by="alice").status == 404
    told = [event for event, _, detail in events(world, acme.id) if "webhook" in detail]
    assert told == [
        "webhook.create", "webhook.change", "webhook.change", "webhook.rotate", "webhook.delete"
    ]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_push_is_told(acme: Acme, place: str, server: Receiver) -> None:
    hook = made(acme, place, url=f"{server.origin}/here")
    first = put_manifest(acme, "acme/app", "v1", 1)
    second = put_manifest(acme, "acme/app", "v1", 2)
    put_manifest(acme, "acme/app", "v1", 2)
    work(acme)
    verifier = Verifier(hook["secret"])
    told = [verifier.verify(each.body, each.headers) for each in server.received]
    pushes = [each["data"] for each in told if each["type"] == "org.openregistry.push"]
    moves = [each["data"] for each in told if each["type"] == "org.openregistry.tag"]
    assert sorted(each["digest"] for each in pushes) == sorted([first, second, second])
    assert all(each["tags"] == ["v1"] and each["size"] > 0 for each in pushes)
    assert sorted((each["previous"] or "", each["digest"]) for each in moves) == [
        ("", first),
        (first, second),
    ]
    assert {each["actor"]["name"] for each in pushes} == {"alice"}


def test_deletions_are_told(acme: Acme, server: Receiver) -> None:
    made(acme, "/accounts/acme", url=server.origin, events=["delete", "tag"])
    first = put_manifest(acme, "acme/app", "v1", 1)
    put_manifest(acme, "acme/app", "v2", 1)
    work(acme)
    server.received.clear()
    client = As(acme.world.client, "alice")
    assert client.request("DELETE", "/v2/acme/app/manifests/v1").status == 202
    assert client.request("DELETE", f"/v2/acme/app/manifests/{first}").status == 202
    assert acme.world.call("DELETE", "/repositories/acme/app", by="alice").status == 204
    work(acme)
    told = [json.loads(each.body) for each in server.received]
    found = [
        (each["type"].rpartition(".")[2], each["data"].get("tag"), each["data"].get("digest"))
        for each in told
    ]
    assert sorted(found, key=str) == sorted(
        [
            ("delete", "v1", first),
            ("tag", "v1", None),
            ("delete", None, first),
            ("tag", "v2", None),
            ("delete", None, None),
        ],
        key=str,
    )


def test_history_and_redelivery(acme: Acme, server: Receiver) -> None:
    place = "/repositories/acme/app/-"
    server.behave = receiver.first(receiver.status(400, b"what?"), receiver.status(200, b"ah"))
    hook = made(acme, place, url=server.origin)
    one, world = f"{place}/webhooks/{hook['id']}", acme.world
    sent = world.call("POST", f"{one}/test", by="alice")
    assert sent.status == 202
    work(acme)
    [delivery] = world.call("GET", f"{one}/deliveries", by="alice").json["items"]
    assert delivery["id"] == sent.json["delivery"]
    assert (delivery["state"], delivery["event"], delivery["attempts"]) == ("failed", "ping", 1)
    shown = f"{one}/deliveries/{delivery['id']}"
    again = world.call("POST", f"{shown}/redeliver", by="alice")
    assert (again.status, again.json["delivery"]) == (202, delivery["id"])
    assert world.call("POST", f"{shown}/redeliver", by="alice").status == 409
    work(acme)
    detail = world.call("GET", shown, by="alice").json
    assert detail["state"] == "delivered"
    assert [(each["status"], each["answer"]) for each in detail["history"]] == [
        (400, "what?"),
        (200, "ah"),
    ]
    assert all(0 < each["seconds"] < 10 for each in detail["history"])
    for request in detail["history"]:
        assert delivery["id"] in request["request"]
        assert hook["secret"] not in request["request"]
    for _ in range(3):
        world.call("POST", f"{one}/test", by="alice")
    pages = world.call("GET", f"{one}/deliveries?limit=3", by="alice").json
    rest = world.call("GET", f"{one}/deliveries?limit=3&after={pages['next']}", by="alice").json
    assert (len(pages["items"]), len(rest["items"]), rest["next"]) == (3, 1, None)
    assert rest["items"][0]["id"] == delivery["id"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"url": "http://hooks.example.org"}, "url"),
        ({"url": "https://127.1/x"}, "url"),
        ({"url": "https://localhost"}, "url"),
        ({"url": "https://user:password@hooks.example.org"}, "url"),
        ({"url": "ftp://hooks.example.org"}, "url"),
        ({"events": []}, "events"),
        ({"events": ["psuh"]}, "events[0]"),
        ({"format": "xml"}, "format"),
    ],
)
def test_what_cannot_be_is_refused(acme: Acme, body: dict[str, Any], field: str) -> None:
    for place in PLACES:
        answer = acme.world.call("POST", f"{place}/webhooks", {**NEW, **body}, by="alice")
        assert answer.status == 422, answer
        assert answer.json["errors"][0]["field"] == field


def test_there_are_so_many_at_most(acme: Acme, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "MOST", 2)
    for _ in range(2):
        made(acme, PLACES[1])
    answer = acme.world.call("POST", f"{PLACES[1]}/webhooks", NEW, by="alice")
    assert answer.status == 409
    made(acme, PLACES[0])


def requests(place: str, hook: str, delivery: str) -> list[tuple[str, str, Any]]:
    """Every operation on a webhook of a place."""
    one = f"{place}/webhooks/{hook}"
    return [
        ("POST", f"{place}/webhooks", NEW),
        ("GET", f"{place}/webhooks", None),
        ("GET", one, None),
        ("PATCH", one, {"enabled": False}),
        ("DELETE", one, None),
        ("POST", f"{one}/secret", None),
        ("POST", f"{one}/test", None),
        ("GET", f"{one}/deliveries", None),
        ("GET", f"{one}/deliveries/{delivery}", None),
        ("POST", f"{one}/deliveries/{delivery}/redeliver", None),
        ("POST", f"{place}/triggers", {"starts": "retention"}),
        ("GET", f"{place}/triggers", None),
        ("DELETE", f"{place}/triggers/{hook}", None),
    ]


def test_others_have_no_part_in_it(acme: Acme) -> None:
    """Neither members nor those who may push, nobody, strangers, nor tokens without the scope; and
    a webhook is found at its own place alone."""
    world = acme.world
    role = {"role": "write"}
    assert world.call("PUT", "/repositories/acme/app/-/grants/bob", role, by="alice").status == 200
    token = add_token(
        world, world.ids["alice"], "account:acme:read", "repository:acme/app:push,pull"
    )
    add_user(world, "carol")
    for place in PLACES:
        hook = made(acme, place)["id"]
        sent = world.call("POST", f"{place}/webhooks/{hook}/test", by="alice").json["delivery"]
        for method, path, body in requests(place, hook, sent):
            assert world.call(method, path, body).status in (401, 404), path
            assert world.call(method, path, body, by="bob").status == 403, path
            assert world.call(method, path, body, by="carol").status in (403, 404), path
            assert call(world, token, method, path, body).status in (403, 404), path
        assert world.call("GET", f"{place}/webhooks/{hook}", by="alice").json["enabled"]
        elsewhere = [other for other in (*PLACES, "/accounts/alice") if other != place]
        for other in elsewhere:
            for method, path, body in requests(other, hook, sent):
                if hook in path:
                    assert world.call(method, path, body, by="alice").status == 404, path
    robot = world.call("POST", "/accounts/acme+ci/webhooks", NEW, by="alice")
    assert robot.status == 404


def test_they_go_with_whose_they_are(acme: Acme) -> None:
    world = acme.world
    database = world.context.database

    def count() -> int:
        [[found]] = database.run(
            "SELECT (SELECT count(*) FROM webhooks) + (SELECT count(*) FROM triggers)"
        )
        return int(found)

    for place in PLACES:
        made(acme, place)
        answer = world.call("POST", f"{place}/triggers", {"starts": "retention"}, by="alice")
        assert answer.status == 201
    assert count() == 4
    renamed = world.call("POST", "/repositories/acme/app/-/rename", {"name": "acme/b"}, by="alice")
    assert (renamed.status, count()) == (204, 4)
    # In another namespace they would tell its secrets to whoever was here before.
    moved = world.call("POST", "/repositories/acme/b/-/rename", {"name": "alice/b"}, by="alice")
    assert (moved.status, count()) == (204, 2)
    assert world.call("DELETE", "/organisations/acme", by="alice").status == 204
    assert count() == 0


def test_owners_are_written_to_when_it_is_disabled(acme: Acme, server: Receiver) -> None:
    from tests.api.acme import mails

    server.behave = receiver.status(410)
    for place in PLACES:
        made(acme, place, url=f"{server.origin}/?{place}")
    put_manifest(acme, "acme/app", "v1")
    work(acme)
    found = mails(acme.world)
    texts = [str(mail.get_content()) for mail in found if "webhook" in str(mail["Subject"])]
    assert len(texts) == 2
    assert all(f"{server.origin}/?{place}" in "".join(texts) for place in PLACES)
    assert all("410" in text for text in texts)
    told = [event for event, by, _ in events(acme.world, acme.id) if by == "system"]
    assert told == ["webhook.disable", "webhook.disable"]


@pytest.mark.long
def test_an_operator_looks_after_them(acme: Acme) -> None:
    world = acme.world
    settings = {
        "OPENREGISTRY_ACCESS": "accounts",
        "OPENREGISTRY_DATABASE_URL": world.context.settings.database_url,
        "OPENREGISTRY_DATA_DIR": str(world.context.settings.data_dir),
        "OPENREGISTRY_SECRET_KEY": world.context.settings.secret_key,
    }
    where = ("--account", "acme")
    hook = command(settings, "webhook", "add", URL, "--event", "push", *where)
    assert hook["secret"].startswith("whsec_")
    assert command(settings, "webhook", "disable", hook["id"], *where)["enabled"] is False
    sent = command(settings, "webhook", "test", hook["id"], *where)["delivery"]
    [delivery] = command(settings, "webhook", "deliveries", hook["id"], *where)
    assert (delivery["id"], delivery["state"]) == (sent, "waiting")
    shown = command(settings, "webhook", "delivery", hook["id"], sent, *where)
    assert shown["history"] == []
    command(settings, "webhook", "remove", hook["id"], *where)
    assert command(settings, "webhook", "list", *where) == []
