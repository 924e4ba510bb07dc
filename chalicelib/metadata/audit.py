"""The audit log: every security event, added and never changed."""

import json
from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner


class Entry(NamedTuple):
    """One event. ``subject`` is who did it, ``account`` and ``repository`` whom and what it
    concerns: ids."""

    id: int
    at: Any
    event: str
    subject: str
    account: int | None
    repository: int | None
    detail: dict[str, Any]


def add(
    runner: Runner,
    event: str,
    subject: str,
    *,
    account: int | None = None,
    repository: int | None = None,
    **detail: Any,
) -> None:
    """Add an event, within the transaction that makes it. Details hold ids and choices: no name of
    a person, no email, no secret."""
    runner.run(
        "INSERT INTO audit (event, subject, account_id, repository_id, detail)"
        " VALUES (:event, :subject, :account, :repository, CAST(:detail AS jsonb))",
        event=event,
        subject=subject,
        account=account,
        repository=repository,
        detail=json.dumps(detail),
    )


def page(
    runner: Runner, count: int, before: int | None = None, account: int | None = None
) -> list[Entry]:
    """At most ``count`` events, the newest first, older than the one of the id ``before``; those
    that concern one account, or all."""
    rows = runner.run(
        "SELECT id, at, event, subject, account_id, repository_id, detail FROM audit"
        " WHERE (CAST(:before AS bigint) IS NULL OR id < :before)"
        " AND (CAST(:account AS bigint) IS NULL OR account_id = :account)"
        " ORDER BY id DESC LIMIT :count",
        count=count,
        before=before,
        account=account,
    )
    return [Entry(*row) for row in rows]
