"""Organisations: accounts that several users own together."""

from chalicelib.identity.users import Refused, checked_name
from chalicelib.metadata import accounts, audit, organisations
from chalicelib.metadata.database import Database, Transaction


def create(database: Database, name: str, owner_id: int | None, *, by: str) -> int:
    """Make an organisation that this user owns; gives its id. Raises ``Refused``."""
    checked_name(name)

    def work(transaction: Transaction) -> int:
        account = accounts.add(transaction, "organisation", name)
        if account is None:
            raise Refused("This name is taken.", "name", conflict=True)
        if owner_id is not None:
            organisations.add_member(transaction, account, owner_id, "owner")
        audit.add(transaction, "organisation.create", by, account=account, owner=owner_id)
        return account

    return database.transaction(work)
