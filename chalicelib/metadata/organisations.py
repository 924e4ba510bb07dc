"""Organisations: members, teams, invitations and grants; their rows."""

from chalicelib.metadata.database import Runner


def add_member(runner: Runner, organisation_id: int, user_id: int, role: str) -> None:
    """Make a user a ``member`` or an ``owner``."""
    runner.run(
        "INSERT INTO members (organisation_id, user_id, role)"
        " VALUES (:organisation, :user, :role)"
        " ON CONFLICT (organisation_id, user_id) DO UPDATE SET role = excluded.role",
        organisation=organisation_id,
        user=user_id,
        role=role,
    )
