"""The audit log: every security event, added and never changed."""

import json
from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner


class Entry(NamedTuple):
    """One event. ``subject`` is who did it, ``account`` and ``repository`` whom and what it
    concerns: ids. ``by`` is what the subject is called now, and ``name`` what the repository is as
    long as it lies in that account's namespace; else None."""

    id: int
    at: Any
    event: str
    subject: str
    by: str | None
    account: int | None
    repository: int | None
    name: str | None
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
        "SELECT e.id, e.at, e.event, e.subject, s.name, e.account_id, e.repository_id, r.name,"
        " e.detail FROM audit e LEFT JOIN accounts n ON n.id = e.account_id"
        " LEFT JOIN accounts s"
        " ON s.id = CAST(substring(e.subject FROM '^account:([0-9]+)') AS bigint)"
        " LEFT JOIN repositories r"
        " ON r.id = e.repository_id AND split_part(r.name, '/', 1) = n.name"
        " WHERE (CAST(:before AS bigint) IS NULL OR e.id < :before)"
        " AND (CAST(:account AS bigint) IS NULL OR e.account_id = :account)"
        " ORDER BY e.id DESC LIMIT :count",
        count=count,
        before=before,
        account=account,
    )
    return [Entry(*row) for row in rows]
