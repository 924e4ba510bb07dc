"""Repositories as their owners see them: made, made visible, renamed, deleted."""

from functools import partial

from chalicelib.http import NameUnknown
from chalicelib.identity.users import Refused
from chalicelib.jobs import events
from chalicelib.metadata import audit, repositories
from chalicelib.metadata.database import Database, Transaction, UniqueViolation
from chalicelib.metadata.repositories import New, Owned
from chalicelib.registry.names import is_name

_TAKEN = "There is a repository of this name."


def checked_name(name: str) -> str:
    """A name that a repository can be given. Raises ``Refused``."""
    if not is_name(name):
        raise Refused(
            "A repository's name is made of lower-case letters and digits, with single separators"
            " (. _ __ -) between them, and slashes between its components.",
            "name",
        )
    return name


def create(
    database: Database, name: str, new: New, description: str, *, public: bool | None
) -> None:
    """Make an empty repository. Without ``public`` it is as its account has chosen, or as ``new``
    says. A name that was another repository's leads there no longer. Raises ``Refused``."""
    checked_name(name)

    def work(transaction: Transaction) -> None:
        repositories.claim(transaction, name)
        made = repositories.add(transaction, name, new, description)
        if made is None:
            raise Refused(_TAKEN, "name", conflict=True)
        if public is not None and public is not made.public:
            _set_public(transaction, Owned(made.id, made.account), public, new.created_by)

    database.transaction(work)


def change(
    database: Database, name: str, *, public: bool | None, description: str | None, by: str
) -> None:
    """Change what is given: whether everyone may pull from a repository, or those alone who have a
    role in it; and its description. Raises ``NameUnknown``."""

    def work(transaction: Transaction) -> None:
        found = _held(transaction, name)
        if public is not None:
            _set_public(transaction, found, public, by)
        if description is not None:
            repositories.describe(transaction, found.id, description)

    database.transaction(work)


def rename(database: Database, before: str, name: str, *, by: str) -> None:
    """Give a repository another name, which may be in another namespace: the former one leads
    there from now on. Raises ``Refused`` and ``NameUnknown``."""
    checked_name(name)

    def work(transaction: Transaction) -> None:
        found = _held(transaction, before)
        if name == before:
            return
        now = repositories.rename(transaction, found.id, before, name)
        note = partial(
            audit.add, transaction, "repository.rename", by, repository=found.id,
            before=_path(before), after=_path(name),
        )  # fmt: skip
        for account in dict.fromkeys((found.account, now.account)):
            note(account=account, to_account=now.account)

    try:
        database.transaction(work)
    except UniqueViolation:
        raise Refused(_TAKEN, "name", conflict=True) from None


def delete(database: Database, name: str, *, by: str) -> None:
    """Delete a repository and all that is in it. Raises ``NameUnknown``."""

    def work(transaction: Transaction) -> None:
        found = _held(transaction, name)
        events.record(transaction, "delete", name, by)
        repositories.delete(transaction, found.id, name)
        audit.add(
            transaction, "repository.delete", by,
            account=found.account, repository=found.id, path=_path(name),
        )  # fmt: skip

    database.transaction(work)


def _held(transaction: Transaction, name: str) -> Owned:
    found = repositories.hold(transaction, name)
    if found is None:
        raise NameUnknown(f"There is no repository {name}.")
    return found


def _set_public(transaction: Transaction, of: Owned, public: bool, by: str) -> None:
    if repositories.set_public(transaction, of.id, public):
        audit.add(
            transaction, "repository.visibility", by,
            account=of.account, repository=of.id, public=public,
        )  # fmt: skip


def _path(name: str) -> str:
    """What follows the account in a repository's name, for the audit log, which names nobody."""
    return name.partition("/")[2]
