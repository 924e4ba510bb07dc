"""Jobs: what is to happen later, what failed, and how much waits."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from chalicelib.api.operations import Call, Needs, Operation, Page, PagingByNumber, page
from chalicelib.api.problems import Problem
from chalicelib.jobs import administration
from chalicelib.metadata import jobs


class Jobs(PagingByNumber):
    """Which jobs: of one ``kind``, or in one ``state``."""

    kind: Annotated[str, msgspec.Meta(max_length=100, pattern=r"^[^\x00]*$")] = ""
    state: Literal["", "waiting", "running", "dead"] = ""


class Entry(msgspec.Struct):
    """A job. ``dead`` ones were given up, and stay until somebody retries or drops them; ``tries``
    counts how often it was begun since; ``error`` is what its last attempt failed with. It begins
    at ``due_at``; where it runs, its worker has to say by then that it lives."""

    id: int
    kind: str
    subject: str
    state: Literal["waiting", "running", "dead"]
    tries: int
    due_at: datetime
    created_at: datetime
    error: str
    data: dict[str, Any]


class Depth(msgspec.Struct):
    """How many jobs of a kind there are. ``age`` is for how many seconds the oldest has been due;
    ``failing`` have failed and are tried again. ``done``, ``failed`` (attempts) and ``given_up``
    count from the registry's beginning; workers add to them every few seconds."""

    kind: str
    waiting: int
    running: int
    failing: int
    dead: int
    age: float
    done: int
    failed: int
    given_up: int


def count_jobs(call: Call) -> list[Depth]:
    """Depth, age and failures of each kind."""
    return [Depth(*each) for each in jobs.depths(call.context.database)]


def list_jobs(call: Call) -> Page[Entry]:
    """Jobs, the oldest first."""
    query = call.query
    found = jobs.page(
        call.context.database,
        int(query.after or 0),
        query.limit + 1,
        kind=query.kind,
        state=query.state,
    )
    return page([_shown(each) for each in found], query.limit, lambda each: each.id)


def show_job(call: Call) -> Entry:
    """A job, and why it failed."""
    found = jobs.find(call.context.database, _id(call))
    if found is None:
        raise _missing()
    return _shown(found)


def retry_job(call: Call) -> None:
    """Have a job begin now that was given up or waits."""
    _change(call, administration.retry)


def drop_job(call: Call) -> None:
    """Forget a job."""
    _change(call, administration.drop)


def _change(call: Call, change: Callable[..., bool]) -> None:
    job, database = _id(call), call.context.database
    if change(database, job, by=call.subject.id):
        return
    if jobs.find(database, job) is None:
        raise _missing()
    raise Problem(409, "The job is running; wait until it has ended.")


def _id(call: Call) -> int:
    text = call.params["job"]
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise _missing()
    return int(text)


def _missing() -> Problem:
    return Problem(404, "There is no such job; it may have been done.")


def _shown(entry: jobs.Entry) -> Entry:
    return Entry(**entry._asdict())


_ALL = "/admin/jobs"
_ONE = f"{_ALL}/{{job}}"
OPERATIONS = (
    Operation("GET", _ALL, list_jobs, Needs.ADMINISTRATOR, "What is to happen later",
              query=Jobs, answer=Page[Entry]),
    Operation("GET", "/admin/job-counts", count_jobs, Needs.ADMINISTRATOR,
              "Depth, age and failures of each kind of job", answer=list[Depth]),
    Operation("GET", _ONE, show_job, Needs.ADMINISTRATOR, "A job, and why it failed",
              answer=Entry, problems=(404,)),
    Operation("POST", f"{_ONE}/retry", retry_job, Needs.ADMINISTRATOR,
              "Have a job begin now that was given up or waits", problems=(404, 409)),
    Operation("DELETE", _ONE, drop_job, Needs.ADMINISTRATOR, "Forget a job",
              problems=(404, 409)),
)  # fmt: skip
