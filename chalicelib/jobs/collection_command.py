"""`openregistry gc`: collection by hand."""

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from chalicelib.cli import CommandError, Commands
from chalicelib.hosts import opened_context
from chalicelib.jobs import DAY

if TYPE_CHECKING:
    from chalicelib.jobs.collection import Removed

_LISTED = 10_000
_LONGEST = 3650 * DAY


def register(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add this room's commands."""
    parser = commands.add_parser(
        "gc",
        help="remove what nothing names any more",
        description="Remove blobs that no manifest names, untagged manifests where "
        "OPENREGISTRY_COLLECT_UNTAGGED says so, referrers whose subject is gone, and uploads that "
        "have expired; end when the bytes are gone. Workers do so by themselves, every few "
        "minutes. Pushes, pulls and deletions may go on.",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be removed, and remove nothing"
    )
    parser.add_argument(
        "--grace",
        type=_seconds,
        metavar="SECONDS",
        help="take this grace in place of OPENREGISTRY_GRACE, for this run. Redirects to storage "
        "that clients were given are not waited for then. With 0, a push that is under way may "
        "have to begin again",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=collect)


def collect(options: argparse.Namespace) -> int:
    """Collect, or foresee."""
    from chalicelib.jobs import collection
    from chalicelib.storage import StorageError

    listed: list[Removed] = []

    def tell(removed: "Removed") -> None:
        if not options.json:
            name = f"{removed.repository}@{removed.digest}".removeprefix("@")
            print(f"{removed.kind:8} {name}: {removed.reason}")
        elif len(listed) < _LISTED:
            listed.append(removed)

    def wait(count: int, seconds: float) -> None:
        print(
            f"openregistry: {count} objects go once no redirect to them holds,"
            f" within {seconds:.0f} s",
            file=sys.stderr,
        )

    with opened_context() as context:
        if options.dry_run:
            report = collection.foresee(context, options.grace, tell)
        else:
            try:
                report = collection.run(context, options.grace, tell, wait)
            except StorageError as error:
                raise CommandError(f"some objects could not be deleted yet: {error}") from error
        grace = context.settings.grace if options.grace is None else options.grace
    if options.json:
        answer = {"dry_run": options.dry_run, "grace": grace, **asdict(report)}
        print(json.dumps({**answer, "removed": [each._asdict() for each in listed]}))
        return 0
    print(
        f"{'to remove' if options.dry_run else 'removed'}: {report.manifests} manifests,"
        f" {report.links} blobs of repositories, {report.blobs} blobs, {report.objects} objects"
        f" of {report.freed} bytes, {report.uploads} uploads"
    )
    return 0


def _seconds(text: str) -> float:
    """A number of seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _LONGEST:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a number of seconds, like 90, and at most {_LONGEST}"
        )
    return seconds
