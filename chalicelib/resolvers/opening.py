"""Which resolvers there are: those that settings name, and those that people have added."""

import threading

from chalicelib.identity.keys import Keys
from chalicelib.metadata.database import Database
from chalicelib.resolvers import Resolver
from chalicelib.resolvers.kubo import Kubo
from chalicelib.resolvers.pinning import PinningService
from chalicelib.settings import Settings
from chalicelib.storage import ObjectStore


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

    @property
    def own(self) -> dict[str, Resolver]:
        """Those that settings name."""
        with self._lock:
            if self._own is None:
                self._own = {}
                settings = self._settings
                if settings.ipfs_nodes:
                    url, token = settings.ipfs_pinning_url, settings.ipfs_pinning_token
                    service = PinningService(url, token) if url else None
                    ipfs = Kubo(settings.ipfs_nodes, settings.ipfs_gateways, service)
                    self._own[ipfs.name] = ipfs
            return self._own

    def get(self, name: str) -> Resolver | None:
        """A resolver, None where there is none of that name (any more)."""
        return self.own.get(name)
