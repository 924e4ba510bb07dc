"""Uploads that nobody goes on with and nobody has cleared away."""

from collections.abc import Iterator

from chalicelib.context import Context
from chalicelib.fsck import Finding, duration
from chalicelib.jobs import HOUR
from chalicelib.metadata import fsck
from chalicelib.registry import uploads

_LATE = HOUR
"""Seconds: workers clear them away every five minutes, and try again after failures."""
_FIRST = "00000000-0000-0000-0000-000000000000"


def check(context: Context, *, repair: bool) -> Iterator[Finding]:
    """Uploads that have expired long ago. Raises ``StorageError``."""
    after, found = _FIRST, False
    while batch := fsck.stuck(context.database, _LATE, after):
        for each in batch:
            found = True
            yield Finding(
                "upload",
                f"The upload {each.id} to {each.repository or 'no repository'} ({each.state})"
                f" expired {duration(each.seconds)} ago, and no worker has cleared it away.",
                repository=each.repository,
                repair="it is cleared away now" if repair else "",
            )
        after = batch[-1].id
    if repair and found:
        uploads.expire(context)
