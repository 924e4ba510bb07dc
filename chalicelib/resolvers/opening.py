"""Which resolvers there are: those that settings name, and those that people have added."""

import logging
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from chalicelib import digests
from chalicelib.identity.keys import Keys, SealError
from chalicelib.metadata import blobs
from chalicelib.metadata.database import Database
from chalicelib.resolvers import Resolver
from chalicelib.settings import Settings
from chalicelib.storage import ObjectStore

if TYPE_CHECKING:
    from chalicelib.metadata.resolvers import Sealed

_SECONDS = 5.0
"""For so long a process may use keys that were changed, and resolvers that are gone."""
_log = logging.getLogger(__name__)


class _Opened(NamedTuple):
    """A resolver, what it was opened with, and until when (on the clock of ``time.monotonic``) that
    is taken to be so still."""

    row: "Sealed | None"
    resolver: Resolver | None
    until: float


class Resolvers:
    """A process's resolvers, each opened when it is first asked for."""

    def __init__(
        self, settings: Settings, database: Database, keys: Keys, store: ObjectStore
    ) -> None:
        self._settings = settings
        self._database = database
        self._keys = keys
        self._store = store
        self._lock = threading.Lock()
        self._own: dict[str, Resolver] | None = None
        self._added: dict[str, _Opened] = {}

    @property
    def own(self) -> dict[str, Resolver]:
        """Those that settings name."""
        with self._lock:
            if self._own is None:
                self._own = {}
                settings = self._settings
                if settings.ipfs_nodes:
                    from chalicelib.resolvers.kubo import Kubo
                    from chalicelib.resolvers.pinning import PinningService

                    url, token = settings.ipfs_pinning_url, settings.ipfs_pinning_token
                    service = PinningService(url, token) if url else None
                    ipfs = Kubo(settings.ipfs_nodes, settings.ipfs_gateways, service)
                    self._own[ipfs.name] = ipfs
                if self._store.name == "s3":
                    self._open_bucket(self._own)
            return self._own

    def get(self, name: str) -> Resolver | None:
        """A resolver, None where there is none of that name (any more), or it cannot be opened: the
        log says why."""
        if name in self.own:
            return self.own[name]
        with self._lock:
            before = self._added.get(name)
        if before is not None and time.monotonic() < before.until:
            return before.resolver
        # Loaded when it is needed, like the resolvers themselves: a cold start waits for neither.
        from chalicelib.metadata import resolvers

        row = resolvers.sealed(self._database, name)
        if before is not None and before.row == row:
            resolver = before.resolver
        else:
            resolver = None if row is None else self._open(name, row)
        with self._lock:
            if row is None:
                self._added.pop(name, None)
            else:
                self._added[name] = _Opened(row, resolver, time.monotonic() + _SECONDS)
        return resolver

    def _open_bucket(self, own: dict[str, Resolver]) -> None:
        """Where storage is a bucket that is on a network itself, that is a resolver too."""
        from chalicelib.storage.s3 import S3Store

        store = self._store
        if isinstance(store, S3Store) and store.bucket.filebase:
            from chalicelib.resolvers.filebase import FilebaseBucket

            bucket = FilebaseBucket(store, self._settings.ipfs_gateways, self._key)
            own[bucket.name] = bucket

    def _key(self, name: str) -> str | None:
        """Where storage has the blob of a name (``Content.name``)."""
        if not digests.is_digest(name):
            return None
        found = blobs.copy(self._database, digests.pack(name), self._store.name)
        return None if found is None else found.key

    def _open(self, name: str, row: "Sealed") -> Resolver | None:
        from chalicelib.resolvers import added
        from chalicelib.resolvers.filebase import Address, Filebase

        try:
            address = Address.parse(row.address)
            keys = added.unsealed(self._keys, name, row.keys)
        except (ValueError, SealError) as error:
            _log.warning("the resolver %s cannot be opened: %s", name, error)
            return None
        if refused := added.first_refused(self._settings, address):
            _log.warning("the resolver %s is not asked: its %s is refused", name, refused)
            return None
        return Filebase(name, address, *keys)
