"""`openregistry sweep`: what no row knows, found and deleted by hand."""

import argparse
import json

from chalicelib.cli import CommandError, Commands


def register(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add this room's command."""
    parser = commands.add_parser(
        "sweep",
        help="delete what is in storage and no row of the database knows",
        description="Delete objects that no row of the database knows, seven days after a sweep"
        " first saw them. A worker does so daily. It refuses where the store belongs to another"
        " database, where the database was restored from a backup, and where too many objects are"
        " unknown. Exit status 1: it refused, and says why.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--dry-run", action="store_true", help="look, and change nothing")
    parser.add_argument(
        "--force",
        action="store_true",
        help="go on where the database was restored, or too many objects are unknown",
    )
    parser.set_defaults(run=sweep)


def sweep(options: argparse.Namespace) -> int:
    """Sweep the store."""
    from chalicelib.hosts import opened_context
    from chalicelib.jobs import GiveUp, orphans

    with opened_context() as context:
        try:
            done = orphans.run(context, dry_run=options.dry_run, force=options.force)
        except (GiveUp, orphans.Overtaken) as error:
            raise CommandError(str(error)) from error
    if options.json:
        print(json.dumps(done.report()))
        return 0
    print(f"{done.objects} objects, {done.size} bytes; {done.staged} unfinished uploads' keys")
    print(f"known to the database: {done.seen - done.unknown}")
    print(f"unknown: {done.new} new, {done.waiting} not old enough, {done.due} to be deleted")
    if options.dry_run:
        print(f"a sweep would delete {done.due}, {done.due_size} bytes")
    else:
        print(f"deleted: {done.deleted}, {done.freed} bytes")
    return 0
