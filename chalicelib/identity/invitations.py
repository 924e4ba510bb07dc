"""Invitations to organisations: sent by mail, and shown to whose verified email they went to.

Whoever invites learns nothing about whether the email has an account.
"""

from chalicelib.identity.users import Refused, checked_email
from chalicelib.mail import Message, is_address
from chalicelib.metadata import audit, invitations, organisations
from chalicelib.metadata.database import Database, Transaction
from chalicelib.metadata.invitations import Invitation, Taken
from chalicelib.metadata.organisations import Role

MOST = 100
"""How many invitations of an organisation are open at most."""

_TEXT = """\
You are invited to {organisation} at {base_url}, as {role}.

To accept, sign in there and open this link within 7 days:

{base_url}/account#organisation={secret}

If you expect no invitation, do nothing.
"""


def invite(
    database: Database,
    base_url: str,
    organisation_id: int,
    email: str,
    role: Role,
    *,
    invited_by: int,
    by: str,
) -> tuple[Invitation, Message]:
    """Invite the person of an email to an organisation, in place of earlier invitations of theirs;
    gives the mail to them, too. Raises ``Refused``."""
    if not is_address(checked_email(email)):
        raise Refused("This is no address for mail.", "email")

    def work(transaction: Transaction) -> tuple[Invitation, str]:
        if invitations.count(transaction, organisation_id) >= MOST:
            raise Refused(f"There are {MOST} open invitations: revoke some.", conflict=True)
        invitation, secret = invitations.add(transaction, organisation_id, email, role, invited_by)
        audit.add(
            transaction,
            "invitation.create",
            by,
            account=organisation_id,
            invitation=invitation.id,
            role=role,
        )
        return invitation, secret

    invitation, secret = database.transaction(work)
    text = _TEXT.format(
        organisation=invitation.organisation,
        base_url=base_url,
        role="an owner" if role == "owner" else "a member",
        secret=secret,
    )
    return invitation, Message(email, f"Invitation to {invitation.organisation}", text)


def accept(
    database: Database, user_id: int, invitation_id: int | None, secret: str | None, *, by: str
) -> Taken | None:
    """Make a user what an invitation says: one whose secret they hold, or one of this id that went
    to their verified email. None where there is none that holds."""

    def work(transaction: Transaction) -> Taken | None:
        taken = invitations.take(transaction, user_id, invitation_id, secret)
        if taken is not None:
            organisations.add_member(transaction, taken.organisation_id, user_id, taken.role)
            audit.add(
                transaction,
                "invitation.accept",
                by,
                account=taken.organisation_id,
                invitation=taken.id,
                user=user_id,
                role=taken.role,
            )
        return taken

    return database.transaction(work)


def decline(
    database: Database, user_id: int, invitation_id: int | None, secret: str | None, *, by: str
) -> bool:
    """Void an invitation that one could accept; False where there is none."""

    def work(transaction: Transaction) -> bool:
        taken = invitations.take(transaction, user_id, invitation_id, secret)
        if taken is not None:
            audit.add(
                transaction,
                "invitation.decline",
                by,
                account=taken.organisation_id,
                invitation=taken.id,
            )
        return taken is not None

    return database.transaction(work)


def revoke(database: Database, organisation_id: int, invitation_id: int, *, by: str) -> bool:
    """Void an invitation of an organisation; False where there is none."""

    def work(transaction: Transaction) -> bool:
        if not invitations.revoke(transaction, organisation_id, invitation_id):
            return False
        audit.add(
            transaction,
            "invitation.revoke",
            by,
            account=organisation_id,
            invitation=invitation_id,
        )
        return True

    return database.transaction(work)
