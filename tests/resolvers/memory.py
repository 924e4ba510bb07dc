"""A network of one process: a second implementation of ``Resolver``, for what would take a real
node long or cannot be had of it, as losing what it was given."""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from chalicelib.resolvers import Content, NotThere, ResolverError, Status
from chalicelib.resolvers.unixfs import UNIXFS_V1_2025, Cid
from tests.resolvers.trees import tree


@dataclass(eq=False)
class Memory:
    """Keeps what it is given, by CID. ``down``: it cannot be used; ``refuse``: it says no to what
    is put; ``lie``: it says another CID; ``lacking`` are those that it would keep twice, and keeps
    once. ``before`` is called with the name of what was read to its
    end and is not kept yet."""

    name: str = "memory"
    gateways: tuple[str, ...] = ()
    down: bool = False
    refuse: str = ""
    lie: str = ""
    before: Callable[[str], None] = lambda name: None
    kept: dict[str, bytes] = field(default_factory=dict)
    lacking: set[str] = field(default_factory=set)
    puts: list[str] = field(default_factory=list)
    unpinned: list[tuple[str, str]] = field(default_factory=list)
    checks: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, content: Content) -> str:
        self._reach()
        if self.refuse:
            raise ResolverError(self.refuse)
        data = b"".join(map(bytes, content.open()))
        cid = Cid()
        cid.update(data)
        found = cid.finish()
        self.before(content.name)
        with self.lock:
            self.puts.append(content.name)
            self.kept[found] = data
        return self.lie or found

    def status(self, name: str, cid: str) -> Status:
        self._reach()
        if cid not in self.kept:
            return Status("missing")
        return Status("there", lacking=int(cid in self.lacking))

    def mend(self, content: Content, cid: str) -> None:
        self._reach()
        if cid not in self.kept:
            self.put(content)
        elif cid in self.lacking:
            assert b"".join(map(bytes, content.open())) == self.kept[cid]
            self.lacking.discard(cid)

    def block(self, cid: str) -> bytes:
        self._reach()
        for data in list(self.kept.values()):
            if (block := tree(data, UNIXFS_V1_2025)[1].get(cid)) is not None:
                return block
        raise NotThere("It is not there.")

    def unpin(self, name: str, cid: str) -> None:
        self._reach()
        with self.lock:
            self.unpinned.append((name, cid))
            self.kept.pop(cid, None)

    def check(self) -> None:
        self.checks += 1
        self._reach()

    def _reach(self) -> None:
        if self.down:
            raise ResolverError("The network is out of reach.")

    def digests(self) -> set[str]:
        """Of all that is kept."""
        return {"sha256:" + hashlib.sha256(data).hexdigest() for data in self.kept.values()}
