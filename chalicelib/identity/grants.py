"""Grants: giving users, robots and teams a role in a repository or in a whole namespace."""

from chalicelib.metadata import audit, grants
from chalicelib.metadata.database import Database, Transaction
from chalicelib.metadata.grants import Grant, Grantee, Place
from chalicelib.metadata.robots import Role


def give(
    database: Database, place: Place, namespace: int | None, name: str, role: Role, *, by: str
) -> Grant | None:
    """Give somebody a role in the place of what they had by a grant there. ``namespace`` is the
    account whose namespace that is or lies in, if any. None where the name means nobody, or another
    account's robot or team: which of these there are is not told."""

    def work(transaction: Transaction) -> Grant | None:
        to = _grantee(transaction, namespace, name)
        if to is None:
            return None
        granted_at = grants.put(transaction, place, to, role)
        audit.add(
            transaction,
            "grant.give",
            by,
            account=namespace,
            repository=place.repository,
            kind=to.kind,
            grantee=to.id,
            role=role,
        )
        return Grant(name, to.kind, role, granted_at)

    return database.transaction(work)


def take(database: Database, place: Place, namespace: int | None, name: str, *, by: str) -> bool:
    """Take a grant away; False where there is none."""

    def work(transaction: Transaction) -> bool:
        to = grants.grantee(transaction, name)
        if to is None or not grants.remove(transaction, place, to):
            return False
        audit.add(
            transaction,
            "grant.take",
            by,
            account=namespace,
            repository=place.repository,
            kind=to.kind,
            grantee=to.id,
        )
        return True

    return database.transaction(work)


def _grantee(transaction: Transaction, namespace: int | None, name: str) -> Grantee | None:
    found = grants.grantee(transaction, name)
    return found if found is not None and found.owner in (None, namespace) else None
