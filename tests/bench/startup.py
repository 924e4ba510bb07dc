"""How long Lambda's cold start spends importing app.py."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

APP = Path(__file__).parents[2] / "app.py"
GOAL = 300
"""To stay below, in milliseconds."""

_TIMED = """
import time
wall, cpu = time.perf_counter(), time.process_time()
import app
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


@dataclass(frozen=True, slots=True)
class Import:
    """Milliseconds that importing app.py takes, the CPU time of it, and the modules that take most.

    On a machine that is busy with other things the CPU time is the one to trust.
    """

    best: float
    cpu: float
    slowest: list[tuple[str, float]]


def measure(times: int) -> Import:
    """Import app.py in so many fresh interpreters and keep the best."""
    runs = [_python("-c", _TIMED).stdout.split() for _ in range(times)]
    best, cpu = (min(float(one[column]) for one in runs) * 1e3 for column in (0, 1))
    own: list[tuple[str, float]] = []
    for line in _python("-X", "importtime", "-c", "import app").stderr.splitlines():
        if line.startswith("import time:") and "|" in line and "self" not in line:
            microseconds, _, name = line.removeprefix("import time:").split("|")
            own.append((name.strip(), int(microseconds) / 1e3))
    return Import(best, cpu, sorted(own, key=lambda one: one[1], reverse=True)[:10])


def _python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=APP.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
