"""The index made public: its files put in object storage and on the registry's own networks, and
its first file published under an IPNS name that a key of SECRET_KEY gives.

Nothing is put where it is already, so what has not changed costs a look. An index is never put in
the place of one that this database has not made or was restored from: an empty database would
else take away the very thing that could restore it.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, runtime_checkable

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.identity.keys import Keys
from chalicelib.metadata import indexes
from chalicelib.metadata.indexes import Published
from chalicelib.resolvers import NotThere, Resolver, ResolverError, WrongCid, index, signing
from chalicelib.resolvers.placing import Bytes, Corrupt, place
from chalicelib.storage import ObjectStore, StorageError

_log = logging.getLogger(__name__)

STORAGE = ""
"""Object storage among the places of an index."""
_TOP, _PAGE = "openregistry-index-", "openregistry-page-"
"""What keys of an index begin with in object storage. No sweep takes such for a blob's."""
_NAME = "names of the index"
_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"


class Refused(Exception):
    """There is an index that this database does not know. The text is a sentence for whoever runs
    the registry."""


@runtime_checkable
class Naming(Protocol):
    """A resolver whose network has names (IPNS), as ``Kubo`` has them."""

    def import_key(self, key: str, seed: bytes) -> str: ...
    def publish(self, cid: str, key: str) -> str: ...
    def resolve(self, name: str) -> str: ...


@dataclass(slots=True)
class Report:
    """What came of publishing. ``number`` is None where there is nothing to tell. ``put`` counts
    files that were put somewhere; ``failures`` says of places why they do not have all."""

    number: int | None = None
    cid: str = ""
    pages: int = 0
    changed: bool = False
    put: int = 0
    name: str = ""
    failures: dict[str, str] = field(default_factory=dict)
    left_out: indexes.LeftOut | None = None


class _Place(Protocol):
    def keeps(self, last: Published) -> bool: ...
    def put_page(self, cid: str, data: bytes) -> None: ...
    def put_top(self, found: Published) -> None: ...
    def drop(self, cids: list[str]) -> None: ...


def publish(context: Context, *, force: bool = False) -> Report:
    """Publish the index where it has changed, and put what a place lacks of it there. With
    ``force`` also in place of one that this database does not know. Raises ``Refused``, and
    ``ResolverError`` where it cannot be known whether there is one."""
    database = context.database
    last = indexes.published(database)
    if last is None and not indexes.anything(database):
        return Report()
    names = {name: each for name, each in context.resolvers.own.items() if isinstance(each, Naming)}
    if not force:
        _admit(context, last, names)
    attempt = indexes.begin(database)
    putting = _Putting(context, last)
    seal = index.sealing(context.keys)
    pages = [putting.page(page) for page in index.cut(index.lines(database, public=True))]
    hidden = [putting.page(page) for page in index.cut(index.lines(database, public=False), seal)]
    sealed = [page.cid for page in hidden]
    report = putting.report
    report.pages = len(pages) + len(sealed)
    report.left_out = indexes.left_out(database)
    found = _current(context, last, [*(page.cid for page in pages), *sealed])
    if found is None:
        number = max(int(time.time()), last.number + 1 if last else 0)
        number = max(number, *(each + 1 for each in _tops(context.store)), 0)
        data = index.top(
            context.keys, number, context.settings.public_url, pages, sealed, report.left_out
        )
        cids = [*(page.cid for page in pages), *sealed]
        found = Published(number, index.cid_of(data), data.decode(), cids)
        report.changed = True
    fresh = putting.top(found)
    for name in fresh & names.keys():
        putting.attempt(name, partial(_publish_name, context, names[name], found))
        if name in report.failures:
            indexes.forget(database, name, [found.cid])
    report.number, report.cid = found.number, found.cid
    report.name = ipns_name(context.keys) if names else ""
    if not putting.whole:
        return report
    former = indexes.finish(database, attempt, found)
    for each in former or []:
        putting.drop(each.place, each.cid)
    return report


class _Putting:
    """The files of one index on their way to all places."""

    def __init__(self, context: Context, last: Published | None) -> None:
        self.report = Report()
        self._database = context.database
        self._places: dict[str, _Place] = {STORAGE: _Storage(context.store)}
        for name, resolver in context.resolvers.own.items():
            self._places[name] = _Network(context, resolver)
        self._files = {name: indexes.files(self._database, name) for name in self._places}
        if last is not None and last.cid:
            for name in self._places:
                self.attempt(name, partial(self._look, name, last))

    @property
    def whole(self) -> bool:
        """Whether a place at least has all."""
        return self.report.failures.keys() != self._places.keys()

    def attempt(self, name: str, act: Callable[[], None]) -> None:
        """Do something in a place. One that fails is given nothing more."""
        if name in self.report.failures:
            return
        try:
            act()
        except (ResolverError, StorageError, Corrupt) as error:
            called = name or "object storage"
            _log.warning("the index is not whole in %s: %s", called, error)
            self.report.failures[name] = str(error)

    def page(self, page: index.Page) -> index.Reference:
        """Put a page wherever it is not."""
        for name, at in self._places.items():
            self._put(name, page.cid, partial(at.put_page, page.cid, page.data))
        return index.Reference(page.cid, page.first)

    def top(self, found: Published) -> set[str]:
        """Put the first file wherever it is not; gives the places that have got it now."""
        return {
            name
            for name, at in self._places.items()
            if self._put(name, found.cid, partial(at.put_top, found))
        }

    def drop(self, name: str, cid: str) -> None:
        """Keep a file of a former index no longer."""
        if at := self._places.get(name):
            self.attempt(name, lambda: at.drop([cid]))
            if name not in self.report.failures:
                indexes.forget(self._database, name, [cid])

    def _look(self, name: str, last: Published) -> None:
        if self._files[name].get(last.cid) and not self._places[name].keeps(last):
            _log.error("%s has lost the index; it is put there again", name or "object storage")
            indexes.forget(self._database, name, list(self._files[name]))
            self._files[name] = {}

    def _put(self, name: str, cid: str, act: Callable[[], None]) -> bool:
        if self._files[name].get(cid) or name in self.report.failures:
            return False
        indexes.note(self._database, name, cid, there=False)
        self.attempt(name, act)
        if name in self.report.failures:
            return False
        indexes.note(self._database, name, cid, there=True)
        self._files[name][cid] = True
        self.report.put += 1
        return True


class _Storage:
    """Object storage as a place of indexes."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def keeps(self, last: Published) -> bool:
        return self._store.size(_top_key(last.number)) is not None

    def put_page(self, cid: str, data: bytes) -> None:
        _write(self._store, _PAGE + cid, data)

    def put_top(self, found: Published) -> None:
        _write(self._store, _top_key(found.number), found.top.encode())
        former = [each for each in _tops(self._store) if each < found.number]
        self._store.delete([_top_key(number) for number in former])

    def drop(self, cids: list[str]) -> None:
        self._store.delete([_PAGE + cid for cid in cids])


class _Network:
    """A resolver as a place of indexes."""

    def __init__(self, context: Context, resolver: Resolver) -> None:
        self._database = context.database
        self._resolver = resolver

    def keeps(self, last: Published) -> bool:
        return self._resolver.status(_name(last.cid), last.cid).state != "missing"

    def put_page(self, cid: str, data: bytes) -> None:
        found = place(self._resolver, Bytes(_name(cid), data), digests.of(data))
        if found != cid:
            raise WrongCid(
                f"The resolver {self._resolver.name} has files of the index under other CIDs"
                f" ({found}), so that nobody finds them."
            )

    def put_top(self, found: Published) -> None:
        self.put_page(found.cid, found.top.encode())

    def drop(self, cids: list[str]) -> None:
        others = indexes.in_copies(self._database, self._resolver.name, cids)
        for cid in cids:
            if cid not in others:
                self._resolver.unpin(_name(cid), cid)


def _admit(context: Context, last: Published | None, names: Mapping[str, Naming]) -> None:
    """Refuse to publish in place of what this database does not know."""
    known = last.number if last else 0
    newest = max(_tops(context.store), default=0)
    if newest > known:
        raise Refused(
            "Object storage has an index that this database has not made: it is another one, or an"
            " earlier state of it. `openregistry restore metadata` takes over what the index tells;"
            " `openregistry resolve publish --force` publishes another in its place."
        )
    if last is not None:
        return
    for naming in names.values():
        try:
            found = naming.resolve(ipns_name(context.keys))
        except NotThere:
            continue
        raise Refused(
            f"An index of this registry is published already (ipfs://{found}), and this database"
            " has not made it. `openregistry restore metadata` takes over what it tells;"
            " `openregistry resolve publish --force` publishes another in its place."
        )


def _current(context: Context, last: Published | None, pages: list[str]) -> Published | None:
    """The index that was published last, where another would say the same."""
    if last is None or not last.cid or last.pages != pages:
        return None
    own = signing.public_keys(context.keys)[:1]
    try:
        signing.verify(last.top, signing.INDEX, own)
    except signing.NotTrusted:
        return None
    return last


def _publish_name(context: Context, naming: Naming, found: Published) -> None:
    name = ipns_name(context.keys)
    key = f"openregistry-{name[-16:]}"
    naming.import_key(key, context.keys.derived(_NAME)[0])
    said = naming.publish(found.cid, key)
    if said != name:
        raise ResolverError(f"The index was published under the name {said}, not {name}.")


def ipns_name(keys: Keys) -> str:
    """The IPNS name of the registry's index: a CID (of codec libp2p-key) whose hash is the public
    key itself. A node that publishes it holds its key, but not the one that signs."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.from_private_bytes(keys.derived(_NAME)[0])
    packed = b"\x08\x01\x12\x20" + private.public_key().public_bytes_raw()
    number = int.from_bytes(b"\x01\x72\x00\x24" + packed)
    text = ""
    while number:
        number, digit = divmod(number, 36)
        text = _BASE36[digit] + text
    return f"k{text}"


# In object storage.


def stored_tops(store: ObjectStore) -> list[tuple[int, bytes]]:
    """The first files of indexes in object storage, the newest first."""
    tops = {
        number: _read(store, _top_key(number), index.TOP_LIMIT) for number in sorted(_tops(store))
    }
    return [(number, data) for number, data in reversed(tops.items()) if data is not None]


def stored_page(store: ObjectStore, cid: str) -> bytes | None:
    """A page in object storage, whose bytes may be any; None where there is none."""
    return _read(store, _PAGE + cid, index.PAGE_LIMIT)


def _tops(store: ObjectStore) -> list[int]:
    found = []
    for key, _, _ in store.list(_TOP):
        if not key.startswith(_TOP):
            break
        if (number := key.removeprefix(_TOP)).isdecimal():
            found.append(int(number))
    return found


def _top_key(number: int) -> str:
    return f"{_TOP}{number:012d}"


def _name(cid: str) -> str:
    return f"index-{cid}"


def _read(store: ObjectStore, key: str, limit: int) -> bytes | None:
    size = store.size(key)
    if size is None or size > limit:
        return None
    stream = store.read(key, 0, size)
    try:
        return b"".join(map(bytes, stream))
    except OSError as error:
        raise StorageError(str(error)) from error
    finally:
        stream.close()


def _write(store: ObjectStore, key: str, data: bytes) -> None:
    parts = 0

    def reserve(count: int) -> int:
        nonlocal parts
        parts += count
        return parts - count + 1

    writer = store.writer(None, key, reserve)
    try:
        writer.write([data])
        store.complete(writer.close(final=True))
    except BaseException:
        writer.abort()
        raise
