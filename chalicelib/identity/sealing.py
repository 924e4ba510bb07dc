"""Sealing anew with the key in force what a former one has sealed, so that the former can go."""

import logging

from chalicelib.identity.keys import Keys, SealError
from chalicelib.metadata import sealed
from chalicelib.metadata.database import Database

_log = logging.getLogger(__name__)


def seal_anew(database: Database, keys: Keys, purpose: str, column: sealed.Column) -> None:
    """Seal all secrets of a column with the key in force. What no key opens stays as it is, and is
    told."""
    for owner, secret in sealed.otherwise(database, column, keys.mark(purpose)):
        try:
            anew = keys.seal(purpose, owner, keys.unseal(purpose, owner, secret))
        except SealError as error:
            _log.warning("%s: the secret of %s is lost: %s", column.table, owner, error)
        else:
            sealed.replace(database, column, owner, secret, anew)
