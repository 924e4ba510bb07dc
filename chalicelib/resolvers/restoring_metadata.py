"""A database that was lost, or has lost something, filled from the index.

Manifests come from the networks, blobs too unless object storage has them. What is there already
stays: tags that point elsewhere by now, what was chosen since. So this may be interrupted and begun
again at any time. All that comes is verified, by its digest.

An index tells of repositories, and of no accounts. What it cannot tell is not restored: who may do
what, rules, webhooks, and what was on no network.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeVar

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.digests import Hash
from chalicelib.http import ManifestBlobUnknown, RegistryError
from chalicelib.identity import NOBODY
from chalicelib.identity.open import Open
from chalicelib.jobs import orphans as sweeps
from chalicelib.jobs import resolving
from chalicelib.metadata import blobs, indexes, orphans, repositories, restoring
from chalicelib.metadata import manifests as manifest_rows
from chalicelib.metadata.database import Transaction
from chalicelib.registry import ingest
from chalicelib.resolvers import ResolverError, finding, index, signing
from chalicelib.resolvers.blocks import Source, fetch, read
from chalicelib.resolvers.index import Blob, Manifest, Repository, Top
from chalicelib.resolvers.placing import Corrupt
from chalicelib.resolvers.restoring import Tell
from chalicelib.resolvers.signing import NotTrusted
from chalicelib.storage import StorageError, made_here

T = TypeVar("T")
_THREADS = 8
_BATCH = 1000
_TAGS = 500
"""Of one push."""


@dataclass(frozen=True, slots=True)
class Lost:
    """What could not be had: ``repository@digest``, or a page of the index; and why."""

    what: str
    reason: str


@dataclass(slots=True)
class Metadata:
    """What came of restoring. ``there`` were in the database already; ``adopted`` blobs were in
    object storage, ``fetched`` ones came from networks; ``tags_kept`` point elsewhere by now.
    ``unread`` repositories' pages are sealed by another registry. ``left_out`` is what no network
    had when the index was made."""

    number: int = 0
    key: str = ""
    registry: str = ""
    repositories: int = 0
    manifests: int = 0
    manifests_there: int = 0
    tags: int = 0
    tags_kept: int = 0
    fetched: int = 0
    fetched_size: int = 0
    adopted: int = 0
    blobs_there: int = 0
    unread: int = 0
    left_out: indexes.LeftOut | None = None
    lost: list[Lost] = field(default_factory=list)


def restore_metadata(context: Context, top: Top, *, adopt: bool, tell: Tell) -> Metadata:
    """Fill the database from an index. With ``adopt`` objects of storage that no row knows are
    hashed, and taken for the blobs that they are. Where nothing was lost, this database may publish
    in place of that index from now on. Raises ``StorageError`` and ``Unavailable``."""
    return _Restoring(context, top, tell).run(adopt=adopt)


class _Restoring:
    def __init__(self, context: Context, top: Top, tell: Tell) -> None:
        # Whoever runs the registry restores what others own.
        self._context = replace(context, access=Open(context.database))
        self._database = context.database
        self._store = context.store
        self._top = top
        self._tell = tell
        self._sources: list[Source] = finding.sources(context)
        self._objects: dict[bytes, str] = {}
        self._lock = threading.Lock()
        self._report = Metadata(
            top.number, top.key, top.registry, left_out=index.left_out(context.keys, top)
        )

    def run(self, *, adopt: bool) -> Metadata:
        report = self._report
        if adopt:
            self._objects = self._found_objects()
        report.lost.clear()
        report.unread = 0
        for each in self._repositories():
            self._restore(each)
            report.repositories += 1
        # By which images are pulled from networks; a worker would notice hours later.
        resolving.derive_all(self._database)
        if not report.lost and not report.unread:
            indexes.succeed(self._database, self._top.number)
        return report

    def _repositories(self) -> Iterator[Repository]:
        yield from index.repositories(self._lines(page.cid for page in self._top.pages))
        yield from index.repositories(self._lines(self._top.sealed, sealed=True))

    def _lines(self, cids: Iterable[str], *, sealed: bool = False) -> Iterator[index.Line]:
        for cid in cids:
            try:
                data: bytes | None = finding.page(self._context, cid)
                if sealed and data is not None:
                    data = index.opened(self._context.keys, data)
                if data is None:
                    self._report.unread += 1
                else:
                    yield from index.read_page(data)
            except (ResolverError, NotTrusted) as error:
                self._lose(f"a page of the index, ipfs://{cid}", error)

    def _restore(self, found: Repository) -> None:
        repository_id = self._repository(found)
        self._note(found)
        report = self._report
        there = restoring.linked(self._database, repository_id, self._store.name)
        report.blobs_there += len(found.blobs.keys() & there)
        wanted = {digest: blob for digest, blob in found.blobs.items() if digest not in there}

        def take(item: tuple[bytes, Blob]) -> None:
            self._blob(found.name, repository_id, *item)

        def blob_done(number: int) -> None:
            self._tell(f"blobs of {found.name}", number, len(wanted))

        self._all(found.name, wanted.items(), take, blob_done)
        self._manifests(found, repository_id)

    def _repository(self, found: Repository) -> int:
        """The repository's id. It is made where there is none, with what was chosen for it."""
        usable = [name for name in found.resolvers if self._context.resolvers.get(name)]

        def work(transaction: Transaction) -> int:
            before = repositories.find(transaction, found.name)
            if before is not None:
                return before.id
            new = repositories.New(created_by="", public=found.public)
            made = repositories.add(transaction, found.name, new, found.description)
            if made is None:
                return repositories.ensure(transaction, found.name, new)
            # An account may have chosen otherwise for what is new.
            repositories.set_public(transaction, made.id, found.public)
            if usable:
                restoring.choose(transaction, made.id, usable, found.insisted)
            return made.id

        return self._database.transaction(work)

    def _note(self, found: Repository) -> None:
        """The networks have it all still: nothing is put there again, unless they say otherwise.
        Only this registry has proved which CIDs are of which digests; what another one says of it
        would be served unseen."""
        if self._top.key not in signing.public_keys(self._context.keys):
            return
        contents: list[tuple[bytes, Blob | Manifest]] = list(found.blobs.items())
        contents += found.manifests.items()
        copies = {
            digest: (each.size, min(each.cids, key=lambda cid: not cid.startswith("b")))
            for digest, each in contents
            if each.cids
        }
        for name in found.resolvers:
            if self._context.resolvers.get(name):
                for batch in _batched(copies.items(), _BATCH):
                    restoring.note_copies(self._database, name, dict(batch))

    def _blob(self, name: str, repository_id: int, digest: bytes, blob: Blob) -> None:
        """Let a repository have a blob. Raises what it cannot be had for."""

        def link(transaction: Transaction) -> bool:
            place = blobs.copy(transaction, digest, self._store.name)
            adopted = place is None or place.missing
            if adopted:
                restoring.adopt(
                    transaction, self._store.name, self._objects[digest], digest, blob.size
                )
            blobs.link(transaction, repository_id, digest)
            return adopted

        place = blobs.copy(self._database, digest, self._store.name)
        if (place is not None and not place.missing) or digest in self._objects:
            adopted = self._database.transaction(link)
            self._count(adopted=adopted, blobs_there=not adopted)
            return
        error: Exception = ResolverError("The index tells of no network that has it.")
        for cid in blob.cids:
            try:
                pieces = read(self._sources, cid, 0, blob.size)
                ingest.add_blob(self._context, name, digest, blob.size, pieces, NOBODY)
                self._count(fetched=1, fetched_size=blob.size)
                return
            except (ResolverError, Corrupt, ValueError) as failure:
                error = failure
        raise error

    def _manifests(self, found: Repository, repository_id: int) -> None:
        """Manifests in turns, since an index comes after those that it names."""
        there = restoring.manifests(self._database, repository_id)
        tags = restoring.tags(self._database, repository_id)
        self._report.manifests_there += len(found.manifests.keys() & there)
        waiting, done = dict(found.manifests), 0
        while waiting:
            refused: dict[bytes, Exception] = {}

            def take(
                item: tuple[bytes, Manifest], refused: dict[bytes, Exception] = refused
            ) -> None:
                try:
                    self._manifest(found.name, *item, there=item[0] in there, tags=tags)
                except ManifestBlobUnknown as unknown:
                    refused[item[0]] = unknown

            def told(number: int, before: int = done) -> None:
                self._tell(f"manifests of {found.name}", before + number, len(found.manifests))

            self._all(found.name, waiting.items(), take, told)
            if len(refused) == len(waiting):
                for digest, error in refused.items():
                    self._lose(f"{found.name}@{digests.unpack(digest)}", error)
                return
            done += len(waiting) - len(refused)
            waiting = {digest: waiting[digest] for digest in refused}

    def _manifest(
        self,
        name: str,
        digest: bytes,
        manifest: Manifest,
        *,
        there: bool,
        tags: Mapping[str, bytes],
    ) -> None:
        """Keep a manifest and those of its tags that point nowhere yet."""
        new = [tag for tag in manifest.tags if tag not in tags]
        kept = sum(1 for tag in manifest.tags if tags.get(tag, digest) != digest)
        if not there or new:
            payload, media_type = self._payload(name, digest, manifest)
            for some in _batched(new, _TAGS) if new else [()]:
                ingest.add_manifest(self._context, name, digest, media_type, payload, some, NOBODY)
        self._count(manifests=not there, tags=len(new), tags_kept=kept)

    def _payload(self, name: str, digest: bytes, manifest: Manifest) -> tuple[bytes, str]:
        stored = manifest_rows.by_digest(self._database, name, digest)
        if stored is not None:
            return stored.payload, stored.media_type
        error: Exception = ResolverError("The index tells of no network that has it.")
        for cid in manifest.cids:
            try:
                payload = fetch(self._sources, cid, manifest.size)
            except (ResolverError, ValueError) as failure:
                error = failure
                continue
            if digests.of(payload, digests.algorithm(digest)) == digest:
                return payload, manifest.media_type
            error = Corrupt(f"What {cid} names are other bytes.")
        raise error

    def _all(
        self,
        name: str,
        items: Iterable[tuple[bytes, T]],
        take: Callable[[tuple[bytes, T]], None],
        told: Callable[[int], None],
    ) -> None:
        """Do something for each of these, several at once. What cannot be had is noted."""

        def attempt(item: tuple[bytes, T]) -> Exception | None:
            try:
                take(item)
            except (ResolverError, Corrupt, StorageError, RegistryError, ValueError) as error:
                return error
            return None

        done = 0
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="restore") as pool:
            for batch in _batched(items, _BATCH):
                for (digest, _), error in zip(batch, pool.map(attempt, batch), strict=True):
                    if error is not None:
                        self._lose(f"{name}@{digests.unpack(digest)}", error)
                    done += 1
                    told(done)

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                setattr(self._report, name, getattr(self._report, name) + number)

    def _lose(self, what: str, error: Exception) -> None:
        self._report.lost.append(Lost(what, str(error)))

    # Objects that no row knows.

    def _found_objects(self) -> dict[bytes, str]:
        """The keys of blobs that the database lacks and the store has."""
        wanted = self._wanted()

        def hashed(each: tuple[str, int]) -> bytes | None:
            return self._hashed(*each, wanted)

        found: dict[bytes, str] = {}
        looked = 0
        listed = (
            (key, size) for key, size, _ in self._store.list() if made_here(key) and size in wanted
        )
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="adopt") as pool:
            for batch in _batched(listed, _BATCH):
                keys = [key for key, _ in batch]
                unknown = orphans.unknown(self._database, self._store.name, keys, sweeps.AGE)
                strange = {each.key for each in unknown}
                some = [each for each in batch if each[0] in strange]
                for (key, _), digest in zip(some, pool.map(hashed, some), strict=True):
                    looked += 1
                    self._tell("objects hashed", looked, looked)
                    if digest is not None:
                        found[digest] = key
        return found

    def _wanted(self) -> dict[int, set[bytes]]:
        """The blobs that the store does not have as far as the database knows, by their sizes."""
        wanted: dict[int, set[bytes]] = {}
        for each in self._repositories():
            for some in _batched(each.blobs, _BATCH):
                for digest in restoring.wanting(self._database, some, self._store.name):
                    wanted.setdefault(each.blobs[digest].size, set()).add(digest)
        return wanted

    def _hashed(self, key: str, size: int, wanted: Mapping[int, set[bytes]]) -> bytes | None:
        """Which of the wanted blobs of its size an object is."""
        names = {digests.algorithm(digest) for digest in wanted[size]}
        hashes = [Hash(name) for name in names]
        try:
            stream = self._store.read(key, 0, size)
            try:
                for piece in stream:
                    for each in hashes:
                        each.update(piece)
            finally:
                stream.close()
        except (StorageError, OSError):
            return None
        found = (each.digest() for each in hashes)
        return next((digest for digest in found if digest in wanted[size]), None)


def _batched(items: Iterable[T], count: int) -> Iterator[tuple[T, ...]]:
    rest = iter(items)
    while batch := tuple(islice(rest, count)):
        yield batch
