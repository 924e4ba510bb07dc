"""The sweep: objects in the store that no row knows go, slowly.

There are few: what a process staged that was killed while others cleared its upload away, and what
could not be deleted with its row. But from an empty database, another one, or one that was
restored, every object looks like that. So nothing goes but under all of these guards:

- **A marker** in the store names the database by a random id, and the number of its last sweep.
  What has another database's marker is refused. A number above the database's own says that this
  is an earlier state of it, restored from a backup. A store without a marker gets one only where it
  might as well have had one: where few of its objects are unknown.
- **A bound** on how many of the objects may be unknown (``limit``). Above it nothing is deleted,
  not even a part: so many are not orphans, but signs of a database that has lost rows.
- **The list comes first**, and then the question which of these keys Postgres knows. A key is
  written down before the first byte is staged under it, so that whatever was listed and is not an
  orphan is known when that is asked. Keys of uploads are known as long as the upload has a row,
  whatever its state; so are objects that wait to be deleted.
- **An age** (``AGE``) since a sweep first saw the key and no row knew it, by Postgres' clock. The
  object's own date is not asked: S3 gives one that came in parts the date of its first.
- **Only keys of our own form** are looked at. What other programs keep there is theirs.

When an object's time has come, one statement asks a last time and takes it from the suspects; once
that is committed, the object goes. A row that appears in between cannot be one that knows it: keys
are random, made for one request, recorded before its bytes and never used again, so that a key
which no row knows is known to none afterwards. After a crash in between a later sweep sees the
object as if for the first time.

No marker is replaced: each sweep has one of its own, whose key says all, and removes those with
lower numbers once it is there. Should it die in between, the highest counts. The number is raised
in Postgres first, so that it is never below a marker's but in a database that was restored.

A sweep is done in slices, each of them a job: functions that may run for minutes only get through a
bucket of millions of objects, and no worker is held up. Of two sweeps at once the newer goes on.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from chalicelib.context import Context
from chalicelib.jobs import DAY, GiveUp, Job, Later
from chalicelib.metadata import jobs, orphans
from chalicelib.metadata.orphans import Marker
from chalicelib.storage import ObjectStore, made_here

_log = logging.getLogger(__name__)

KIND = "sweep"
AGE = 7 * DAY
"""How many seconds an object was unknown before it goes: as long as a database may be restored from
a backup that knows it. Neither an upload nor a redirect to storage can be made to last longer."""
BATCH = 1000
"""How many keys Postgres is asked about at once."""
SLICE_SECONDS = 5.0
"""Less than a worker is given to end in."""
_DELETED_AT_ONCE, _THREADS = 100, 8
_MARKER = re.compile(r"openregistry-([0-9a-f-]{36})-([0-9]{12,})")
_BEFORE_MARKERS = "openregistry-"

OBJECTS, STAGED, DELETE, DONE = "objects", "staged", "delete", "done"


class Overtaken(Exception):
    """Another sweep has begun, which goes on in this one's place."""


@dataclass
class Sweep:
    """A sweep: how far it has come, and what it found. ``number`` is 0 where nothing is changed:
    in a dry run, and while it is found out whether the store may be marked. ``objects`` and
    ``staged`` (keys of unfinished uploads) are what is in the store. Of those that no row knows,
    ``new`` were never seen before, ``waiting`` are not old enough, ``due`` are. ``size``,
    ``due_size`` and ``freed`` are bytes of objects; stores do not say how large is what is
    staged."""

    dry_run: bool = False
    force: bool = False
    stage: str = OBJECTS
    after: str = ""
    number: int = 0
    objects: int = 0
    size: int = 0
    staged: int = 0
    new: int = 0
    waiting: int = 0
    due: int = 0
    due_size: int = 0
    deleted: int = 0
    freed: int = 0

    @property
    def seen(self) -> int:
        """How many keys were looked at."""
        return self.objects + self.staged

    @property
    def unknown(self) -> int:
        """How many of them no row knows."""
        return self.new + self.waiting + self.due

    def report(self) -> dict[str, Any]:
        """What a person wants to know of it."""
        return {
            "sweep": self.number,
            "dry_run": self.dry_run,
            "objects": self.objects,
            "bytes": self.size,
            "staged": self.staged,
            "known": self.seen - self.unknown,
            "suspects": {"new": self.new, "waiting": self.waiting, "due": self.due},
            "due_bytes": self.due_size,
            "deleted": self.deleted,
            "freed_bytes": self.freed,
        }


def perform(context: Context, job: Job) -> Later | None:
    """Do a slice of a sweep, and leave the next to another job."""
    sweep = Sweep(**job.data)
    try:
        proceed(context, sweep, SLICE_SECONDS)
    except Overtaken as overtaken:
        _log.info("%s", overtaken)
        return None
    if sweep.stage == DONE:
        _log.info(
            "sweep %d saw %d keys, %d of which no row knows, and deleted %d (%d bytes)",
            sweep.number,
            sweep.seen,
            sweep.unknown,
            sweep.deleted,
            sweep.freed,
        )
        return None
    return lambda transaction: jobs.add(transaction, KIND, asdict(sweep))


def run(context: Context, *, dry_run: bool, force: bool) -> Sweep:
    """Sweep from first to last. A dry run changes nothing. ``force`` goes on where the database
    was restored or too many objects are unknown; they must be old enough all the same. Raises
    ``GiveUp``, ``Overtaken``, ``StorageError`` and ``Unavailable``."""
    sweep = Sweep(dry_run=dry_run, force=force)
    while sweep.stage != DONE:
        proceed(context, sweep, SLICE_SECONDS)
    return sweep


def proceed(context: Context, sweep: Sweep, seconds: float) -> None:
    """Take a sweep further, for about so many seconds or until its next stage."""
    _admit(context, sweep)
    end = time.monotonic() + seconds
    if sweep.stage == DELETE:
        _delete(context, sweep, end)
    elif sweep.stage == OBJECTS:
        if _look(context, sweep, context.store.list(sweep.after), end):
            sweep.stage, sweep.after = STAGED, ""
    elif _look(context, sweep, ((key, 0, 0.0) for key in _staged(context, sweep)), end):
        _judge(context, sweep)


def limit(seen: int) -> int:
    """How many of so many keys may be unknown: a tenth, or a hundred where that is more, but never
    above half. So a store is never taken for one of orphans only, however small it is, and a
    small registry may have a handful."""
    return max(seen // 10, min(100, seen // 2))


def marker_key(marker: Marker) -> str:
    """The key of a marker: all that it says."""
    return f"openregistry-{marker.database}-{marker.number:012d}"


def markers(store: ObjectStore) -> list[Marker]:
    """The markers in a store."""
    found = []
    for key, _, _ in store.list(_BEFORE_MARKERS):
        if not key.startswith(_BEFORE_MARKERS):
            break
        if match := _MARKER.fullmatch(key):
            found.append(Marker(match[1], int(match[2])))
    return found


def _admit(context: Context, sweep: Sweep) -> None:
    """Begin a sweep, or see that it may go on. Raises ``GiveUp`` and ``Overtaken``."""
    # First: the database's number is never below a marker's that was there before.
    found = markers(context.store)
    own = orphans.find_marker(context.database)
    for marker in found:
        if own is None or marker.database != own.database:
            raise GiveUp(
                f"The store belongs to another database, {marker.database}: this one is"
                f" {own.database if own else 'new'}. Nothing was deleted. To give the store to this"
                f" database, remove the object {marker_key(marker)}."
            )
    number = own.number if own else 0
    highest = max((marker.number for marker in found), default=0)
    restored = highest > number
    if restored and (sweep.number or not sweep.force):
        raise GiveUp(
            f"The database was restored from a backup: it has made {number} sweeps, and by its"
            f" marker in the store {highest}. Nothing was deleted. `openregistry sweep --force`"
            " goes on from here; what it does not know is deleted in"
            f" {AGE // DAY} days at the earliest."
        )
    if sweep.number:
        if number != sweep.number:
            raise Overtaken(f"sweep {number} has begun, and goes on in place of {sweep.number}")
        if not found:
            raise GiveUp("The marker of this database has gone from the store.")
    elif found and not sweep.dry_run:
        _begin(context, sweep, highest, restored=restored)


def _begin(context: Context, sweep: Sweep, above: int, *, restored: bool) -> None:
    """From here on something is changed. What a backup suspected is not relied on."""
    begun = context.database.transaction(
        lambda transaction: orphans.begin(transaction, above, forget=restored)
    )
    _mark(context.store, begun)
    # Whoever else has marked it meanwhile is found out before anything is listed.
    fresh = Sweep(force=sweep.force, number=begun.number)
    _admit(context, fresh)
    vars(sweep).update(vars(fresh))


def _mark(store: ObjectStore, marker: Marker) -> None:
    writer = store.writer(None, marker_key(marker), lambda _: 1)
    try:
        writer.write(
            [b"The blobs here belong to the OpenRegistry whose database has the id in this name.\n"]
        )
        store.complete(writer.close(final=True))
    except BaseException:
        writer.abort()
        raise
    for other in markers(store):
        if other.database == marker.database and other.number < marker.number:
            store.discard(marker_key(other))


def _staged(context: Context, sweep: Sweep) -> Iterator[str]:
    return context.store.list_staged(sweep.after)


def _look(
    context: Context, sweep: Sweep, entries: Iterator[tuple[str, int, float]], end: float
) -> bool:
    """Find out which of these no row knows; False where time was up before the last."""
    store = context.store.name
    while batch := list(islice(entries, BATCH)):
        sizes = {key: size for key, size, _ in batch if made_here(key)}
        unknown = orphans.unknown(context.database, store, list(sizes), AGE)
        if sweep.number and unknown:
            suspects = {each.key: sizes[each.key] for each in unknown}
            orphans.suspect(context.database, store, suspects, sweep.number)
        for each in unknown:
            if each.due:
                sweep.due += 1
                sweep.due_size += sizes[each.key]
            elif each.suspected:
                sweep.waiting += 1
            else:
                sweep.new += 1
        if sweep.stage == OBJECTS:
            sweep.objects += len(sizes)
            sweep.size += sum(sizes.values())
        else:
            sweep.staged += len(sizes)
        sweep.after = batch[-1][0]
        if time.monotonic() > end:
            return False
    return True


def _judge(context: Context, sweep: Sweep) -> None:
    """All was looked at: whether there are too many that no row knows, and what comes next."""
    if sweep.number:
        orphans.acquit(context.database, context.store.name, sweep.number)
    if sweep.unknown > limit(sweep.seen) and not sweep.force:
        raise GiveUp(
            f"No row knows {sweep.unknown} of {sweep.seen} objects in the store, and a sweep takes"
            f" no more than {limit(sweep.seen)} for orphans: has the database lost something, or is"
            " this another store? Nothing was deleted. `openregistry sweep --force` goes on all the"
            " same."
        )
    if sweep.number:
        sweep.stage, sweep.after = DELETE, ""
    elif sweep.dry_run or not sweep.seen:
        sweep.stage = DONE
    else:
        _begin(context, sweep, 0, restored=False)


def _delete(context: Context, sweep: Sweep, end: float) -> None:
    store = context.store
    while taken := orphans.condemn(
        context.database, store.name, sweep.number, sweep.after, _DELETED_AT_ONCE, AGE
    ):
        orphaned = {key: size for key, size, unknown in taken if unknown}
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="sweep") as pool:
            for key in pool.map(_discarding(store), orphaned):
                _log.info("deleted %s (%d bytes), which no row knew", key, orphaned[key])
        sweep.deleted += len(orphaned)
        sweep.freed += sum(orphaned.values())
        sweep.after = taken[-1][0]
        if time.monotonic() > end:
            return
    sweep.stage = DONE


def _discarding(store: ObjectStore) -> Callable[[str], str]:
    def discard(key: str) -> str:
        store.discard(key)
        return key

    return discard
