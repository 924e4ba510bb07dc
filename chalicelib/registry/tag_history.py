"""Where tags were: every move is kept, and a tag can be had back while its manifest lives."""

from typing import NamedTuple

from chalicelib import digests
from chalicelib.http import ManifestUnknown, NameUnknown
from chalicelib.identity.users import Refused
from chalicelib.jobs import events
from chalicelib.metadata import manifests, repositories, tags
from chalicelib.metadata.database import Database, Transaction
from chalicelib.metadata.tags import Entry


class Restored(NamedTuple):
    """What a tag points to, and to what it did before, None for nothing."""

    digest: bytes
    previous: bytes | None


def page(
    database: Database, repository: str, tag: str, before: int | None, count: int
) -> list[Entry]:
    """At most ``count`` moves of a tag, or of all tags where it is "", the newest first; older than
    the one of the id ``before``. Raises ``NameUnknown``."""
    return tags.history(database, _id(database, repository), tag, before, count)


def restore(
    database: Database, repository: str, tag: str, digest: bytes | None, *, by: str
) -> Restored:
    """Point a tag to the manifest that it pointed to before it was last moved or deleted, or to
    ``digest``, where it was once. Raises ``NameUnknown``; ``ManifestUnknown`` where it pointed to
    no such manifest; ``Refused`` where the manifest is gone; and ``Denied`` where the tag is
    immutable."""

    def work(transaction: Transaction) -> Restored:
        number = _id(transaction, repository)
        wanted = tags.former(transaction, number, tag, digest)
        if wanted is None:
            what = "never pointed to that manifest" if digest else "was never anywhere else"
            raise ManifestUnknown(
                f"The tag {tag} {what}; its history tells where it was.",
                {"repository": repository, "tag": tag},
            )
        if not manifests.existing(transaction, number, [wanted]):
            raise Refused(
                f"The manifest {digests.unpack(wanted)} is gone: it was deleted or collected."
                " Push it again.",
                "digest",
                conflict=True,
            )
        moved = tags.move(transaction, number, tag, wanted, by)
        if moved is None:
            return Restored(wanted, wanted)
        event = {
            "tag": tag,
            "digest": digests.unpack(wanted),
            "previous": moved.previous and digests.unpack(moved.previous),
        }
        events.record(transaction, "tag", repository, by, **event)
        return Restored(wanted, moved.previous)

    return database.transaction(work)


def _id(runner: Database | Transaction, repository: str) -> int:
    found = repositories.find(runner, repository)
    if found is None:
        raise NameUnknown(f"There is no repository {repository}.")
    return found.id
