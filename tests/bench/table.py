"""What was measured, for people: a table in the terminal, and the same in Markdown."""

import math
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.servers import OURS, PEER, Storage
from tests.bench.workloads import Measure, Unit, Workload

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


@dataclass(frozen=True, slots=True)
class Row:
    """One workload on one kind of storage: all its runs on each side."""

    workload: Workload
    storage: Storage
    runs: dict[str, list[Measure]]

    def value(self, side: str) -> float | None:
        """The median of a side's runs in which nothing failed, or None when there is none."""
        values = [
            one.value
            for one in self.runs.get(side, [])
            if not (one.errors or math.isnan(one.value))
        ]
        return statistics.median(values) if values else None

    def cost(self, side: str) -> float | None:
        """CPU milliseconds an operation, of the registry and its Postgres: the median."""
        costs = [
            (one.cpu.registry + one.cpu.postgres) / one.operations * 1e3
            for one in self.runs.get(side, [])
            if one.operations
        ]
        return statistics.median(costs) if costs else None

    def ratio(self) -> float | None:
        """This registry's figure over the peer's."""
        ours, peer = self.value(OURS), self.value(PEER)
        return ours / peer if ours is not None and peer else None

    def met(self) -> bool | None:
        """Whether the target is reached; None when there is none, or nothing to compare."""
        target = self.workload.targets.get(self.storage)
        if target is None or not self.runs.get(OURS):
            return None
        ours = self.value(OURS)
        return False if ours is None else target.met(ours, self.value(PEER))

    def errors(self, side: str) -> list[str]:
        """What went wrong on a side."""
        return [error for one in self.runs.get(side, []) for error in one.errors]


HEADINGS = ("workload", "", PEER, "OpenRegistry", "ratio", "target", "met", "CPU ms an operation")


def cells(row: Row) -> tuple[str, ...]:
    """A row's texts, in the order of HEADINGS."""
    target = row.workload.targets.get(row.storage)
    ratio = row.ratio()
    higher_is_better = row.workload.unit in (Unit.RATE, Unit.THROUGHPUT)
    return (
        row.workload.name,
        row.workload.unit,
        _figure(row, PEER),
        _figure(row, OURS),
        f"{ratio:.2f}" if ratio is not None and higher_is_better else "",
        str(target) if target else "",
        {True: "yes", False: "NO", None: ""}[row.met()],
        " : ".join(_short(row.cost(side)) for side in (PEER, OURS)),
    )


def text(rows: Sequence[Row]) -> str:
    """The table for a terminal."""
    lines = [HEADINGS, *(cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column > 1 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown(tables: dict[Storage, list[Row]], notes: Sequence[str]) -> str:
    """Tables for all kinds of storage, with what one must know to read them."""
    lines = [f"Measured on {datetime.now(UTC):%Y-%m-%d} on {machine()}.", ""]
    lines += [f"- {note}" for note in notes]
    for storage, rows in tables.items():
        lines += ["", f"### {'File storage' if storage == 'file' else 'S3 storage'}", ""]
        lines += ["| " + " | ".join(HEADINGS) + " |", "|---|---|" + "---:|" * 6]
        lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def put_into(document: Path, content: str) -> None:
    """Write the tables between a document's two marks, or as a new document with marks."""
    block = f"{BEGIN}\n{content}{END}"
    if not document.exists():
        document.write_text(f"{block}\n")
        return
    before, begin, rest = document.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{document} has no {BEGIN} and {END} to write between")
    document.write_text(before + block + after)


def machine() -> str:
    """The machine in a line: processor, cores, memory, kernel, disk."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / (1 << 20)
    return (
        f"{len(models)} cores of {models[0]}, {memory:.0f} GiB of memory,"
        f" Linux {platform.release()}, Python {platform.python_version()}"
    )


def _figure(row: Row, side: str) -> str:
    return _short(row.value(side)) + (" (!)" if row.errors(side) else "")


def _short(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
