"""The audit log: what happened to an account, or to the registry."""

from datetime import datetime
from typing import Annotated, Any

import msgspec

from chalicelib.api.operations import Call, Needs, Operation, Page, page
from chalicelib.metadata import audit


class Newest(msgspec.Struct):
    """A page of a list that begins with the newest; ``after`` is the ``next`` of the page
    before."""

    after: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 50


class Event(msgspec.Struct):
    """An event. ``subject`` is who did it, ``account`` and ``repository`` are ids of whom and what
    it concerns; ``by`` is what the subject is called, ``name`` what the repository is, as long as
    it lies in that account's namespace."""

    id: int
    at: datetime
    event: str
    subject: str
    by: str | None
    account: int | None
    repository: int | None
    name: str | None
    detail: dict[str, Any]


def list_account_events(call: Call) -> Page[Event]:
    """What happened to an account."""
    return _page(call, None if call.standing is None else call.standing.account)


def list_events(call: Call) -> Page[Event]:
    """What happened to the registry."""
    return _page(call, None)


def _page(call: Call, account: int | None) -> Page[Event]:
    query = call.query
    found = audit.page(call.context.database, query.limit + 1, before=query.after, account=account)
    return page([Event(**each._asdict()) for each in found], query.limit, lambda each: each.id)


OPERATIONS = (
    Operation("GET", "/accounts/{account}/audit", list_account_events, Needs.ACCOUNT_ADMIN,
              "What happened to an account", query=Newest, answer=Page[Event]),
    Operation("GET", "/admin/audit", list_events, Needs.ADMINISTRATOR,
              "What happened to the registry", query=Newest, answer=Page[Event]),
)  # fmt: skip
