"""How far what is sent and fetched has come: bars on a terminal, plain lines in a log."""

import os
import sys
import threading
import time
from contextlib import suppress
from typing import Any, Self, TextIO

EVERY = 10.0
"""Seconds between two lines of a log."""


class Progress:
    """Where progress is told, standard error by default. Threads may share it.

    ``quiet``: nothing of how far things are, only what is said.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._terminal = not quiet and _has_room(self._stream)
        self._quiet = quiet
        self._lock = threading.Lock()
        self._bars: list[Bar] = []
        self._last = time.monotonic()

    def bar(self, label: str, total: int | None = None) -> "Bar":
        """Begin to tell of something with so many bytes, if that is known. Use it as a context."""
        return Bar(self, label, total, self._drawn(label, total) if self._terminal else None)

    def say(self, text: str) -> None:
        """Tell one line, above the bars."""
        with self._lock:
            if self._terminal:
                from tqdm import tqdm

                tqdm.write(text, file=self._stream)
            else:
                self._print(text)

    def _drawn(self, label: str, total: int | None) -> Any:
        from tqdm import tqdm

        return tqdm(
            desc=label,
            total=total,
            unit="B",
            unit_scale=True,
            unit_divisor=1000,
            file=self._stream,
            leave=True,
            dynamic_ncols=True,
        )

    def _begun(self, bar: "Bar") -> None:
        with self._lock:
            if not self._bars:
                self._last = time.monotonic()
            self._bars.append(bar)

    def _moved(self) -> None:
        """Write lines about all that is on its way, where the last ones were some time ago."""
        now = time.monotonic()
        if self._terminal or self._quiet or now - self._last < EVERY:
            return
        with self._lock:
            if now - self._last >= EVERY:
                self._last = now
                for bar in self._bars:
                    self._print(bar.line())

    def _ended(self, bar: "Bar", last: str) -> None:
        with self._lock:
            self._bars.remove(bar)
            if last and not (self._terminal or self._quiet):
                self._print(last)

    def _print(self, text: str) -> None:
        with suppress(OSError, ValueError):  # nobody reads it any more: no reason to stop
            print(text, file=self._stream, flush=True)


class Bar:
    """One thing that is on its way."""

    def __init__(self, progress: Progress, label: str, total: int | None, drawn: Any) -> None:
        self._progress = progress
        self._label = label
        self._total = total
        self._drawn = drawn
        self._stage = ""
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self.done = 0
        """Bytes."""
        progress._begun(self)

    def add(self, count: int) -> None:
        """So many bytes more are there."""
        with self._lock:
            self.done += count
            if self._drawn is not None:
                self._drawn.update(count)
        self._progress._moved()

    def stage(self, text: str) -> None:
        """What is being done now, such as ``verifying, 40 %``; empty for sending itself."""
        with self._lock:
            changed, self._stage = text != self._stage, text
            if self._drawn is not None and changed:
                self._drawn.set_postfix_str(text)
        self._progress._moved()

    def say(self, text: str) -> None:
        """Tell one line about it."""
        self._progress.say(f"{self._label}: {text}")

    def line(self) -> str:
        """How far it is, in a line."""
        line = f"{self._label}: {amount(self.done)}"
        if self._total:
            line += f" of {amount(self._total)} ({self.done * 100 // self._total} %)"
        return f"{line}, {self._stage}" if self._stage else line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        seconds = time.monotonic() - self._began
        if self._drawn is not None:
            self._drawn.set_postfix_str(self._stage if kind else "")
            self._drawn.close()
        done = f"{self._label}: {amount(self.done)} in {seconds:.1f} s"
        self._progress._ended(self, "" if kind else done)


def _has_room(stream: TextIO) -> bool:
    """Whether it is a terminal, and one with columns: some that nobody looks at have none."""
    try:
        return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0
    except OSError:
        return False


def amount(count: int) -> str:
    """A number of bytes, for people to read."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
