"""`openregistry quota` and `openregistry block`: what an operator lets be kept, and what nobody may
have."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from chalicelib.cli import CommandError, Commands, add, as_json, group, print_answer, whole
from chalicelib.hosts import opened_database
from chalicelib.settings import parse_size

if TYPE_CHECKING:
    from chalicelib.metadata.quotas import Quota


def register(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add this room's commands."""

    def of_account(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        whose = parser.add_mutually_exclusive_group(required=True)
        whose.add_argument(
            "--account", metavar="NAME", help="the first component of its repositories' names"
        )
        whose.add_argument(
            "--default", action="store_true", help="all accounts that have no quota of their own"
        )
        return parser

    quotas = group(commands, "quota", "say how much may be kept")
    parser = of_account(
        add(quotas, "set", set_quota, "set a quota; what is not given has no limit")
    )
    parser.add_argument("--bytes", metavar="SIZE", help="of blobs and manifests, like 10G")
    parser.add_argument(
        "--repositories", type=whole(0, 1_000_000_000), metavar="NUMBER", help="how many"
    )
    parser = add(quotas, "show", show_quota, "show what an account may use and uses")
    parser.add_argument("--account", metavar="NAME", required=True)
    of_account(add(quotas, "unset", unset_quota, "take a quota away"))
    add(quotas, "list", list_quotas, "list the accounts with a quota, and what they use")

    blocks = group(
        commands, "block", "keep a blob or a manifest from being read and pushed by anybody"
    )
    parser = add(blocks, "add", add_block, "block a digest, whether or not it is here")
    parser.add_argument("digest", metavar="DIGEST")
    parser.add_argument("--reason", required=True, help="why; noted in the audit log")
    parser.add_argument(
        "--public", action="store_true", help="tell the reason to whoever is refused"
    )
    add(blocks, "list", list_blocks, "list blocked digests")
    parser = add(blocks, "remove", remove_block, "block a digest no longer")
    parser.add_argument("digest", metavar="DIGEST")


def set_quota(options: argparse.Namespace) -> int:
    """Set a quota."""
    from chalicelib.identity.users import OPERATOR
    from chalicelib.metadata.quotas import DEFAULT
    from chalicelib.registry import quotas

    try:
        size = None if options.bytes is None else parse_size(options.bytes)
    except ValueError as error:
        raise CommandError(f"--bytes: {error}") from None
    namespace = DEFAULT if options.default else options.account
    with opened_database() as database:
        found = quotas.put(database, namespace, size, options.repositories, by=OPERATOR)
    print_answer(options, _told(found), _line(found))
    return 0


def show_quota(options: argparse.Namespace) -> int:
    """Show what an account may use and uses."""
    from chalicelib.metadata import quotas

    with opened_database() as database:
        found = quotas.find(database, options.account)
    print_answer(options, _told(found), _line(found))
    return 0


def unset_quota(options: argparse.Namespace) -> int:
    """Take a quota away."""
    from chalicelib.identity.users import OPERATOR
    from chalicelib.metadata.quotas import DEFAULT
    from chalicelib.registry import quotas

    namespace = DEFAULT if options.default else options.account
    with opened_database() as database:
        if not quotas.remove(database, namespace, by=OPERATOR):
            raise CommandError(f"{_name(namespace)} has no quota of its own")
    answer = {"account": namespace or None, "unset": True}
    print_answer(options, answer, f"{_name(namespace)} has no quota of its own any more")
    return 0


def list_quotas(options: argparse.Namespace) -> int:
    """List quotas."""
    from chalicelib.metadata import quotas

    with opened_database() as database:
        size, repositories = quotas.default(database)
        found = quotas.listed(database)
    if options.json:
        default = {"bytes": size, "repositories": repositories}
        print(json.dumps({"default": default, "accounts": [_told(each) for each in found]}))
        return 0
    print(f"by default {_limits(size, repositories)}")
    for each in found:
        print(_line(each))
    return 0


def add_block(options: argparse.Namespace) -> int:
    """Block a digest."""
    from chalicelib import digests
    from chalicelib.identity.users import OPERATOR
    from chalicelib.metadata import blocks as rows
    from chalicelib.registry import blocks

    with opened_database() as database:
        digest = digests.pack(options.digest)
        blocks.add(database, digest, options.reason, public=options.public, by=OPERATOR)
        holders = rows.holders(database, digest)
    answer = {"digest": options.digest, "blocked": True, "repositories": holders}
    where = f", and is in {', '.join(holders)}" if holders else ", and is in no repository"
    print_answer(options, answer, f"{options.digest} is blocked{where}")
    return 0


def list_blocks(options: argparse.Namespace) -> int:
    """List blocked digests."""
    from chalicelib import digests
    from chalicelib.metadata import blocks

    with opened_database() as database:
        found = blocks.listed(database)
    if options.json:
        shown = [{**each._asdict(), "digest": digests.unpack(each.digest)} for each in found]
        print(as_json(shown))
        return 0
    for each in found:
        told = "public" if each.public else "not public"
        when = f"{each.blocked_at:%Y-%m-%d %H:%M}"
        print(f"{digests.unpack(each.digest)}  {when}  {each.reason} ({told})")
    return 0


def remove_block(options: argparse.Namespace) -> int:
    """Block a digest no longer."""
    from chalicelib import digests
    from chalicelib.identity.users import OPERATOR
    from chalicelib.registry import blocks

    with opened_database() as database:
        if not blocks.remove(database, digests.pack(options.digest), by=OPERATOR):
            raise CommandError(f"{options.digest} is not blocked")
    answer = {"digest": options.digest, "blocked": False}
    print_answer(options, answer, f"{options.digest} is blocked no longer")
    return 0


def _told(quota: "Quota") -> dict[str, Any]:
    told = quota._asdict()
    return {"account": told.pop("namespace") or None, **told}


def _line(quota: "Quota") -> str:
    limits = _limits(quota.bytes, quota.repositories)
    if not quota.namespace:
        return f"{_name('')} may have {limits}"
    whose = "" if quota.own or quota.bytes is quota.repositories is None else " by default"
    return (
        f"{quota.namespace} has {quota.used_bytes} bytes and {quota.used_repositories}"
        f" repositories, and may have {limits}{whose}"
    )


def _limits(size: int | None, repositories: int | None) -> str:
    return " and ".join(
        f"{'any number of' if limit is None else limit} {what}"
        for limit, what in ((size, "bytes"), (repositories, "repositories"))
    )


def _name(namespace: str) -> str:
    return namespace or "every account without a quota of its own"
