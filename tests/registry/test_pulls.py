"""Pulls are counted, without a statement in the request that pulls."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from chalicelib.context import Context
from chalicelib.digests import pack
from chalicelib.metadata import pulls as rows
from chalicelib.metadata.database import Database
from chalicelib.metadata.pulls import Pulled
from chalicelib.registry import pulls
from chalicelib.registry.pulls import Gathered
from tests.client import CoreClient, HTTPClient, push_image, push_manifest
from tests.images import make_image, make_index
from tests.metadata.relay import Cut, Relay
from tests.servers import Postgres, Registry

NAME = "test/pulls"


class Watched:
    """A database that counts the statements that pass."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.statements = 0

    def run(self, sql: str, **parameters: Any) -> list[list[Any]]:
        self.statements += 1
        return self._database.run(sql, **parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


def total(context: Context, name: str) -> int:
    found = rows.of_repository(context.database, name)
    assert found is not None
    return found.pulls


def by_tag(context: Context, name: str) -> dict[str, tuple[int, int]]:
    """What each tag counts, and its manifest."""
    found = rows.of_tags(context.database, name, "", 100)
    return {each.tag: (each.pulls, each.manifest_pulls) for each in found}


def by_manifest(context: Context, name: str) -> dict[bytes, int]:
    return {each.digest: each.pulls for each in rows.of_manifests(context.database, name, b"", 100)}


def pull(client: CoreClient | HTTPClient, name: str, reference: str) -> None:
    assert client.request("GET", f"/v2/{name}/manifests/{reference}").status == 200


@pytest.fixture
def context(file_context: Context) -> Context:
    """The functions with counters that nobody else has noted anything in."""
    return replace(file_context, pulls=Gathered(file_context.database))


@pytest.fixture
def client(context: Context) -> CoreClient:
    return CoreClient(context)


def test_a_pull_is_a_get_that_gives_the_manifest(
    context: Context, client: CoreClient, repository: str
) -> None:
    image = make_image((10,), "pulls")
    digest = push_image(client, repository, image, "1")
    path = f"/v2/{repository}/manifests"
    for _ in range(3):
        pull(client, repository, "1")
    assert client.request("HEAD", f"{path}/1").status == 200
    assert (
        client.request("GET", f"{path}/1", headers={"If-None-Match": f'"{digest}"'}).status == 304
    )
    assert client.request("GET", f"{path}/2").status == 404
    assert total(context, repository) == 0
    context.pulls.flush()
    assert by_tag(context, repository) == {"1": (3, 3)}
    assert by_manifest(context, repository) == {pack(digest): 3}
    assert total(context, repository) == 3
    context.pulls.flush()
    assert total(context, repository) == 3


def test_a_pull_by_digest_counts_for_the_tags_that_point_there(
    context: Context, client: CoreClient, repository: str
) -> None:
    image = make_image((10,), "by digest")
    digest = push_image(client, repository, image, "1")
    push_image(client, repository, image, "latest")
    push_image(client, repository, make_image((10,), "other"), "2")
    pull(client, repository, "1")
    pull(client, repository, digest)
    context.pulls.flush()
    assert by_tag(context, repository) == {"1": (2, 2), "2": (0, 0), "latest": (1, 2)}
    assert total(context, repository) == 2


def test_an_image_for_several_platforms_is_pulled_once(
    context: Context, client: CoreClient, repository: str
) -> None:
    images = [make_image((10,), f"platform {number}") for number in range(2)]
    children = [push_image(client, repository, image, "") for image in images]
    index = make_index(images)
    assert push_manifest(client, repository, index, "1").status == 201
    pull(client, repository, "1")
    pull(client, repository, children[0])
    context.pulls.flush()
    assert total(context, repository) == 1
    assert by_manifest(context, repository) == {
        pack(index.digest): 1, pack(children[0]): 1, pack(children[1]): 0
    }  # fmt: skip


def test_a_pull_costs_no_statement(context: Context, repository: str) -> None:
    push_image(CoreClient(context), repository, make_image((10,), "cost"), "1")
    watched = Watched(context.database)
    pull(CoreClient(replace(context, database=watched)), repository, "1")  # type: ignore[arg-type]
    assert watched.statements == 1


def test_the_last_pull_is_when_it_was(context: Context, repository: str) -> None:
    digest = push_image(CoreClient(context), repository, make_image((10,), "when"), "1")
    for age in (100, 1000):
        rows.add(context.database, [Pulled(repository, "1", pack(digest), "", 1, age)])
    [[age]] = context.database.run(
        "SELECT CAST(extract(epoch FROM now() - p.pulled_at) AS float8) FROM tag_pulls p"
        " JOIN repositories r ON r.id = p.repository_id WHERE r.name = :name",
        name=repository,
    )
    assert 100 <= age < 130
    assert total(context, repository) == 2


def test_what_is_gone_is_not_counted(context: Context, client: CoreClient, repository: str) -> None:
    digest = push_image(client, repository, make_image((10,), "gone"), "1")
    other = push_image(client, repository, make_image((10,), "stays"), "2")
    pull(client, repository, digest)
    pull(client, repository, other)
    context.pulls.flush()
    pull(client, repository, digest)
    pull(client, repository, other)
    assert client.request("DELETE", f"/v2/{repository}/manifests/{digest}").status == 202
    context.pulls.count("test/never", "1", pack(digest), "")
    context.pulls.flush()
    assert by_tag(context, repository) == {"2": (2, 2)}
    # A repository remembers what its manifests counted before they went.
    assert total(context, repository) == 3


def test_many_count_at_once(context: Context, client: CoreClient, repository: str) -> None:
    """Several processes write the same counters, and none of them is lost."""
    for number in range(4):
        push_image(client, repository, make_image((10,), f"many {number}"), f"{number}")
    counters = [Gathered(context.database) for _ in range(4)]

    def pulling(counter: Gathered) -> None:
        mine = CoreClient(replace(context, pulls=counter))
        for number in range(40):
            pull(mine, repository, f"{number % 4}")
            counter.flush()

    threads = [threading.Thread(target=pulling, args=[each]) for each in counters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert by_tag(context, repository) == {f"{number}": (40, 40) for number in range(4)}
    assert total(context, repository) == 160


@pytest.fixture
def noted(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    return lambda: [record.message for record in caplog.records]


@pytest.fixture
def relay(postgres: Postgres) -> Iterator[Relay]:
    """A line to Postgres that can be cut."""
    relay = Relay(postgres.port)
    yield relay
    relay.close()


def test_while_the_database_is_down_pulls_are_kept_within_a_bound(
    context: Context,
    client: CoreClient,
    repository: str,
    monkeypatch: pytest.MonkeyPatch,
    noted: Callable[[], list[str]],
    relay: Relay,
    postgres: Postgres,
) -> None:
    monkeypatch.setattr(pulls, "MOST", 2)
    digests = [
        pack(push_image(client, repository, make_image((10,), f"kept {number}"), f"{number}"))
        for number in range(3)
    ]
    url = context.settings.database_url.replace(f":{postgres.port}/", f":{relay.port}/")
    counter = Gathered(Database(url))
    for _ in range(2):
        relay.cut = Cut(b"COMMIT", delivered=False)
        for number, digest in enumerate(digests):
            counter.count(repository, f"{number}", digest, "")
        counter.flush()
    assert any("counted later" in line for line in noted())
    assert relay.cuts == 2
    counter.flush()
    assert by_tag(context, repository) == {"0": (2, 2), "1": (2, 2), "2": (0, 0)}
    assert [line for line in noted() if "not counted" in line] == [
        "1 of the pulls were not counted: too many different ones wait"
    ] * 2


@pytest.fixture
def own(serve: Callable[..., Registry]) -> Registry:
    """A registry whose end is the test's own."""
    return serve(OPENREGISTRY_WORKERS="2")


def test_a_registry_that_is_told_to_end_writes_down_what_it_counted(
    own: Registry, postgres: Postgres
) -> None:
    client = HTTPClient(own.host)
    push_image(client, NAME, make_image((10,), "ends"), "1")
    for _ in range(10):
        pull(HTTPClient(own.host), NAME, "1")
    own.stop()
    database = own.settings["OPENREGISTRY_DATABASE_URL"].rpartition("/")[2]
    assert postgres.query("SELECT pulls FROM repository_pulls", database) == [[10]]


def test_a_registry_writes_down_every_few_seconds(own: Registry, postgres: Postgres) -> None:
    push_image(HTTPClient(own.host), NAME, make_image((10,), "goes on"), "1")
    pull(HTTPClient(own.host), NAME, "1")
    database = own.settings["OPENREGISTRY_DATABASE_URL"].rpartition("/")[2]
    end = time.monotonic() + 20
    while postgres.query("SELECT pulls FROM repository_pulls", database) != [[1]]:
        assert time.monotonic() < end
        time.sleep(0.1)


def webhook(context: Context, repository: str, *events: str) -> None:
    context.database.run(
        "INSERT INTO webhooks (id, repository_id, url, events, format, secret, created_by)"
        " SELECT gen_random_uuid(), id, 'https://example.org', CAST(:events AS text[]),"
        " 'cloudevents', '', '' FROM repositories WHERE name = :name",
        name=repository,
        events=list(events),
    )


def told(context: Context, repository: str) -> list[dict[str, Any]]:
    """The events that are to be delivered."""
    found = context.database.run(
        "SELECT d.event FROM webhook_deliveries d JOIN webhooks w ON w.id = d.webhook_id"
        " JOIN repositories r ON r.id = w.repository_id WHERE r.name = :name ORDER BY d.number",
        name=repository,
    )
    return [event for (event,) in found]


def test_webhooks_are_told_how_often_whom_and_when(
    context: Context, client: CoreClient, repository: str
) -> None:
    digest = push_image(client, repository, make_image((10,), "told"), "1")
    other = f"{repository}-other"
    push_image(client, other, make_image((10,), "told"), "1")
    webhook(context, repository, "pull")
    webhook(context, other, "push")
    for name in (repository, repository, other):
        pull(client, name, "1")
    context.pulls.count(repository, "", pack(digest), "account:7")
    context.pulls.flush()
    assert told(context, other) == []
    first, second = sorted(told(context, repository), key=lambda event: str(event["subject"]))
    assert {key: first[key] for key in ("kind", "repository", "subject")} == {
        "kind": "pull", "repository": repository, "subject": ""
    }  # fmt: skip
    at = datetime.fromisoformat(first["detail"].pop("pulled_at"))
    assert abs((datetime.now(UTC) - at).total_seconds()) < 30
    assert first["detail"] == {"digest": digest, "tag": "1", "count": 2}
    assert (second["subject"], second["detail"]["count"]) == ("account:7", 1)
    assert "tag" not in second["detail"]


def test_workers_are_woken_where_there_are_jobs(context: Context, repository: str) -> None:
    woken: list[None] = []
    client = CoreClient(replace(context, wake=lambda: woken.append(None)))
    path = f"/v2/{repository}/manifests"
    push_image(client, repository, make_image((10,), "woken"), "1")
    assert woken == []
    webhook(context, repository, "push", "delete")
    digest = push_image(client, repository, make_image((10,), "woken"), "2")
    assert len(woken) == 1
    for reference in ("2", digest):
        assert client.request("DELETE", f"{path}/{reference}").status == 202
    assert len(woken) == 3
