"""`openregistry resolve`, as an operator types it."""

import threading
from dataclasses import replace
from typing import NamedTuple

import pytest

from chalicelib.context import Context
from chalicelib.jobs.kinds import KINDS
from chalicelib.jobs.worker import Worker
from chalicelib.metadata import resolver_copies, resolver_progress
from tests.client import CoreClient, push_image
from tests.identity.test_command import Desk
from tests.images import Image, make_image
from tests.resolvers.copies import RESOLVING
from tests.resolvers.memory import Memory


class Place(NamedTuple):
    """Where an operator sits, a network, and the images that were pushed."""

    desk: Desk
    context: Context
    memory: Memory
    images: list[Image]


@pytest.fixture
def place(jobs_context: Context) -> Place:
    settings = jobs_context.settings
    desk = Desk(
        {
            "OPENREGISTRY_DATABASE_URL": settings.database_url,
            "OPENREGISTRY_DATA_DIR": str(settings.data_dir),
            "OPENREGISTRY_SECRET_KEY": settings.secret_key,
        }
    )
    context = replace(jobs_context, settings=replace(settings, new_repositories="public"))
    memory = context.resolvers.own["memory"] = Memory()
    images = [make_image([10], seed=f"command{number}") for number in range(2)]
    for number, image in enumerate(images):
        push_image(CoreClient(context), f"account{number}/image", image, "latest")
    context.database.run("UPDATE repositories SET resolvers = '{memory}'")
    context.database.run("DELETE FROM jobs")
    return Place(desk, context, memory, images)


def work(place: Place) -> None:
    Worker(place.context, RESOLVING).drain()


def test_what_was_pushed_before_is_put_looked_at_and_retried(place: Place) -> None:
    say, read = place.desk.say, place.desk.json
    assert "looked through by workers" in say("resolve", "backfill", "--account", "account0")
    assert resolver_progress.outstanding(place.context.database) == 1
    work(place)
    status = read("resolve", "status", "--repository", "account0/image")
    size = sum(len(each.data) for each in (*place.images[0].blobs, place.images[0].manifest))
    assert status["copies"] == [
        {"resolver": "memory", "state": "there", "copies": 3, "size": size, "failing": 0}
    ]
    [tag] = status["tags"]
    assert (tag["tag"], tag["digest"], tag["state"]) == (
        "latest", place.images[0].manifest.digest, "there"
    )  # fmt: skip
    assert tag["cid"] in say("resolve", "status", "--repository", "account0/image")

    place.memory.lie = tag["cid"]
    stop = threading.Event()
    working = threading.Thread(target=Worker(place.context, RESOLVING).run, args=[stop])
    working.start()
    try:
        done = place.desk.run("resolve", "backfill", "--all", "--wait")
        assert (done.returncode, done.stdout) == (1, b"3 copies are there, 3 were given up\n")
        assert done.stderr.startswith(b"openregistry: ")
        assert b"3 failing" in done.stderr or b"to look at" in done.stderr
        lines = say("resolve", "status", "--resolver", "memory").splitlines()
        assert sum("given up" in line and "has the CID" in line for line in lines) == 3
        place.memory.lie = ""
        assert say("resolve", "retry", "--all") == "3 jobs begin now\n"
        assert read("resolve", "backfill", "--all", "--wait") == {
            "repositories": 2, "there": 6, "given_up": 0
        }  # fmt: skip
    finally:
        stop.set()
        working.join()
    assert resolver_progress.failures(place.context.database) == []


def test_what_a_network_has_lost_is_looked_for_and_put_again(place: Place) -> None:
    place.desk.say("resolve", "backfill", "--all")
    work(place)
    kept = dict(place.memory.kept)
    place.memory.kept.clear()
    assert "3 copies are" in place.desk.say("resolve", "check", "--repository", "account0/image")
    assert place.desk.json("resolve", "check", "--all") == {"copies": 6}
    Worker(place.context, [kind for kind in KINDS if kind.name == resolver_copies.CHECK]).drain()
    work(place)
    assert place.memory.kept == kept


def test_what_cannot_be(place: Place) -> None:
    refused = place.desk.refused("resolve", "retry", "--repository", "nobody")
    assert refused == "there is no repository nobody"
    assert "no repository nobody/" in place.desk.refused(
        "resolve", "backfill", "--account", "nobody"
    )
    assert place.desk.run("resolve", "backfill", "--all", "--account", "a").returncode == 2
