"""Which resolvers there are: those that settings name, and those that people have added."""

import threading

from chalicelib.identity.keys import Keys
from chalicelib.metadata.database import Database
from chalicelib.resolvers import Resolver
from chalicelib.resolvers.kubo import Kubo
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
                if self._settings.ipfs_nodes:
                    self._own["ipfs"] = Kubo(
                        self._settings.ipfs_nodes, self._settings.ipfs_gateways
                    )
            return self._own

    def get(self, name: str) -> Resolver | None:
        """A resolver, None where there is none of that name (any more)."""
        return self.own.get(name)
