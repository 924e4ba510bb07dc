"""Robots: accounts of machines. Each is a user's or an organisation's, is called OWNER+NAME, and
has access tokens but no password."""

from chalicelib.identity.users import Refused, checked_name
from chalicelib.metadata import accounts, audit, grants
from chalicelib.metadata.database import Database, Transaction
from chalicelib.metadata.grants import Grantee, Place


def create(
    database: Database, owner_id: int, owner: str, name: str, role: str | None, *, by: str
) -> int:
    """Make the robot OWNER+NAME of an account, with a role in all of its namespace or none; gives
    its id. Raises ``Refused``."""
    full = f"{owner}+{checked_name(name)}"

    def work(transaction: Transaction) -> int:
        robot_id = accounts.add(transaction, "robot", full, owner_id=owner_id)
        if robot_id is None:
            raise Refused("There is a robot of this name.", "name", conflict=True)
        if role is not None:
            to = Grantee("robot", robot_id, owner_id)
            grants.put(transaction, Place(namespace=owner_id), to, role)
        audit.add(transaction, "robot.create", by, account=owner_id, robot=robot_id, role=role)
        return robot_id

    return database.transaction(work)


def delete(database: Database, owner_id: int, robot_id: int, *, by: str) -> None:
    """Delete a robot; its tokens are void at once. Another of its name may be made."""

    def work(transaction: Transaction) -> None:
        accounts.delete(transaction, robot_id)
        audit.add(transaction, "robot.delete", by, account=owner_id, robot=robot_id)

    database.transaction(work)
