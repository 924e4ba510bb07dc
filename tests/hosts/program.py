"""The program of ``tests.hosts.functions`` in processes of its own."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.hosts.wire import Answer, Wire, until
from tests.servers import Server, answers, free_port, stopping


class Program(Server):
    """The harness with small functions behind it."""

    name = "functions"

    def __init__(self, directory: Path, workers: int, *pairs: str, **environment: str) -> None:
        super().__init__(directory)
        self.port = free_port()
        self.secure = any(pair.startswith("tls") for pair in pairs)
        self._workers = workers
        self._pairs = pairs
        self._environment = environment
        self._events = directory / "events"
        self._events.unlink(missing_ok=True)

    def command(self) -> list[str]:
        program = [sys.executable, "-m", "tests.hosts.functions"]
        return [*program, str(self.directory), str(self.port), str(self._workers), *self._pairs]

    def environment(self) -> Mapping[str, str]:
        return {**self._environment, "PYTHONPATH": str(Path(__file__).parents[2])}

    def ready(self) -> bool:
        return answers(f"http://127.0.0.1:{self.port}/health") or self.secure

    @contextlib.contextmanager
    def started(self) -> Iterator["Program"]:
        with stopping(self):
            self.start()
            yield self

    def get(self, target: str) -> Answer:
        """The answer to one request on a connection of its own."""
        with Wire(self.port) as wire:
            return wire.get(target, "Connection: close")

    def events(self, name: str | None = None) -> list[str]:
        """What the functions have noted about requests with `name=…` in their query, or about all
        of them."""
        if not self._events.exists():
            return []
        lines = self._events.read_text().split("\n")[:-1]
        return [event for whose, event in map(json.loads, lines) if name in (None, whose)]

    def wait_for(self, name: str, event: str, count: int = 1) -> None:
        """Wait until an event was noted so often about requests of that name."""
        for _ in until():
            if self.events(name).count(event) >= count:
                break

    def open_gate(self, name: str) -> None:
        """Let requests go on that wait with `gate=…` in their query."""
        (self.directory / f"gate-{name}").touch()

    def workers(self) -> list[int]:
        """The processes that the supervisor started."""
        return children(self.pid)

    def memory(self) -> int:
        """Bytes of memory of all processes, shared pages counted in parts (PSS)."""
        return sum(pss(pid) for pid in [self.pid, *self.workers()])

    def open_files(self) -> int:
        """How many files and sockets the workers have open."""
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in self.workers())

    def threads(self) -> int:
        """How many threads the workers have."""
        return sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in self.workers())


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no Pss in smaps_rollup")
