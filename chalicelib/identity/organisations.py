"""Organisations: accounts that several users own together, their members and their teams.

There is always an owner. Whoever would be the last one to go is refused, and two who go at once
wait for each other: each of these transactions locks the owners first.
"""

from typing import Any

from chalicelib.identity.users import Refused, checked_name
from chalicelib.metadata import accounts, audit, organisations, teams
from chalicelib.metadata.database import Database, Transaction, UniqueViolation
from chalicelib.metadata.organisations import Role
from chalicelib.metadata.teams import Team

_LAST = "This is the only owner: make somebody else one first."


def create(database: Database, name: str, owner_id: int | None, *, by: str) -> int:
    """Make an organisation that this user owns; gives its id. Raises ``Refused``."""
    checked_name(name)

    def work(transaction: Transaction) -> int:
        account = accounts.add(transaction, "organisation", name, adopts=by == "operator")
        if account is None:
            raise Refused("This name is taken.", "name", conflict=True)
        if owner_id is not None:
            organisations.add_member(transaction, account, owner_id, "owner")
        audit.add(transaction, "organisation.create", by, account=account, owner=owner_id)
        return account

    return database.transaction(work)


def change(database: Database, organisation_id: int, changes: dict[str, Any], *, by: str) -> None:
    """Change settings: ``member_role``, and ``new_repositories_public``, where None stands for what
    the registry's settings say."""

    def work(transaction: Transaction) -> None:
        if "member_role" in changes:
            organisations.set_member_role(transaction, organisation_id, changes["member_role"])
        if "new_repositories_public" in changes:
            accounts.set_new_repositories_public(
                transaction, organisation_id, changes["new_repositories_public"]
            )
        audit.add(transaction, "organisation.change", by, account=organisation_id, **changes)

    database.transaction(work)


def add_member(
    database: Database, organisation_id: int, user_id: int, role: Role, *, by: str
) -> None:
    """Make a user a ``member`` or an ``owner`` without asking them."""

    def work(transaction: Transaction) -> None:
        organisations.add_member(transaction, organisation_id, user_id, role)
        audit.add(transaction, "member.add", by, account=organisation_id, user=user_id, role=role)

    database.transaction(work)


def change_role(
    database: Database, organisation_id: int, user_id: int, role: Role, *, by: str
) -> bool:
    """Make a member an owner, or an owner a member; False where they are neither. Raises
    ``Refused`` for the last owner."""

    def work(transaction: Transaction) -> bool:
        owners = organisations.lock_owners(transaction, organisation_id)
        if role != "owner" and owners == {user_id}:
            raise Refused(_LAST, "role", conflict=True)
        if not organisations.set_role(transaction, organisation_id, user_id, role):
            return False
        audit.add(transaction, "member.role", by, account=organisation_id, user=user_id, role=role)
        return True

    return database.transaction(work)


def remove_member(database: Database, organisation_id: int, user_id: int, *, by: str) -> bool:
    """Take a user out of an organisation, and so out of its teams, with what was granted to them in
    its namespace; False where they are no member. Raises ``Refused`` for the last owner."""

    def work(transaction: Transaction) -> bool:
        if organisations.lock_owners(transaction, organisation_id) == {user_id}:
            raise Refused(_LAST, conflict=True)
        if not organisations.remove_member(transaction, organisation_id, user_id):
            return False
        audit.add(transaction, "member.remove", by, account=organisation_id, user=user_id)
        return True

    return database.transaction(work)


def transfer(
    database: Database, organisation_id: int, from_id: int, to_id: int, *, by: str
) -> None:
    """Make a member an owner in the place of another owner, who becomes a member. Raises
    ``Refused``."""
    if from_id == to_id:
        raise Refused("Name another member.", "to")

    def work(transaction: Transaction) -> None:
        owners = organisations.lock_owners(transaction, organisation_id)
        if not organisations.set_role(transaction, organisation_id, to_id, "owner"):
            raise Refused("This user is no member.", "to")
        if from_id in owners:
            organisations.set_role(transaction, organisation_id, from_id, "member")
        audit.add(
            transaction,
            "organisation.transfer",
            by,
            account=organisation_id,
            former=from_id,
            owner=to_id,
        )

    database.transaction(work)


def create_team(database: Database, organisation_id: int, name: str, *, by: str) -> Team:
    """Make a team. Raises ``Refused``."""
    checked_name(name)

    def work(transaction: Transaction) -> Team:
        team = teams.add(transaction, organisation_id, name)
        if team is None:
            raise Refused("There is a team of this name.", "name", conflict=True)
        audit.add(transaction, "team.create", by, account=organisation_id, team=team.id)
        return team

    return database.transaction(work)


def rename_team(
    database: Database, organisation_id: int, team_id: int, name: str, *, by: str
) -> Team | None:
    """Give a team another name; None where it is no longer there. Raises ``Refused``."""
    checked_name(name)

    def work(transaction: Transaction) -> Team | None:
        team = teams.rename(transaction, team_id, name)
        if team is not None:
            audit.add(transaction, "team.rename", by, account=organisation_id, team=team_id)
        return team

    try:
        return database.transaction(work)
    except UniqueViolation:
        raise Refused("There is a team of this name.", "name", conflict=True) from None


def delete_team(database: Database, organisation_id: int, team_id: int, *, by: str) -> bool:
    """Delete a team, and with it what was granted to it; False where it is no longer there."""

    def work(transaction: Transaction) -> bool:
        if not teams.delete(transaction, team_id):
            return False
        audit.add(transaction, "team.delete", by, account=organisation_id, team=team_id)
        return True

    return database.transaction(work)


def add_to_team(
    database: Database, organisation_id: int, team_id: int, user_id: int, *, by: str
) -> None:
    """Take a member of the organisation into a team; one who is in it stays."""

    def work(transaction: Transaction) -> None:
        if teams.add_member(transaction, team_id, user_id):
            audit.add(
                transaction, "team.add", by, account=organisation_id, team=team_id, user=user_id
            )

    database.transaction(work)


def remove_from_team(
    database: Database, organisation_id: int, team_id: int, user_id: int, *, by: str
) -> bool:
    """Take a user out of a team; False where they are not in it."""

    def work(transaction: Transaction) -> bool:
        if not teams.remove_member(transaction, team_id, user_id):
            return False
        audit.add(
            transaction, "team.remove", by, account=organisation_id, team=team_id, user=user_id
        )
        return True

    return database.transaction(work)
