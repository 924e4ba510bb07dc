"""Jobs in the API: who sees them, and what administrators do about those that failed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from chalicelib.jobs import GiveUp, Kind
from chalicelib.jobs.worker import Worker
from chalicelib.metadata import jobs
from tests.api.conftest import World, opened
from tests.servers import Postgres


@pytest.fixture
def world(postgres: Postgres, tmp_path: Path) -> Iterator[World]:
    """With three jobs: one was given up, one is tried again, one waits."""

    def perform(_: object, job: jobs.Job) -> None:
        if job.data["n"] == 1:
            raise GiveUp("The receiver is gone.")
        raise ValueError("not now")

    with opened(postgres, tmp_path) as found:
        for number in (1, 2):
            jobs.add(found.context.database, "test", {"n": number}, subject=f"s{number}")
        Worker(found.context, [Kind("test", perform)]).drain()
        jobs.add(found.context.database, "other", {"n": 3})
        yield found


def numbers(world: World, query: str = "") -> list[int]:
    answer = world.call("GET", f"/admin/jobs{query}", by="root")
    assert answer.status == 200, answer
    return [each["data"]["n"] for each in answer.json["items"]]


def test_they_are_listed_by_kind_and_state_and_in_pages(world: World) -> None:
    assert numbers(world) == [1, 2, 3]
    assert numbers(world, "?kind=test") == [1, 2]
    assert numbers(world, "?state=dead") == [1]
    assert numbers(world, "?state=waiting&kind=test") == [2]
    assert numbers(world, "?state=running") == []
    page = world.call("GET", "/admin/jobs?limit=2", by="root").json
    assert page["next"] == str(page["items"][-1]["id"])
    assert numbers(world, f"?limit=2&after={page['next']}") == [3]
    assert world.call("GET", "/admin/jobs?state=late", by="root").status == 422
    assert world.call("GET", "/admin/jobs?kind=%00", by="root").status == 422


def test_they_are_for_administrators(world: World) -> None:
    [job, *_] = jobs.page(world.context.database, 0, 1)
    for method, path in (
        ("GET", ""),
        ("GET", "/1"),
        ("POST", f"/{job.id}/retry"),
        ("DELETE", f"/{job.id}"),
    ):
        assert world.call(method, f"/admin/jobs{path}", by="alice").status == 403
        assert world.call(method, f"/admin/jobs{path}").status == 401
    assert world.call("GET", "/admin/job-counts", by="alice").status == 403
    assert len(numbers(world)) == 3


def test_one_that_failed_is_shown_retried_and_dropped(world: World) -> None:
    [dead] = jobs.page(world.context.database, 0, 1, state="dead")
    shown = world.call("GET", f"/admin/jobs/{dead.id}", by="root").json
    assert (shown["kind"], shown["subject"], shown["state"]) == ("test", "s1", "dead")
    assert (shown["error"], shown["tries"]) == ("The receiver is gone.", 1)

    assert world.call("POST", f"/admin/jobs/{dead.id}/retry", by="root").status == 204
    assert world.call("GET", f"/admin/jobs/{dead.id}", by="root").json["state"] == "waiting"
    assert world.call("DELETE", f"/admin/jobs/{dead.id}", by="root").status == 204
    assert numbers(world) == [2, 3]
    [drop, retry, *_] = world.call("GET", "/admin/audit", by="root").json["items"]
    assert (drop["event"], retry["event"]) == ("job.drop", "job.retry")
    assert drop["detail"] == retry["detail"] == {"job": dead.id, "kind": "test"}
    assert drop["by"] == "root"


@pytest.mark.parametrize("job", ["9", "0", "-1", "x", "99999999999999999999", "%C2%B2"])
def test_one_that_is_not_there(world: World, job: str) -> None:
    """A digit of another script is no number."""
    for method, path in (("GET", ""), ("POST", "/retry"), ("DELETE", "")):
        if job == "9":
            world.context.database.run("DELETE FROM jobs")
        answer = world.call(method, f"/admin/jobs/{job}{path}", by="root")
        assert (answer.status, b"may have been done" in answer.body) == (404, True), answer


def test_one_that_runs_is_left_alone(world: World) -> None:
    [job] = jobs.take(world.context.database, ["other"], 1, 30)
    for method, path in (("POST", "/retry"), ("DELETE", "")):
        answer = world.call(method, f"/admin/jobs/{job.id}{path}", by="root")
        assert (answer.status, b"is running" in answer.body) == (409, True), answer


def test_they_are_counted(world: World) -> None:
    answer = world.call("GET", "/admin/job-counts", by="root")
    assert answer.status == 200
    [other, test] = answer.json
    assert other["age"] >= 0
    assert (other["kind"], other["waiting"], other["done"]) == ("other", 1, 0)
    assert {name: test[name] for name in ("waiting", "running", "failing", "dead")} == {
        "waiting": 1,
        "running": 0,
        "failing": 1,
        "dead": 1,
    }
    assert (test["done"], test["failed"], test["given_up"]) == (0, 1, 1)
