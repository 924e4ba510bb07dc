"""What object storage has lost is fetched from the networks, each blob verified.

Which blobs are missing stands in their rows. So this may be interrupted and begun again at any
time, and several may do it at once.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from chalicelib.context import Context
from chalicelib.metadata import blobs as blob_rows
from chalicelib.metadata import resolver_copies, restoring
from chalicelib.metadata.resolver_copies import Copy
from chalicelib.metadata.restoring import Kept
from chalicelib.resolvers import ResolverError, healing
from chalicelib.resolvers.placing import Corrupt
from chalicelib.storage import StorageError

_BATCH = 1000
_ASKED_AT_ONCE, _FETCHED_AT_ONCE = 16, 8


@dataclass(frozen=True, slots=True)
class Failure:
    """What could not be had, and why."""

    digest: bytes
    size: int
    reason: str


@dataclass(slots=True)
class Blobs:
    """What came of restoring blobs; ``checked`` were asked for in object storage, sizes are in
    bytes. ``elsewhere``: others put them back meanwhile."""

    checked: int = 0
    missing: int = 0
    missing_size: int = 0
    restored: int = 0
    restored_size: int = 0
    elsewhere: int = 0
    failures: list[Failure] = field(default_factory=list)


Tell = Callable[[str, int, int], None]
"""Told how it goes: what is done, how much of it, and how much there is to do."""


def restore_blobs(context: Context, *, check: bool, tell: Tell) -> Blobs:
    """Put all blobs back that are missing in object storage; with ``check`` it is asked for every
    one first. Raises ``StorageError`` where storage does not answer."""
    report = Blobs()
    if check:
        _check(context, report, tell)
    report.missing, report.missing_size = restoring.total(
        context.database, context.store.name, missing=True
    )
    with ThreadPoolExecutor(_FETCHED_AT_ONCE, thread_name_prefix="restore") as pool:
        for batch in _batches(context, missing=True):
            digests = [each.digest for each in batch]
            copies: dict[bytes, list[Copy]] = {digest: [] for digest in digests}
            for copy in resolver_copies.there(context.database, digests):
                copies[copy.digest].append(copy)

            def fetch(each: Kept, copies: dict[bytes, list[Copy]] = copies) -> str | None:
                return _fetched(context, each, copies[each.digest])

            for each, reason in zip(batch, pool.map(fetch, batch), strict=True):
                if reason is None:
                    report.restored += 1
                    report.restored_size += each.size
                elif reason == "":
                    report.elsewhere += 1
                else:
                    report.failures.append(Failure(each.digest, each.size, reason))
                done = report.restored + report.elsewhere + len(report.failures)
                tell("blobs fetched", done, report.missing)
    return report


def _fetched(context: Context, blob: Kept, copies: list[Copy]) -> str | None:
    """Put a blob back; gives why not, or "" where it need not be."""
    if not copies:
        place = blob_rows.Place(blob.size, blob.key, blob.missing)
        there = healing.is_there(context, blob.digest, place)
        return "" if there else "No network has it."
    try:
        return None if healing.heal(context, blob.digest, blob.size, copies) else ""
    except (ResolverError, Corrupt, StorageError) as error:
        return str(error)


def _check(context: Context, report: Blobs, tell: Tell) -> None:
    """Ask object storage for every blob."""
    total = restoring.total(context.database, context.store.name).blobs

    def look(each: Kept) -> None:
        place = blob_rows.Place(each.size, each.key, each.missing)
        healing.is_there(context, each.digest, place)

    with ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="check") as pool:
        for batch in _batches(context, missing=False):
            for _ in pool.map(look, batch):
                report.checked += 1
            tell("blobs checked", report.checked, max(total, report.checked))


def _batches(context: Context, *, missing: bool) -> Iterator[list[Kept]]:
    after = b""
    while batch := restoring.kept(
        context.database, context.store.name, after, _BATCH, missing=missing
    ):
        yield batch
        after = batch[-1].digest
