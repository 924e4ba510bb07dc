"""Blocked digests: what nobody may read or push. Administrators of the registry block them."""

from datetime import datetime
from typing import Annotated

import msgspec

from chalicelib import digests
from chalicelib.api.operations import Call, Needs, Operation, Page, PagingByDigest, page
from chalicelib.api.problems import Problem
from chalicelib.http import DigestInvalid
from chalicelib.metadata import blocks as rows
from chalicelib.registry import blocks


class NewBlock(msgspec.Struct, forbid_unknown_fields=True):
    """Why a digest is blocked; ``public``: whoever is refused is told."""

    reason: Annotated[
        str,
        msgspec.Meta(
            min_length=1,
            max_length=blocks.LONGEST_REASON,
            extra_json_schema={"pattern": r"^[^\u0000]*[^\s\u0000][^\u0000]*$"},
        ),
    ]
    public: bool = False


class Block(msgspec.Struct):
    """A blocked digest; ``blocked_by`` is the subject who did it, as in the audit log."""

    digest: str
    reason: str
    public: bool
    blocked_by: str
    blocked_at: datetime


class BlockAt(Block):
    """A blocked digest; ``repositories`` are those that have a blob or a manifest of it."""

    repositories: list[str]


def block_digest(call: Call) -> BlockAt:
    """Let nobody read or push a digest, whether or not it is there; or say another reason."""
    database, digest = call.context.database, _digest(call)
    body: NewBlock = call.body
    blocked = blocks.add(database, digest, body.reason, public=body.public, by=call.subject.id)
    return BlockAt(
        **msgspec.structs.asdict(_shown(blocked)), repositories=rows.holders(database, digest)
    )


def list_blocks(call: Call) -> Page[Block]:
    """Blocked digests."""
    limit, after = call.query.limit, call.query.after
    last = digests.pack(after) if after else b""
    found = rows.listed(call.context.database, last, limit + 1)
    return page([_shown(each) for each in found], limit, lambda each: each.digest)


def unblock_digest(call: Call) -> None:
    """Let a digest be read and pushed again."""
    if not blocks.remove(call.context.database, _digest(call), by=call.subject.id):
        raise Problem(404, "This digest is not blocked.")


def _digest(call: Call) -> bytes:
    try:
        return digests.pack(call.params["digest"])
    except DigestInvalid as error:
        raise Problem(404, error.message) from None


def _shown(block: rows.Block) -> Block:
    return Block(
        digests.unpack(block.digest), block.reason, block.public, block.blocked_by, block.blocked_at
    )


_ALL = "/admin/blocked-digests"
_ONE = f"{_ALL}/{{digest}}"
OPERATIONS = (
    Operation("GET", _ALL, list_blocks, Needs.ADMINISTRATOR, "Blocked digests",
              query=PagingByDigest, answer=Page[Block]),
    Operation("PUT", _ONE, block_digest, Needs.ADMINISTRATOR,
              "Let nobody read or push a blob or a manifest", body=NewBlock, answer=BlockAt),
    Operation("DELETE", _ONE, unblock_digest, Needs.ADMINISTRATOR,
              "Let a digest be read and pushed again"),
)  # fmt: skip
