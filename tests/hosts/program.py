"""The program of ``tests.hosts.functions`` in processes of its own."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.hosts.wire import Answer, Wire
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

    def command(self) -> list[str]:
        program = [sys.executable, "-m", "tests.hosts.functions"]
        return [*program, str(self.port), str(self._workers), *self._pairs]

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

    def events(self) -> list[Any]:
        """What the functions of the one worker have noted."""
        return list(self.get("/events").json())

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
