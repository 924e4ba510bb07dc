"""Collection: what nothing names any more goes, while pushes, mounts and deletions go on.

First manifests, by rule, then links of blobs that no manifest of their repository names, then
blobs that no repository links, and at last, once that is committed, their objects. What a collector
leaves undone when it dies is in Postgres for the next.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.jobs import Job, Later, events
from chalicelib.metadata import collection, jobs
from chalicelib.metadata.collection import BEGINNING
from chalicelib.metadata.database import Transaction
from chalicelib.metrics import catalogue
from chalicelib.registry import uploads
from chalicelib.registry.blobs import REDIRECTING
from chalicelib.storage import StorageError

_log = logging.getLogger(__name__)

SUBJECT = "system"
BATCH = 200
"""How many rows one transaction locks."""
_OBJECTS, _THREADS = 400, 8
"""How many objects are deleted between two statements, and how many at once."""
_FAILURES = 3
"""After so many failures a thread leaves storage alone."""
_SIGNING = 60
"""Seconds that a request may take from finding a blob to handing out a URL for it."""
_JOB_SECONDS = 60.0
_OTHERS_SECONDS = 60.0
"""How long `gc` waits for what other transactions hold."""
_GONE, _UNTAGGED = "its subject is gone", "untagged"
_UNNAMED, _UNLINKED = "no manifest of the repository names it", "no repository has it"


class Removed(NamedTuple):
    """Something that was collected, and why. ``kind`` is ``manifest``, ``link`` or ``blob``; a blob
    is of no repository, and has a size in bytes."""

    kind: str
    repository: str
    digest: str
    reason: str
    size: int = 0


@dataclass
class Report:
    """How much was collected. ``freed`` is the size of the objects in bytes."""

    manifests: int = 0
    links: int = 0
    blobs: int = 0
    objects: int = 0
    freed: int = 0
    uploads: int = 0

    def add(self, removed: Removed) -> None:
        """Count one."""
        if removed.kind == "manifest":
            self.manifests += 1
        elif removed.kind == "link":
            self.links += 1
        else:
            self.blobs += 1


Tell = Callable[[Removed], None]


def perform(context: Context, job: Job) -> Later | None:
    """Collect for a while. What is left then is for another job, at once."""
    until = time.monotonic() + _JOB_SECONDS
    report = Report()
    try:
        collect(context, context.settings.grace, report, until=until)
        delete_objects(context, patience(context), report, until=until)
    finally:
        _count(report)
    if report != Report():
        _log.info("collected %s", report)
    if time.monotonic() < until:
        return None
    return lambda transaction: jobs.add(transaction, job.kind, {})


def _count(report: Report) -> None:
    for what in ("manifest", "link", "blob", "object"):
        catalogue.COLLECTED.add(getattr(report, f"{what}s"), what)
    catalogue.COLLECTED_BYTES.add(report.freed)


def run(
    context: Context,
    grace: float | None,
    tell: Tell,
    wait: Callable[[int, float], None] = lambda _count, _seconds: None,
) -> Report:
    """Collect everything, by the configured grace or another one in seconds, and give the report
    when the bytes are gone. Where clients may hold URLs of objects, and no grace is given, that is
    waited for: ``wait`` is told how many objects there are, and for how many seconds at most.
    Raises ``StorageError``."""
    report = Report(uploads=uploads.expire(context))
    age = context.settings.grace if grace is None else grace
    until = time.monotonic() + _OTHERS_SECONDS
    while True:
        collect(context, age, report, tell)
        # What another collector holds just now is waited for.
        if not _is_due(context, age) or time.monotonic() > until:
            break
        time.sleep(0.05)
    seconds = patience(context) if grace is None else 0.0
    moment = collection.moment(context.database)
    told = False
    while True:
        delete_objects(context, seconds, report)
        count = collection.count_doomed(context.database, context.store.name, moment)
        if not count:
            return report
        if not told:
            wait(count, seconds)
            told = True
        time.sleep(min(1.0, seconds) or 0.05)


def foresee(context: Context, grace: float | None, tell: Tell) -> Report:
    """What ``run`` would do, and nothing done."""
    age = context.settings.grace if grace is None else grace
    report = Report(uploads=collection.expired_uploads(context.database))
    report.objects, report.freed = collection.waiting_objects(context.database, context.store.name)
    reasons = {"link": _UNNAMED, "blob": _UNLINKED}
    for found in collection.foresee(context.database, age, _untagged(context, age)):
        reason = reasons.get(found.kind) or (_GONE if found.orphan else _UNTAGGED)
        text = digests.unpack(found.digest)
        removed = Removed(found.kind, found.repository, text, reason, found.size)
        report.add(removed)
        if found.kind == "blob":
            report.objects += 1
            report.freed += found.size
        tell(removed)
    return report


def collect(
    context: Context,
    age: float,
    report: Report,
    tell: Tell = lambda _removed: None,
    *,
    until: float = float("inf"),
) -> None:
    """Collect manifests, links and blobs that nothing has named for ``age`` seconds, until none is
    found, or ``time.monotonic()`` is ``until``. Objects are left for ``delete_objects``."""

    untagged = _untagged(context, age)
    steps: list[_Step] = [
        partial(_collect_manifests, age=age, orphans=True),
        partial(_collect_links, age=age),
        partial(_collect_blobs, age=age),
    ]
    if untagged is not None:
        steps.insert(0, partial(_collect_manifests, age=untagged, orphans=False))
    found = True
    while found and time.monotonic() < until:
        found = False
        for step in steps:
            for removed in _batches(context, step, until):
                found = True
                report.add(removed)
                tell(removed)


class _Batch(NamedTuple):
    """What one transaction did: what it removed, how many rows it looked at, and from which moment
    to go on."""

    removed: list[Removed]
    seen: int
    after: Any


_Step = Callable[..., _Batch]
"""Given a transaction, and ``after``."""


def _batches(context: Context, step: _Step, until: float) -> Iterator[Removed]:
    """What a step removes, one transaction after another."""
    after: Any = BEGINNING
    while time.monotonic() < until:
        batch = context.database.transaction(partial(step, after=after))
        yield from batch.removed
        if batch.seen < BATCH:
            # There is no more, or others hold it.
            return
        after = batch.after


def _collect_manifests(
    transaction: Transaction, after: Any, *, age: float, orphans: bool
) -> _Batch:
    due = collection.lock_manifests(transaction, age, after, BATCH, orphans=orphans)
    unnamed = collection.judge_manifests(transaction, due) if due.rows else []
    removed: list[Removed] = []
    for (number, name, orphan), items in groupby(
        sorted(unnamed, key=lambda item: (item.repository_id, item.orphan, item.digest)),
        lambda item: (item.repository_id, item.repository, item.orphan),
    ):
        reason = _GONE if orphan else _UNTAGGED
        unwanted = [item.digest for item in items]
        gone = remove_manifests(transaction, number, name, unwanted, reason)
        removed += [Removed("manifest", name, digests.unpack(each), reason) for each in gone]
    return _Batch(removed, len(due.rows), due.until)


def _collect_links(transaction: Transaction, after: Any, *, age: float) -> _Batch:
    due = collection.lock_links(transaction, age, after, BATCH)
    gone = collection.judge_links(transaction, due) if due.rows else []
    removed = [
        Removed("link", item.repository, digests.unpack(item.digest), _UNNAMED) for item in gone
    ]
    return _Batch(removed, len(due.rows), due.until)


def _collect_blobs(transaction: Transaction, after: Any, *, age: float) -> _Batch:
    taken, locked = collection.take_unlinked(transaction, age, after, BATCH)
    held = set(locked)
    if missed := [row for row in taken if row[0] not in held]:
        collection.put_back(transaction, missed)
    gone = collection.remove_unlinked(transaction, locked) if locked else []
    removed = [
        Removed("blob", "", digests.unpack(blob.digest), _UNLINKED, blob.size) for blob in gone
    ]
    return _Batch(removed, len(taken), max((since for _, since in taken), default=after))


def delete_objects(
    context: Context, age: float, report: Report, *, until: float = float("inf")
) -> None:
    """Delete objects whose blobs have been gone for ``age`` seconds, until none is left, or
    ``time.monotonic()`` is ``until``. Raises ``StorageError`` where some could not be deleted, once
    the others are: the next time they are tried again."""
    database, store = context.database, context.store
    failures: list[StorageError] = []
    after: Any = BEGINNING
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="delete") as pool:
        while time.monotonic() < until:
            found = collection.doomed(database, store.name, age, after, _OBJECTS)
            keys = [each.key for each in found]
            gone: list[str] = []
            for deleted, errors in pool.map(
                partial(_delete, context), (keys[n::_THREADS] for n in range(_THREADS))
            ):
                gone += deleted
                failures += errors
            if gone:
                sizes = collection.forget_objects(database, store.name, gone)
                report.objects += len(sizes)
                report.freed += sum(sizes)
            if len(found) < _OBJECTS or len(failures) >= _FAILURES * _THREADS:
                break
            after = found[-1].doomed_at
    if failures:
        raise failures[0]


def patience(context: Context) -> float:
    """For how many seconds a client may still hold a URL of an object whose blob is gone."""
    settings = context.settings
    if settings.downloads not in REDIRECTING or context.store.presign("GET", "0" * 32, 1) is None:
        return 0.0
    return settings.presign_expiry + _SIGNING


def remove_manifests(
    transaction: Transaction,
    repository_id: int,
    repository: str,
    found: Sequence[bytes],
    reason: str,
    subject: str = SUBJECT,
) -> list[bytes]:
    """Delete manifests of a repository, and their tags, for a rule that ``reason`` tells; note it
    in the audit log, and tell webhooks. Gives those that were there. One that an index names makes
    this a foreign key violation. What they named is collected after the grace."""
    gone = collection.remove_manifests(transaction, repository_id, found, subject, reason)
    told = [("delete", {"digest": digests.unpack(digest), "reason": reason}) for digest in gone]
    events.record_all(transaction, repository, subject, told)
    return gone


def _delete(context: Context, keys: Sequence[str]) -> tuple[list[str], list[StorageError]]:
    """Delete objects; gives the keys of those that are gone."""
    gone: list[str] = []
    errors: list[StorageError] = []
    for key in keys:
        try:
            context.store.delete([key])
        except StorageError as error:
            errors.append(error)
            if len(errors) == _FAILURES:
                break
        else:
            gone.append(key)
    return gone, errors


def _untagged(context: Context, age: float) -> float | None:
    """The age of untagged manifests that are collected: never less than the grace, since an index
    comes after what it holds."""
    wanted = context.settings.collect_untagged
    return None if wanted is None else max(wanted, age)


def _is_due(context: Context, age: float) -> bool:
    return collection.is_due(context.database, age, _untagged(context, age))
