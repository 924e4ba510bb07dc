"""`make bench`: measure both registries and print what came of it.

Both run at once, one is measured while the other is idle, and the sides alternate, so that what
else the machine does in the meantime befalls both. All of it takes about half an hour.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

from tests.bench import collection, direct, identity, jobs, resolving, servers, startup, table
from tests.bench.servers import OURS, PEER, STORAGES, Side, Storage
from tests.bench.table import Row
from tests.bench.workloads import WORKLOADS, Measure, Site, Workload

QUICK = 8
"""A quick run's blobs are this much smaller."""
IMPORTS = 10
"""How often app.py is imported; the best counts."""


def main() -> int:
    """Run what the command line asks for; 1 when a request failed. The table tells of targets."""
    options = _options()
    chosen = [one for one in WORKLOADS if _wanted(one.name, options.only)]
    if options.list:
        print("\n".join(one.name for one in chosen))
        return 0
    sides = tuple(options.side or (PEER, OURS))
    if reason := servers.missing(sides):
        print(reason, file=sys.stderr)
        return 2
    servers.clear_environment()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and so stop the servers
    print(f"{table.machine()}; load average {os.getloadavg()[0]:.1f}", flush=True)
    tables: dict[Storage, list[Row]] = {}
    for storage in options.storage or STORAGES:
        if chosen:
            tables[storage] = _measure(chosen, sides, storage, options)
            print(f"\n{storage} storage\n{table.text(tables[storage])}\n", flush=True)
    rows = [row for one in tables.values() for row in one]
    notes = _notes(options)
    notes += _besides(options)
    if _wanted("import", options.only):
        cold = startup.measure(IMPORTS)
        slowest = ", ".join(f"{name} {own:.0f}" for name, own in cold.slowest[:5])
        notes.append(
            f"Importing app.py takes {cold.best:.0f} ms, {cold.cpu:.0f} ms of CPU (to stay below"
            f" {startup.GOAL}); most of it, in ms: {slowest}."
        )
    print("\n".join(notes))
    if options.json:
        options.json.write_text(json.dumps([_plain(row) for row in rows], indent=2) + "\n")
    if options.markdown:
        table.put_into(options.markdown, table.markdown(tables, notes))
    failed = [error for row in rows for side in sides for error in row.errors(side)]
    for error in failed[:10]:
        print(f"failed: {error}", file=sys.stderr)
    return 1 if failed else 0


def _besides(options: argparse.Namespace) -> list[str]:
    """What is measured of this registry alone."""
    notes: list[str] = []
    if _wanted("identity", options.only):
        lines = identity.measure(options.repeat, options.seconds)
        print("\n".join(["with accounts", *lines]), flush=True)
        notes += lines
    if _wanted("jobs", options.only):
        lines = jobs.measure(QUICK if options.quick else 1)
        print("\n".join(["jobs", *lines]), flush=True)
        notes += lines
    if _wanted("collection", options.only):
        for line in collection.measure(collection.COUNTS[: 2 if options.quick else 3]):
            print(line, flush=True)
            notes.append(line)
    if _wanted("resolving", options.only):
        for line in resolving.measure(QUICK if options.quick else 1):
            print(line, flush=True)
            notes.append(line)
    if _wanted("direct", options.only):
        for line in direct.measure(QUICK if options.quick else 1):
            print(line, flush=True)
            notes.append(line)
    return notes


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    add = parser.add_argument
    add("--only", nargs="+", metavar="NAME", help="these workloads; * and ? stand for others")
    add("--list", action="store_true", help="print the names of the workloads and end")
    add("--storage", nargs="+", choices=STORAGES, help="both unless told")
    add("--side", nargs="+", choices=(PEER, OURS), help="both unless told")
    add("--repeat", type=int, default=3, help="runs of each, of which the median counts (3)")
    add("--seconds", type=float, default=2.0, help="how long the short workloads run (2)")
    add("--quick", action="store_true", help="one short run of each, with smaller blobs")
    add("--json", type=Path, metavar="FILE", help="write every run here")
    add("--markdown", type=Path, metavar="FILE", help="write the tables between FILE's marks")
    add("--dir", type=Path, help="the disk to measure on, as a directory; temporary unless told")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting for OpenRegistry, to try one",
    )
    options = parser.parse_args()
    if options.quick:
        options.repeat, options.seconds = 1, 1.0
    return options


def _wanted(name: str, patterns: Sequence[str] | None) -> bool:
    return not patterns or any(fnmatch(name, pattern) for pattern in patterns)


def _measure(
    chosen: list[Workload], names: tuple[str, ...], storage: Storage, options: argparse.Namespace
) -> list[Row]:
    place = Path(tempfile.mkdtemp(prefix="openregistry-bench-", dir=options.dir))
    place.chmod(0o755)
    settings = dict(setting.split("=", 1) for setting in options.set)
    rows = [Row(one, storage, {name: [] for name in names}) for one in chosen]
    try:
        with servers.running(names, storage, place, settings) as sides:
            sites = [Site(one, QUICK if options.quick else 1, options.seconds) for one in sides]
            for site in sites:
                site.seed()
            for row in rows:
                for turn in range(1 if row.workload.once else options.repeat):
                    for site in sites if turn % 2 == 0 else sites[::-1]:
                        one = row.workload.measure(site)
                        row.runs[site.side.name].append(one)
                        print(_line(storage, row.workload, site.side.name, one), flush=True)
                        _revive(site.side)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return rows


def _revive(side: Side) -> None:
    """Start a server again that has crashed: its run has failed, but the others need not."""
    if not side.server.alive():
        print(f"{side.name} has ended by itself; {side.server.story()}", file=sys.stderr)
        side.server.restart()


def _line(storage: Storage, workload: Workload, side: str, one: Measure) -> str:
    count = max(1, one.operations)
    costs = (one.cpu.registry, one.cpu.postgres, one.cpu.storage, one.generator)
    registry, postgres, stored, generator = (cost / count * 1e3 for cost in costs)
    return (
        f"{storage:4} {workload.name:26} {side:15} {one.value:9.1f} {workload.unit:4}"
        f"  n={one.operations:<6} CPU ms each: registry {registry:.2f}, postgres {postgres:.2f},"
        f" S3 {stored:.2f}, generator {generator:.2f}"
        + (f"  ERRORS {len(one.errors)}: {one.errors[0]}" if one.errors else "")
    )


def _notes(options: argparse.Namespace) -> list[str]:
    notes = [
        f"Each figure is the median of {options.repeat} runs; the sides take turns.",
        "The load generator and the S3 server run on the same cores.",
        "The CPU times are of the registry's processes and its Postgres, peer : OpenRegistry.",
    ]
    if options.quick:
        notes.append(f"A quick run: blobs above 1 MB have 1/{QUICK} of the size in their names.")
    if options.set:
        notes.append(f"OpenRegistry runs with {', '.join(options.set)}.")
    return notes


def _plain(row: Row) -> dict[str, object]:
    target = row.workload.targets.get(row.storage)
    return {
        "workload": row.workload.name,
        "storage": row.storage,
        "unit": row.workload.unit,
        "median": {side: row.value(side) for side in row.runs},
        "ratio": row.ratio(),
        "target": str(target) if target else None,
        "met": row.met(),
        "runs": {side: [asdict(one) for one in runs] for side, runs in row.runs.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
