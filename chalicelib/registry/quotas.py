"""Quotas: how many bytes and repositories an account may have, which is a namespace here: the first
component of its repositories' names. So they hold where there are no accounts, too.

Triggers count and refuse at the end of the transaction that would go beyond a quota, whoever began
it (``chalicelib.metadata.quotas``). A push is told earlier where that is certain.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chalicelib.context import Context
from chalicelib.http import Denied
from chalicelib.identity import Subject
from chalicelib.jobs import events
from chalicelib.metadata import accounts, audit, quotas
from chalicelib.metadata.database import Database, Transaction
from chalicelib.metadata.quotas import DEFAULT, Quota

MOST = (1 << 63) - 1
"""The largest limit, in bytes or in repositories."""


def put(
    database: Database, namespace: str, size: int | None, repositories: int | None, *, by: str
) -> Quota:
    """Give a namespace, or with ``DEFAULT`` all that have none of their own, a quota in bytes and
    in repositories; None: no limit. What is there already stays, however much it is. Nothing is
    pushed while it is counted. Raises ``Refused``."""
    _check(namespace)

    def work(transaction: Transaction) -> Quota:
        quotas.hold(transaction)
        quotas.put(transaction, namespace, size, repositories)
        quotas.count(transaction, namespace)
        _note(transaction, "set", namespace, by, bytes=size, repositories=repositories)
        return quotas.find(transaction, namespace)

    return database.transaction(work)


def remove(database: Database, namespace: str, *, by: str) -> bool:
    """Take away a namespace's own quota, or with ``DEFAULT`` that of all others; False where there
    is none. Raises ``Refused``."""
    _check(namespace)

    def work(transaction: Transaction) -> bool:
        quotas.hold(transaction)
        if not quotas.remove(transaction, namespace):
            return False
        quotas.count(transaction, namespace)
        _note(transaction, "unset", namespace, by)
        return True

    return database.transaction(work)


@contextmanager
def told(context: Context, repository: str, subject: Subject) -> Iterator[None]:
    """Tell those who want to know of a push that is refused here because of a quota."""
    try:
        yield
    except Denied as denied:
        if isinstance(denied.detail, dict) and "quota" in denied.detail:
            detail = {"refused": True, **denied.detail}
            if events.record(context.database, "quota", repository, subject.id, **detail):
                context.wake()
        raise


def _check(namespace: str) -> None:
    from chalicelib.identity.users import checked_name  # needed by no push and no pull

    if namespace != DEFAULT:
        checked_name(namespace)


def _note(
    transaction: Transaction, what: str, namespace: str, by: str, **limits: int | None
) -> None:
    account = accounts.by_name(transaction, namespace) if namespace else None
    detail: dict[str, Any] = {**limits, **({} if account else {"namespace": namespace})}
    audit.add(transaction, f"quota.{what}", by, account=account.id if account else None, **detail)
