"""`openregistry work` and `openregistry jobs`: what happens later, done and looked at by hand."""

import argparse
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from chalicelib.cli import CommandError, Commands
from chalicelib.http import RegistryError
from chalicelib.settings import Settings

if TYPE_CHECKING:
    from chalicelib.context import Context
    from chalicelib.metadata.database import Database

STATES = ("waiting", "running", "dead")
_LISTED = 1000


def register(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add this room's commands."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print JSON")

    work_ = commands.add_parser(
        "work",
        parents=[shared],
        help="do the jobs that are due",
        description="Do jobs until SIGTERM or Ctrl-C. `serve` does so by itself, unless "
        "OPENREGISTRY_WORK is false; any number of workers may run.",
    )
    work_.add_argument("--once", action="store_true", help="end once no job is due")
    work_.set_defaults(run=work)

    jobs = commands.add_parser(
        "jobs", help="look at what is to happen later", description="Look after jobs."
    ).add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = jobs.add_parser(
            name, parents=[shared], help=text, description=f"{text[0].upper()}{text[1:]}."
        )
        parser.set_defaults(run=run)
        return parser

    add("status", show_depths, "count the jobs of each kind")
    parser = add("list", list_jobs, f"list jobs, at most {_LISTED}, the oldest first")
    parser.add_argument("--kind", default="", help="of this kind alone")
    parser.add_argument("--state", choices=STATES, default="", help="in this state alone")
    parser.add_argument("--after", type=int, default=0, metavar="ID", help="those after this one")
    parser = add("show", show_job, "show a job, and why it failed")
    parser.add_argument("id", type=int, metavar="ID")
    parser = add("retry", retry_job, "have a job begin now that was given up or waits")
    parser.add_argument("id", type=int, metavar="ID")
    parser = add("drop", drop_job, "forget a job")
    parser.add_argument("id", type=int, metavar="ID")


def work(options: argparse.Namespace) -> int:
    """Do jobs."""
    from chalicelib.jobs.kinds import KINDS
    from chalicelib.jobs.worker import Worker

    stop = threading.Event()
    with opened_context() as context:
        worker = Worker(context, KINDS)
        if options.once:
            done = worker.drain()
            _print(options, {"done": done}, f"{done} {'job' if done == 1 else 'jobs'} done")
            return 0
        working = threading.Thread(target=worker.run, args=[stop], name="work", daemon=True)
        # Waited for, not handled: a handler could come upon a lock that its thread holds.
        signals = (signal.SIGTERM, signal.SIGINT)
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        working.start()
        signal.sigwait(signals)
        stop.set()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        working.join()
    return 0


def show_depths(options: argparse.Namespace) -> int:
    """Count jobs."""
    from chalicelib.metadata import jobs

    with opened_database() as database:
        found = jobs.depths(database)
    if options.json:
        print(json.dumps([depth._asdict() for depth in found]))
        return 0
    print(f"{'KIND':24} {'WAITING':>8} {'RUNNING':>8} {'FAILING':>8} {'DEAD':>8}  OLDEST DUE")
    for each in found:
        print(
            f"{each.kind:24} {each.waiting:8} {each.running:8} {each.failing:8} {each.dead:8}"
            f"  {each.age:.0f} s"
        )
    return 0


def list_jobs(options: argparse.Namespace) -> int:
    """List jobs."""
    from chalicelib.metadata import jobs

    with opened_database() as database:
        found = jobs.page(database, options.after, _LISTED, kind=options.kind, state=options.state)
    if options.json:
        print(json.dumps([entry._asdict() for entry in found], default=str))
        return 0
    for entry in found:
        print(
            f"{entry.id:8}  {entry.state:8} {entry.kind:24} {entry.tries:3}"
            f"  {entry.due_at:%Y-%m-%d %H:%M:%S}  {entry.error.partition(chr(10))[0][:80]}"
        )
    return 0


def show_job(options: argparse.Namespace) -> int:
    """Show a job."""
    from chalicelib.metadata import jobs

    with opened_database() as database:
        entry = jobs.find(database, options.id)
    if entry is None:
        raise CommandError(f"there is no job {options.id}; it may have been done")
    if options.json:
        print(json.dumps(entry._asdict(), default=str))
        return 0
    for name, value in entry._asdict().items():
        text = json.dumps(value) if isinstance(value, dict) else value
        print(f"{name:12} {text if text != '' else '-'}")
    return 0


def retry_job(options: argparse.Namespace) -> int:
    """Have a job tried again."""
    from chalicelib.metadata import jobs

    with opened_database() as database:
        if not jobs.retry(database, options.id):
            raise CommandError(f"there is no job {options.id} that waits or was given up")
    _print(options, {"id": options.id, "retried": True}, f"{options.id} begins now")
    return 0


def drop_job(options: argparse.Namespace) -> int:
    """Forget a job."""
    from chalicelib.metadata import jobs

    with opened_database() as database:
        if not jobs.drop(database, options.id):
            raise CommandError(f"there is no job {options.id} that waits or was given up")
    _print(options, {"id": options.id, "dropped": True}, f"{options.id} is dropped")
    return 0


@contextmanager
def opened_context() -> "Iterator[Context]":
    """What functions are given. What is refused becomes the command's error."""
    from chalicelib import hosts
    from chalicelib.storage import StorageError

    try:
        with hosts.opened_context(Settings.from_environment()) as context:
            yield context
    except (RegistryError, StorageError) as error:
        raise CommandError(str(error)) from error


@contextmanager
def opened_database() -> "Iterator[Database]":
    """The registry's database. What is refused becomes the command's error."""
    from chalicelib import hosts

    try:
        with hosts.opened_database(Settings.from_environment()) as database:
            yield database
    except RegistryError as error:
        raise CommandError(str(error)) from error


def _print(options: argparse.Namespace, answer: dict[str, Any], sentence: str) -> None:
    print(json.dumps(answer) if options.json else sentence)
