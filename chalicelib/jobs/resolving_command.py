"""`openregistry resolve`: what is on other networks, and what is to come there."""

import argparse
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from chalicelib.cli import CommandError, Commands, add, as_json, group, print_answer
from chalicelib.hosts import opened_database
from chalicelib.resolvers import index_command

if TYPE_CHECKING:
    from chalicelib.metadata.database import Database

_LISTED = 1000
_LOOK_SECONDS, _TELL_SECONDS = 0.5, 10.0
"""How often progress is looked at, and how often it is told where nobody watches."""
_BAR = 30


def register(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add this room's commands."""
    resolve = group(
        commands, "resolve", "look at what is on IPFS and other networks, and what is not"
    )
    parser = add(resolve, "status", show_status, "count copies on networks, and say what failed")
    parser.add_argument(
        "--repository", metavar="NAME", help="of one repository, with the CIDs of its tags"
    )
    parser.add_argument("--resolver", default="", metavar="NAME", help="at this one alone")
    parser = add(
        resolve, "retry", retry, "have begin now what waits or was given up, as once a node is back"
    )
    _of_one_or_all(parser)
    parser = add(
        resolve,
        "check",
        check,
        "have networks asked whether they keep what they have, as after a node lost its disk, and"
        " put there again what they lost; workers do it, and once a day without being told",
    )
    _of_one_or_all(parser)
    parser = add(
        resolve,
        "backfill",
        backfill,
        "look through what was pushed before: put what was chosen since, take away what may not "
        "be there any more; workers do it",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--repository", metavar="NAME", help="of one repository")
    where.add_argument("--account", metavar="NAME", help="of all repositories of an account")
    where.add_argument("--all", action="store_true", help="of all that have resolvers")
    parser.add_argument(
        "--wait",
        action="store_true",
        help="end when all is there. Exit status 1: something was given up",
    )
    index_command.add_to(resolve)


def _of_one_or_all(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--repository", metavar="NAME", help="of one repository")
    where.add_argument("--all", action="store_true", help="of all repositories")


def show_status(options: argparse.Namespace) -> int:
    """Count copies."""
    from chalicelib import digests
    from chalicelib.metadata import resolver_progress

    with opened_database() as database:
        ids = _ids(database, options)
        totals = resolver_progress.totals(database, ids, options.resolver)
        failures = resolver_progress.failures(database, ids, options.resolver, _LISTED)
        outstanding = resolver_progress.outstanding(database, ids)
        tagged = resolver_progress.tagged(database, ids[0], options.resolver) if ids else []
    failed = [{**each._asdict(), "digest": digests.unpack(each.digest)} for each in failures]
    tags = [{**each._asdict(), "digest": digests.unpack(each.digest)} for each in tagged]
    if options.json:
        copies = [each._asdict() for each in totals]
        answer = {"copies": copies, "outstanding": outstanding, "failures": failed}
        print(as_json(answer if ids is None else {**answer, "tags": tags}))
        return 0
    print(f"{'RESOLVER':16} {'STATE':8} {'COPIES':>10} {'BYTES':>16} {'FAILING':>8}")
    for total in totals:
        print(
            f"{total.resolver:16} {total.state:8} {total.copies:10} {total.size:16}"
            f" {total.failing:8}"
        )
    if outstanding:
        print(f"{outstanding} manifests and repositories are still to be looked at")
    for each in failed:
        state = "given up" if each["given_up"] else each["state"]
        print(f"{each['resolver']:16} {state:8} {each['digest']}: {each['error']}")
    for each in tags:
        print(f"{each['tag']} at {each['resolver']}: {each['state']}")
        for what in ("cid", "derived_cid", "root_cid"):
            if each[what]:
                print(f"  {_CIDS[what]:10} {each[what]}")
    return 0


_CIDS = {"cid": "manifest", "derived_cid": "derived", "root_cid": "root"}


def retry(options: argparse.Namespace) -> int:
    """Have copies tried again."""
    from chalicelib.metadata import resolver_progress

    with opened_database() as database:
        count = resolver_progress.retry(database, _ids(database, options))
    print_answer(options, {"retried": count}, f"{count} {_jobs(count)} now")
    return 0


def check(options: argparse.Namespace) -> int:
    """Have networks asked about copies."""
    from chalicelib.metadata import resolver_progress

    with opened_database() as database:
        count = resolver_progress.recheck(database, _ids(database, options))
    copies = "1 copy is" if count == 1 else f"{count} copies are"
    sentence = f"{copies} looked at by workers; see `openregistry resolve status`"
    print_answer(options, {"copies": count}, sentence)
    return 0


def backfill(options: argparse.Namespace) -> int:
    """Have repositories looked through."""
    from chalicelib.metadata import resolver_copies

    with opened_database() as database:
        ids = _ids(database, options)
        count = resolver_copies.fill(database, ids)
        answer: dict[str, Any] = {"repositories": count}
        if options.wait:
            answer |= _wait(database, ids, options.json)
    noun = "repository is" if count == 1 else "repositories are"
    sentence = f"{count} {noun} looked through by workers; see `openregistry resolve status`"
    if options.wait:
        sentence = f"{answer['there']} copies are there, {answer['given_up']} were given up"
    print_answer(options, answer, sentence)
    return 1 if answer.get("given_up") else 0


def _wait(database: "Database", ids: list[int] | None, as_json: bool) -> dict[str, int]:
    """Wait until nothing is waited for but what was given up, and tell how far it is."""
    from chalicelib.metadata import resolver_progress

    tell = _teller(as_json)
    while True:
        outstanding = resolver_progress.outstanding(database, ids)
        progress = resolver_progress.progress(database, ids)
        tell(progress, outstanding)
        if not outstanding and progress.waiting == progress.given_up:
            if sys.stderr.isatty() and not as_json:
                print(file=sys.stderr)
            return {"there": progress.there, "given_up": progress.given_up}
        time.sleep(_LOOK_SECONDS)


def _teller(as_json: bool) -> Callable[[Any, int], None]:
    """Tells progress on standard error: a bar on a terminal, else a line now and then."""
    said = float("-inf")

    def tell(progress: Any, outstanding: int) -> None:
        nonlocal said
        if as_json:
            return
        most = progress.there + progress.waiting
        line = (
            f"{progress.there} of {most} copies, {progress.there_size} of"
            f" {progress.there_size + progress.waiting_size} bytes"
            + (f", {outstanding} manifests to look at" if outstanding else "")
            + (f", {progress.failing} failing" if progress.failing else "")
        )
        if sys.stderr.isatty():
            done = _BAR * progress.there // max(most, 1)
            bar = "#" * done + "." * (_BAR - done)
            print(f"\r\x1b[K[{bar}] {line}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() >= said + _TELL_SECONDS:
            print(f"openregistry: {line}", file=sys.stderr, flush=True)
            said = time.monotonic()

    return tell


def _ids(database: "Database", options: argparse.Namespace) -> list[int] | None:
    """The repositories that are meant; None for all."""
    from chalicelib.metadata import repositories

    if options.repository is not None:
        found = repositories.find(database, options.repository)
        if found is None:
            raise CommandError(f"there is no repository {options.repository}")
        return [found.id]
    if getattr(options, "account", None) is not None:
        ids = repositories.ids_of(database, options.account)
        if not ids:
            raise CommandError(f"there is no repository {options.account}/…")
        return ids
    return None


def _jobs(count: int) -> str:
    return "job begins" if count == 1 else "jobs begin"
