"""What the servers' processes cost: CPU time and memory, read from /proc."""

import os
import threading
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def tree(root: int) -> set[int]:
    """The process and all its descendants."""
    children: dict[int, list[int]] = {}
    for pid in _all():
        if (fields := _stat(pid)) is not None:
            children.setdefault(int(fields[1]), []).append(pid)
    found: set[int] = set()
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, [])
    return found


def is_postgres(pid: int) -> bool:
    """Whether this is a process of a Postgres server."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith("postgres")
    except OSError:
        return False


def postgres_below(directory: Path) -> set[int]:
    """The Postgres processes whose data directory lies below this one, whoever started them."""
    inside = str(directory.resolve()) + os.sep
    found = set()
    for pid in _all():
        try:
            where = str(Path(f"/proc/{pid}/cwd").readlink())
        except OSError:
            continue
        if (where + os.sep).startswith(inside) and is_postgres(pid):
            found.add(pid)
    return found


def cpu_seconds(pids: set[int]) -> float:
    """CPU time of these processes and of their children that ended, to 10 ms."""
    ticks = 0
    for pid in pids:
        if (fields := _stat(pid)) is not None:
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICK


def pss_bytes(pids: set[int]) -> int:
    """Proportional set size: shared pages are divided among those who share them."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


class MemoryWatch:
    """Samples the PSS of a process tree, Postgres left out, and keeps the highest value."""

    def __init__(self, root: int, interval: float = 0.1) -> None:
        self._root = root
        self._interval = interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self.peak = 0

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            pids = {pid for pid in tree(self._root) if not is_postgres(pid)}
            self.peak = max(self.peak, pss_bytes(pids))
            if self._done.wait(self._interval):
                return


def _all() -> list[int]:
    return [int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()]


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on (proc(5), field 3)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
