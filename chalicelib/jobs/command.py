"""`openregistry work` and `openregistry jobs`: what happens later, done and looked at by hand."""

import argparse
import json
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from chalicelib.cli import ID, CommandError, Commands, add, as_json, group, print_answer
from chalicelib.hosts import opened_context, opened_database

if TYPE_CHECKING:
    from chalicelib.context import Context
    from chalicelib.jobs.worker import Worker

STATES = ("waiting", "running", "dead")
_LISTED = 1000
STOP_SECONDS = 10
"""How long jobs may go on after the first signal. One that takes longer is done again later."""


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

    jobs = group(commands, "jobs", "look at what is to happen later")
    add(jobs, "status", show_depths, "count the jobs of each kind")
    parser = add(jobs, "list", list_jobs, f"list jobs, at most {_LISTED}, the oldest first")
    parser.add_argument("--kind", default="", help="of this kind alone")
    parser.add_argument("--state", choices=STATES, default="", help="in this state alone")
    parser.add_argument("--after", type=ID, default=0, metavar="ID", help="those after this one")
    parser = add(jobs, "show", show_job, "show a job, and why it failed")
    parser.add_argument("id", type=ID, metavar="ID")
    parser = add(jobs, "retry", retry_job, "have a job begin now that was given up or waits")
    parser.add_argument("id", type=ID, metavar="ID")
    parser = add(jobs, "drop", drop_job, "forget a job")
    parser.add_argument("id", type=ID, metavar="ID")


def work(options: argparse.Namespace) -> int:
    """Do jobs."""
    from chalicelib import tracing
    from chalicelib.jobs.kinds import KINDS
    from chalicelib.jobs.worker import Worker

    with opened_context() as context, ExitStack() as stack:
        worker = Worker(context, KINDS)
        stack.callback(tracing.stop)
        if options.once:
            tracing.start()
            done = worker.drain()
            print_answer(options, {"done": done}, f"{done} {'job' if done == 1 else 'jobs'} done")
            return 0
        ended = _work_until_told(worker, context)
    sys.stdout.flush()
    if not ended:
        # A job takes too long; a worker does it again. Its thread would keep the process.
        os._exit(0)
    return 0


def _work_until_told(worker: "Worker", context: "Context") -> bool:
    """Do jobs until SIGTERM or Ctrl-C; False where one has not ended in time, or at the second."""
    from chalicelib import tracing
    from chalicelib.hosts.harness.command import open_exporter

    stop = threading.Event()
    failures: list[BaseException] = []
    signals = (signal.SIGTERM, signal.SIGINT)

    def run() -> None:
        try:
            worker.run(stop)
        except BaseException as error:
            failures.append(error)
            os.kill(os.getpid(), signal.SIGTERM)

    # Waited for, not handled: a handler could come upon a lock that its thread holds. Threads that
    # begin after this do not take them either.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    tracing.start()
    if (exporter := open_exporter(context)) is not None:
        exporter.start("jobs")
    working = threading.Thread(target=run, name="work", daemon=True)
    working.start()
    signal.sigwait(signals)
    stop.set()
    end = time.monotonic() + STOP_SECONDS
    while working.is_alive() and time.monotonic() < end:
        if signal.sigtimedwait(signals, 0.1):
            break
    if failures:
        raise failures[0]
    return not working.is_alive()


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
        print(as_json([entry._asdict() for entry in found]))
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
        print(as_json(entry._asdict()))
        return 0
    for name, value in entry._asdict().items():
        text = json.dumps(value) if isinstance(value, dict) else value
        print(f"{name:12} {text if text != '' else '-'}")
    return 0


def retry_job(options: argparse.Namespace) -> int:
    """Have a job tried again."""
    from chalicelib.identity.users import OPERATOR
    from chalicelib.jobs import administration

    with opened_database() as database:
        if not administration.retry(database, options.id, by=OPERATOR):
            raise CommandError(f"there is no job {options.id} that waits or was given up")
    print_answer(options, {"id": options.id, "retried": True}, f"{options.id} begins now")
    return 0


def drop_job(options: argparse.Namespace) -> int:
    """Forget a job."""
    from chalicelib.identity.users import OPERATOR
    from chalicelib.jobs import administration

    with opened_database() as database:
        if not administration.drop(database, options.id, by=OPERATOR):
            raise CommandError(f"there is no job {options.id} that waits or was given up")
    print_answer(options, {"id": options.id, "dropped": True}, f"{options.id} is dropped")
    return 0
