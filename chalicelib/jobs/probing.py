"""The registry tries itself, for the status page, from without: at the address that clients use.

Where it has accounts, it signs in as a robot of an organisation that is made for this, and whose
one repository no list of repositories shows.
"""

import logging
from functools import partial

from chalicelib.client.credentials import Credentials
from chalicelib.client.names import Registry
from chalicelib.client.probe import Outcome, probe
from chalicelib.context import Context
from chalicelib.identity import access_tokens, scopes
from chalicelib.identity.access import Accounts
from chalicelib.identity.keys import Keys, SealError
from chalicelib.jobs import MINUTE, GiveUp, Job, Later, as_text
from chalicelib.metadata import accounts, audit, grants, permissions, repositories, status
from chalicelib.metadata.database import Database, Transaction
from chalicelib.metadata.grants import Grantee, Place
from chalicelib.metadata.status import Robot
from chalicelib.settings import Settings

_log = logging.getLogger(__name__)

KIND = "status.probe"
EVERY = 5 * MINUTE
REPOSITORY = permissions.PROBED
_ORGANISATION = REPOSITORY.partition("/")[0]
_ROBOT = f"{_ORGANISATION}+probe"
_BY = "status"
"""The subject of what is done for this, in the audit log."""
_PURPOSE = "status robot"
_LONGEST = 500


def wanted(settings: Settings) -> bool:
    """Whether the registry is to try itself."""
    return target(settings) is not None


def perform(context: Context, _job: Job) -> Later:
    """Try it, and keep what was found; that something failed is no failure of the job."""
    registry = target(context.settings)
    if registry is None:
        raise GiveUp("It is not to try itself.")
    # Private, whatever new ones are: what is in it is for no network.
    repositories.ensure(context.database, REPOSITORY, repositories.New(_BY, public=False))
    credentials = None
    if isinstance(context.access, Accounts):
        credentials = Credentials(_ROBOT, _token(context.database, context.keys))
    found = probe(registry, REPOSITORY, credentials)
    if found.failed:
        _log.warning("the registry does not work at %s: %s failed: %s",
                     registry.url, found.failed, found.error)  # fmt: skip
    return partial(_keep, outcome=found)


def target(settings: Settings) -> Registry | None:
    """Where the registry is tried: at PUBLIC_URL, or where `serve` listens. None where it is not to
    be, or where the name is not known that is in its certificate."""
    if not settings.status_probes:
        return None
    if settings.public_url:
        return Registry.parse(settings.public_url)
    if settings.secure or settings.listen.port == 0:
        return None
    return Registry.parse(f"http://{settings.listen.here}")


def _keep(transaction: Transaction, outcome: Outcome) -> None:
    took = outcome.milliseconds
    status.add(
        transaction,
        took,
        outcome.failed,
        outcome.status,
        as_text(outcome.code, _LONGEST),
        as_text(outcome.error, _LONGEST),
    )
    status.clear(transaction, REPOSITORY)


def _token(database: Database, keys: Keys) -> str:
    """The robot's access token. Robot and token are made where there are none that hold. Raises
    ``GiveUp``."""
    robot = status.robot(database)
    if robot is not None:
        try:
            token = keys.unseal(_PURPOSE, str(robot.account_id), robot.token).decode()
        except SealError:
            token = ""  # the secret key is another one now
        if token and access_tokens.verify(database, keys, token):
            return token
    return database.transaction(partial(_new_token, keys=keys, robot=robot))


def _new_token(transaction: Transaction, keys: Keys, robot: Robot | None) -> str:
    account_id = robot.account_id if robot else _new_robot(transaction)
    scope = f"repository:{REPOSITORY}:pull,push,delete"
    token = access_tokens.create(
        transaction, keys, account_id, "the status page", scopes.parse([scope])
    ).token
    sealed = keys.seal(_PURPOSE, str(account_id), token.encode())
    status.set_robot(transaction, Robot(account_id, sealed))
    return token


def _new_robot(transaction: Transaction) -> int:
    organisation = accounts.add(transaction, "organisation", _ORGANISATION, adopts=True)
    if organisation is None:
        raise GiveUp(
            f"The name {_ORGANISATION} is or was another account's: the registry cannot try itself."
            " Set OPENREGISTRY_STATUS_PROBES=false, or give that account another name."
        )
    robot = accounts.add(transaction, "robot", _ROBOT, owner_id=organisation)
    if robot is None:
        raise GiveUp(f"The robot {_ROBOT} is somebody else's.")
    everywhere = Place(namespace=organisation)
    grants.put(transaction, everywhere, Grantee("robot", robot, organisation), "maintain")
    audit.add(transaction, "organisation.create", _BY, account=organisation, owner=None)
    audit.add(transaction, "robot.create", _BY, account=organisation, robot=robot, role="maintain")
    return robot
