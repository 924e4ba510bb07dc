"""Where tags of a repository were, and tags that are had back."""

from datetime import datetime
from typing import Annotated

import msgspec

from chalicelib import digests
from chalicelib.api import problems
from chalicelib.api.audit import Newest
from chalicelib.api.operations import Call, Needs, Operation, Page, page
from chalicelib.api.texts import Digest
from chalicelib.http import DigestInvalid
from chalicelib.registry import tag_history


class TagMoves(Newest):
    """A page of moves that begins with the newest; of one tag, or of all."""

    tag: Annotated[str, msgspec.Meta(max_length=128)] = ""


class TagMove(msgspec.Struct):
    """A move of a tag to ``digest``, null where it was deleted. ``subject`` is who did it, ``by``
    what that account is called; ``exists``: the manifest is still in the repository."""

    id: int
    tag: str
    digest: str | None
    exists: bool
    subject: str
    by: str | None
    moved_at: datetime


class TagToRestore(msgspec.Struct, forbid_unknown_fields=True):
    """Which manifest a tag is to point to, where it did once; null is where it was before it was
    last moved or deleted."""

    digest: Digest | None = None


class RestoredTag(msgspec.Struct):
    """Where a tag points to, and where it pointed to before; null for nowhere."""

    tag: str
    digest: str
    previous: str | None


def list_tag_moves(call: Call) -> Page[TagMove]:
    """Where tags of a repository were, the newest moves first."""
    query = call.query
    found = tag_history.page(
        call.context.database, call.params["repository"], query.tag, query.after, query.limit + 1
    )
    items = [
        TagMove(
            id=each.id,
            tag=each.name,
            digest=_text(each.digest),
            exists=each.there,
            subject=each.subject,
            by=each.by,
            moved_at=each.moved_at,
        )
        for each in found
    ]
    return page(items, query.limit, lambda each: each.id)


def restore_tag(call: Call) -> RestoredTag:
    """Point a tag to where it was."""
    text = call.body.digest
    try:
        digest = None if text is None else digests.pack(text)
    except DigestInvalid as error:
        raise problems.invalid(error.message, "digest") from None
    done = tag_history.restore(
        call.context.database,
        call.params["repository"],
        call.params["tag"],
        digest,
        by=call.subject.id,
    )
    call.context.wake()
    return RestoredTag(
        call.params["tag"],
        digests.unpack(done.digest),
        _text(done.previous),
    )


def _text(digest: bytes | None) -> str | None:
    return None if digest is None else digests.unpack(digest)


OPERATIONS = (
    Operation("GET", "/repositories/{repository}/-/tag-moves", list_tag_moves,
              Needs.REPOSITORY_PUSH, "Where tags of a repository were",
              query=TagMoves, answer=Page[TagMove]),
    Operation("POST", "/repositories/{repository}/-/tags/{tag}/restore", restore_tag,
              Needs.REPOSITORY_PUSH, "Point a tag to a manifest that it pointed to before",
              body=TagToRestore, answer=RestoredTag, problems=(409,)),
)  # fmt: skip
