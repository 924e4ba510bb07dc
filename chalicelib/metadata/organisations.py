"""Organisations: what is set for them, and their members; rows."""

from typing import Any, Literal, NamedTuple

from chalicelib.metadata.database import Runner

Role = Literal["member", "owner"]
"""What somebody is in an organisation."""


class Membership(NamedTuple):
    """An organisation that a user belongs to, and as what."""

    name: str
    role: Role


class Member(NamedTuple):
    """A user of an organisation: a ``member`` or an ``owner``."""

    name: str
    role: Role
    joined_at: Any


def add_member(runner: Runner, organisation_id: int, user_id: int, role: Role) -> None:
    """Make a user a ``member`` or an ``owner``. An owner stays one."""
    runner.run(
        "INSERT INTO members (organisation_id, user_id, role)"
        " VALUES (:organisation, :user, :role)"
        " ON CONFLICT (organisation_id, user_id) DO UPDATE SET role = excluded.role"
        " WHERE excluded.role = 'owner'",
        organisation=organisation_id,
        user=user_id,
        role=role,
    )


def of_user(runner: Runner, user_id: int, last: str, count: int) -> list[Membership]:
    """At most ``count`` organisations of a user, by name, after ``last``."""
    rows = runner.run(
        "SELECT o.name, m.role FROM members m JOIN accounts o ON o.id = m.organisation_id"
        " WHERE m.user_id = :user AND o.name > :last ORDER BY o.name LIMIT :count",
        user=user_id,
        last=last,
        count=count,
    )
    return [Membership(*row) for row in rows]


def members(runner: Runner, organisation_id: int, last: str, count: int) -> list[Member]:
    """At most ``count`` members of an organisation, by name, after ``last``."""
    rows = runner.run(
        "SELECT a.name, m.role, m.joined_at FROM members m JOIN accounts a ON a.id = m.user_id"
        " WHERE m.organisation_id = :organisation AND a.name > :last ORDER BY a.name LIMIT :count",
        organisation=organisation_id,
        last=last,
        count=count,
    )
    return [Member(*row) for row in rows]


def member_id(runner: Runner, organisation_id: int, name: str) -> int | None:
    """The id of a member of that name."""
    rows = runner.run(
        "SELECT a.id FROM members m JOIN accounts a ON a.id = m.user_id"
        " WHERE m.organisation_id = :organisation AND a.name = :name",
        organisation=organisation_id,
        name=name,
    )
    return int(rows[0][0]) if rows else None


def lock_owners(runner: Runner, organisation_id: int) -> set[int]:
    """The ids of an organisation's owners. They are locked until the transaction ends, so that two
    cannot leave at once; in the order in which ``accounts.sole_owner_of`` locks them."""
    rows = runner.run(
        "SELECT user_id FROM members WHERE organisation_id = :organisation AND role = 'owner'"
        " ORDER BY organisation_id, user_id FOR UPDATE",
        organisation=organisation_id,
    )
    return {user for (user,) in rows}


def set_role(runner: Runner, organisation_id: int, user_id: int, role: Role) -> bool:
    """Give a member another role; False where there is no such member."""
    return bool(
        runner.run(
            "UPDATE members SET role = :role"
            " WHERE organisation_id = :organisation AND user_id = :user RETURNING 1",
            organisation=organisation_id,
            user=user_id,
            role=role,
        )
    )


def remove_member(runner: Runner, organisation_id: int, user_id: int) -> bool:
    """Take a user out of an organisation, its teams (by the foreign key), and what was granted to
    them in its namespace; False where they are no member."""
    runner.run(
        "DELETE FROM grants WHERE account_id = :user AND (namespace_id = :organisation"
        " OR repository_id IN (SELECT r.id FROM repositories r JOIN accounts o"
        " ON o.name = split_part(r.name, '/', 1) WHERE o.id = :organisation))",
        organisation=organisation_id,
        user=user_id,
    )
    return bool(
        runner.run(
            "DELETE FROM members WHERE organisation_id = :organisation AND user_id = :user"
            " RETURNING 1",
            organisation=organisation_id,
            user=user_id,
        )
    )


def set_member_role(runner: Runner, organisation_id: int, role: str) -> None:
    """Say what members may do with the organisation's repositories."""
    runner.run(
        "UPDATE accounts SET member_role = :role WHERE id = :id", role=role, id=organisation_id
    )
