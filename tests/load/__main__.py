"""`make load`: a registry of one's own on loopback, with Postgres and an S3 server, under steady
load: latencies, errors, and whether the memory of its processes stays flat.

`make load ARGS="--minutes 60"` is the hour's soak.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from tests.accounts import add_user, create_token
from tests.bench import processes
from tests.bench.servers import clear_environment
from tests.bench.table import machine
from tests.hosts.lambda_registry import basic
from tests.hosts.program import children
from tests.load.memory import Verdict, Watch, judge, own_memory
from tests.load.traffic import Outcome, Traffic
from tests.servers import S3, Postgres, Registry, stopping

USER, PASSWORD = "load", "a password for the load alone"
MOST_RATE = 200
SAMPLES = 240
"""Samples of memory in a run, about."""
SETTINGS = {
    "OPENREGISTRY_ACCESS": "accounts",
    # What tags named before is collected while the load goes on.
    "OPENREGISTRY_GRACE": "2m",
    "OPENREGISTRY_COLLECT_UNTAGGED": "1m",
}


def main() -> int:
    """Run what the command line asks for; 1 when a request failed or a process grew."""
    options = _options()
    clear_environment()
    print(f"{machine()}; load average {os.getloadavg()[0]:.1f}", flush=True)
    seconds = options.minutes * 60
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="load-")))
        postgres, s3 = Postgres(home / "postgres"), S3(home / "s3")
        for server in (postgres, s3):
            stack.enter_context(stopping(server))
        postgres.start()
        s3.start()
        settings = {
            **SETTINGS,
            **s3.environment(),
            "OPENREGISTRY_DATABASE_URL": postgres.new_database(),
            "OPENREGISTRY_STORAGE_URL": s3.new_storage_url(),
        }
        registry = Registry(home / "registry", settings)
        stack.enter_context(stopping(registry))
        registry.start()
        add_user(registry.settings, USER, PASSWORD)
        token = create_token(registry.settings, USER, f"repository:{USER}/*:pull,push")
        traffic = Traffic(registry.host, basic(USER, token), USER, options.rate)
        cpu = _cpu(registry, postgres, s3)
        with Watch(lambda: _memory(registry, postgres, s3), max(1.0, seconds / SAMPLES)) as watch:
            outcome = traffic.run(seconds, stop)
        used = {name: after - cpu[name] for name, after in _cpu(registry, postgres, s3).items()}
        replaced = registry.output().count("it is replaced")
        database = settings["OPENREGISTRY_DATABASE_URL"].rpartition("/")[2]
        [[stored]] = postgres.query(f"SELECT pg_database_size('{database}')")
    verdicts = {name: judge(samples) for name, samples in watch.samples.items()}
    print(_report(options.rate, outcome, verdicts, used), flush=True)
    print(f"Postgres's database has {int(str(stored)) / 2**20:.1f} MiB at the end.")
    if options.json:
        whole = {
            "outcome": {"latencies": outcome.latencies, "errors": outcome.errors},
            "memory": watch.samples,
        }
        Path(options.json).write_text(json.dumps(whole))
    growing = [name for name, one in verdicts.items() if _is_ours(name) and not one.flat]
    for sentence in (
        *(f"FAILED: {error}" for error in outcome.errors[:10]),
        *(f"GROWS: {name}" for name in growing),
        *(["DIED: a worker was replaced"] if replaced else []),
    ):
        print(sentence)
    return int(bool(outcome.errors or growing or replaced))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make load", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3, help="how long (default: %(default)s)")
    parser.add_argument(
        "--rate", type=float, default=20, help="operations a second (default: %(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="write every figure there")
    options = parser.parse_args()
    if not 0 < options.rate <= MOST_RATE or not 0 < options.minutes <= 24 * 60:
        parser.error(f"at most {MOST_RATE} operations a second, and a day")
    return options


def _is_ours(name: str) -> bool:
    return name not in ("Postgres", "S3 server")


def _memory(registry: Registry, postgres: Postgres, s3: S3) -> dict[str, float]:
    """MiB of each process of the registry, and of Postgres and the S3 server."""
    *workers, jobs = sorted(children(registry.pid))
    ours = {
        "supervisor": {registry.pid},
        **{f"worker {number}": {pid} for number, pid in enumerate(workers, 1)},
        "jobs": {jobs},
        "Postgres": processes.postgres_below(postgres.directory),
        "S3 server": processes.tree(s3.pid),
    }
    return {name: sum(map(own_memory, pids)) for name, pids in ours.items()}


def _cpu(registry: Registry, postgres: Postgres, s3: S3) -> dict[str, float]:
    """Processor seconds so far."""
    return {
        "registry": processes.cpu_seconds(processes.tree(registry.pid)),
        "Postgres": processes.cpu_seconds(processes.tree(postgres.pid)),
        "S3 server": processes.cpu_seconds(processes.tree(s3.pid)),
    }


def _report(
    rate: float, outcome: Outcome, verdicts: dict[str, Verdict], cpu: dict[str, float]
) -> str:
    minutes = outcome.seconds / 60
    summary = (
        f"{minutes:.1f} minutes at {rate:g} operations a second: {outcome.operations:,} operations,"
        f" {outcome.requests:,} requests ({outcome.requests / outcome.seconds:.1f} a second),"
        f" {len(outcome.errors)} errors, {outcome.late} begun late"
    )
    lines = [
        summary,
        "",
        "| ms | count | p50 | p90 | p99 | most |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for what, latencies in sorted(outcome.latencies.items()):
        ordered = sorted(latencies)
        figures = [_percentile(ordered, share) * 1000 for share in (0.5, 0.9, 0.99, 1)]
        lines.append(
            f"| {what} | {len(ordered):,} | " + " | ".join(f"{one:.1f}" for one in figures) + " |"
        )
    lines += [
        "",
        "| memory, MiB | after the warm-up | at the end | an hour | most | flat |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name, one in verdicts.items():
        judged = ("yes" if one.flat else "NO") if _is_ours(name) else ""
        lines.append(
            f"| {name} | {one.first:.1f} | {one.last:.1f} | {one.slope:+.1f} | {one.peak:.1f}"
            f" | {judged} |"
        )
    lines += [
        "",
        "Processor time: "
        + ", ".join(
            f"{name} {seconds:.0f} s ({seconds / outcome.seconds:.0%} of a core)"
            for name, seconds in cpu.items()
        )
        + ".",
    ]
    return "\n".join(lines)


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


if __name__ == "__main__":
    sys.exit(main())
