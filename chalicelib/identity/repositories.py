"""Repositories as their owners see them: visibility, names, deletion."""

from chalicelib.identity.users import Refused
from chalicelib.metadata import audit, repositories
from chalicelib.metadata.database import Database, Transaction


def set_visibility(database: Database, name: str, *, public: bool, by: str) -> None:
    """Let everyone pull from a repository, or those alone who have a role in it. Raises
    ``Refused``."""

    def work(transaction: Transaction) -> None:
        found = repositories.set_public(transaction, name, public)
        if found is None:
            raise Refused(f"There is no repository {name}.", "name")
        audit.add(
            transaction,
            "repository.visibility",
            by,
            account=found.account,
            repository=found.id,
            public=public,
        )

    database.transaction(work)
