"""Rows against objects: each copy has its object, of the right size, and each object is known.

Both lists come in the order of keys and are held side by side, a page of each at a time.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.fsck import QUARANTINE, Finding, Refused, Tell, duration
from chalicelib.jobs import DAY, orphans
from chalicelib.metadata import blobs, fsck, resolver_copies, restoring
from chalicelib.metadata import orphans as orphan_rows
from chalicelib.metadata.fsck import PAGE, Copy
from chalicelib.resolvers import ResolverError, healing
from chalicelib.resolvers.placing import Corrupt
from chalicelib.storage import made_here, new_key

_ASKED_AT_ONCE = 16
_MARKED_WITHIN, _LOOKED_EVERY = 3.0, 0.5  # seconds
_TOLD = 3
"""Repositories that are named of those that a lost blob is in."""


class Object(NamedTuple):
    """What is in the store at a key: its size in bytes, and when it was changed last, in seconds
    since the epoch."""

    key: str
    size: int
    changed: float


def admit(context: Context, *, repair: bool) -> Iterator[Finding]:
    """Whether the store is this database's. Raises ``Refused`` where something was to be repaired
    and it may be another one's."""
    doubt = _doubt(context)
    end = time.monotonic() + _MARKED_WITHIN
    # A sweep writes its number into Postgres, and marks the store a moment later.
    while doubt is not None and time.monotonic() < end:
        time.sleep(_LOOKED_EVERY)
        doubt = _doubt(context)
    if doubt is None:
        return
    if doubt.foreign and repair:
        raise Refused(f"{doubt.sentence} Nothing was repaired.")
    yield Finding("store", doubt.sentence)


class _Doubt(NamedTuple):
    """What speaks against a store; ``foreign``: it may be another database's."""

    sentence: str
    foreign: bool = True


def _doubt(context: Context) -> _Doubt | None:
    # In this order: a marker's number is in Postgres before.
    found = orphans.markers(context.store)
    own = orphan_rows.find_marker(context.database)
    for marker in found:
        if own is None or marker.database != own.database:
            return _Doubt(
                f"The store belongs to another database, {marker.database}: this one is"
                f" {own.database if own else 'new'}."
            )
    if own is None:
        return None
    if not found:
        return _Doubt("The store has no marker of this database: is it another, or not mounted?")
    if max(marker.number for marker in found) > own.number:
        return _Doubt(
            "The database was restored from a backup: the store is of a later time. What was pushed"
            " since then has no rows, and what was collected since then has no objects. Once all is"
            " well, `openregistry sweep --force` goes on from this state.",
            foreign=False,
        )
    return None


def compare(context: Context, *, repair: bool, tell: Tell) -> Iterator[Finding]:
    """What rows and objects do not agree about. Raises ``StorageError``."""
    total = restoring.total(context.database, context.store.name).blobs
    done = 0
    rows = fsck.copies(context.database, context.store.name)
    objects = (Object(*each) for each in context.store.list() if made_here(each[0]))
    pairs = _side_by_side(rows, objects)
    with ThreadPoolExecutor(_ASKED_AT_ONCE, "fsck") as pool:
        while batch := list(islice(pairs, PAGE)):
            doubtful = [
                row
                for row, found in batch
                if row is not None and (row.missing or found is None or found.size != row.size)
            ]
            for finding in pool.map(lambda row: look(context, row, repair=repair), doubtful):
                if finding is not None:
                    yield finding
            yield from _unknown(
                context, [found for row, found in batch if found is not None and row is None]
            )
            done += sum(row is not None for row, _ in batch)
            tell("blobs compared", done, max(done, total))
    for digest, size in fsck.uncopied(context.database, context.store.name):
        if repair:
            fsck.note_lost(context.database, digest, context.store.name, new_key())
        yield _lost(context, Copy("", digest, size, True), repair=repair)


def compare_staged(context: Context) -> Iterator[Finding]:
    """What is staged for uploads that have no row any more. Raises ``StorageError``."""
    keys = (key for key in context.store.list_staged() if made_here(key))
    suspects: dict[str, orphan_rows.Unknown] = {}
    while batch := list(islice(keys, PAGE)):
        suspects |= _without_row(context, batch)
    if suspects:
        # What was cleared away between the listing and the question had its row until it was gone.
        for key in context.store.list_staged():
            if key in suspects:
                yield _orphan(Object(key, 0, 0.0), suspects[key])


def look(context: Context, row: Copy, *, repair: bool) -> Finding | None:
    """What is wrong with a copy, if something is: the object is asked for first, and then the row.
    Raises ``StorageError``."""
    store = context.store
    size = store.size(row.key)
    now = fsck.copy(context.database, row.digest, store.name)
    if now is None or now.key != row.key:
        return None  # collected, pushed again or healed meanwhile
    if size is None:
        if repair and not now.missing:
            blobs.mark(context.database, row.digest, store.name, row.key, missing=True)
        return _lost(context, now, repair=repair)
    if size != row.size:
        return damaged(context, now, f"has {size} bytes and not {row.size}", repair=repair)
    if not now.missing:
        return None
    if repair:
        blobs.mark(context.database, row.digest, store.name, row.key, missing=False)
    return Finding(
        "found",
        f"{digests.unpack(row.digest)} is taken for lost, and its object {row.key} is there.",
        digests.unpack(row.digest),
        row.key,
        size=row.size,
        repair="it is taken for there again" if repair else "",
    )


def damaged(context: Context, row: Copy, what: str, *, repair: bool) -> Finding | None:
    """An object whose bytes are not its blob's. None where it is no longer the blob's."""
    text = digests.unpack(row.digest)
    done = ""
    if repair:
        instead = new_key()
        taken = fsck.quarantine(
            context.database, row.digest, context.store.name, row.key, instead, QUARANTINE
        )
        if not taken:
            return None
        done = f"the object is set aside, and deleted in {QUARANTINE // DAY} days; "
        done += _heal(context, row)
    return Finding(
        "damaged",
        f"The object {row.key} of {text} {what}.{_where(context, row.digest)}",
        text,
        row.key,
        size=row.size,
        repair=done,
    )


def _lost(context: Context, row: Copy, *, repair: bool) -> Finding:
    text = digests.unpack(row.digest)
    what = f"its object {row.key} is not there" if row.key else "no row says where it is"
    return Finding(
        "lost",
        f"Storage has lost {text}: {what}.{_where(context, row.digest)}",
        text,
        row.key,
        size=row.size,
        repair=_heal(context, row) if repair else "",
    )


def _heal(context: Context, row: Copy) -> str:
    """Put a lost blob back from a network, if one has it; gives what came of it."""
    absent = "clients are told that it is absent, and push it again"
    copies = resolver_copies.there(context.database, [row.digest])
    if not copies:
        return absent
    try:
        healing.heal(context, row.digest, row.size, copies)
    except (ResolverError, Corrupt) as error:
        return f"{absent}; no network gave it: {error}"
    return "it was put back from a network"


def _where(context: Context, digest: bytes) -> str:
    names = blobs.repositories(context.database, digest, _TOLD + 1)
    if not names:
        return " No repository has it."
    more = " and others" if len(names) > _TOLD else ""
    return f" It is in {', '.join(names[:_TOLD])}{more}."


def _unknown(context: Context, found: list[Object]) -> Iterator[Finding]:
    """Those that no row knows, now that they were listed."""
    by_key = {each.key: each for each in found}
    for key, row in _without_row(context, list(by_key)).items():
        # What was cleared away between the listing and the question had its row until it was gone.
        if context.store.size(key) is not None:
            yield _orphan(by_key[key], row)


def _without_row(context: Context, keys: list[str]) -> dict[str, orphan_rows.Unknown]:
    database, store = context.database, context.store.name
    return {
        each.key: each
        for start in range(0, len(keys), PAGE)
        for each in orphan_rows.unknown(database, store, keys[start : start + PAGE], orphans.AGE)
    }


def _orphan(found: Object, row: orphan_rows.Unknown) -> Finding:
    what = f"the object {found.key} of {found.size} bytes"
    if found.changed:
        what += f", last changed {duration(time.time() - found.changed)} ago"
    else:
        what = f"what is staged at {found.key}"
    if row.due:
        then = "the next sweep deletes it"
    elif row.suspected:
        then = f"a sweep deletes it {orphans.AGE // DAY} days after one first saw it"
    else:
        then = "no sweep has seen it yet"
    return Finding("orphan", f"No row knows {what}: {then}.", key=found.key, size=found.size)


def _side_by_side(
    rows: Iterator[Copy], objects: Iterator[Object]
) -> Iterator[tuple[Copy | None, Object | None]]:
    """Rows and objects of the same key together; those of one side alone by themselves."""
    row, found = next(rows, None), next(objects, None)
    while row is not None or found is not None:
        if found is None or (row is not None and row.key < found.key):
            yield row, None
            row = next(rows, None)
        elif row is None or found.key < row.key:
            yield None, found
            found = next(objects, None)
        else:
            yield row, found
            row, found = next(rows, None), next(objects, None)
