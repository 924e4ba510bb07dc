"""Progress on a terminal, in a log, and where nobody wants it."""

import fcntl
import io
import os
import struct
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from chalicelib.client import progress
from chalicelib.client.progress import Bar, Progress, amount


class Terminal:
    """One end of a terminal; what is written to ``stream`` is in ``text`` after ``close``."""

    def __init__(self, columns: int = 80) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))
        self.stream = os.fdopen(slave, "w")
        self.text = ""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._master, 1 << 16):
                self.text += data.decode()
        except OSError:
            pass  # Linux's end of a terminal

    def close(self) -> str:
        self.stream.close()
        self._thread.join()
        os.close(self._master)
        return self.text


def test_a_terminal_has_bars() -> None:
    terminal = Terminal()
    told = Progress(terminal.stream)
    with told.bar("first layer", 2_000_000) as one, told.bar("second layer") as two:
        one.add(1_000_000)
        two.add(5_000)
        two.say("skipped")
        one.stage("verifying, 40 %")
        one.add(1_000_000)
    text = terminal.close()
    assert "first layer: 100%" in text
    assert "2.00M/2.00M" in text
    assert "verifying, 40 %" in text
    assert "second layer: skipped\r\n" in text
    assert "5.00k" in text


def test_a_terminal_without_room_has_lines() -> None:
    terminal = Terminal(columns=0)
    with Progress(terminal.stream).bar("a layer", 10) as bar:
        bar.add(10)
    assert terminal.close().startswith("a layer: 10 bytes in 0.")


def test_a_log_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.2)
    log = io.StringIO()
    told = Progress(log)
    with told.bar("a layer", 1000) as bar:
        for _ in range(10):
            bar.add(10)
        assert log.getvalue() == ""
        time.sleep(0.25)
        bar.add(100)
        bar.stage("verifying, 40 %")
        assert log.getvalue() == "a layer: 200 bytes of 1.0 kB (20 %)\n"
        time.sleep(0.25)
        bar.stage("verifying, 50 %")
        told.say("a word")
        bar.add(800)
    _, second, word, last = log.getvalue().splitlines()
    assert second == "a layer: 200 bytes of 1.0 kB (20 %), verifying, 50 %"
    assert word == "a word"
    assert last.startswith("a layer: 1.0 kB in 0.")


def test_what_failed_is_not_said_to_be_done() -> None:
    log = io.StringIO()
    with suppress(KeyError), Progress(log).bar("a layer", 1000) as bar:
        bar.add(10)
        raise KeyError
    assert log.getvalue() == ""


def test_quiet_tells_what_is_said_alone() -> None:
    for stream in (io.StringIO(), (terminal := Terminal()).stream):
        told = Progress(stream, quiet=True)
        with told.bar("a layer", 1000) as bar:
            bar.add(1000)
            told.say("a word")
    assert terminal.close() == "a word\r\n"


def add(bar: Bar) -> None:
    for _ in range(5000):
        bar.add(1)


def test_threads_lose_no_count() -> None:
    with Progress(quiet=True).bar("a layer") as bar, ThreadPoolExecutor(8) as threads:
        for _ in range(8):
            threads.submit(add, bar)
    assert bar.done == 40_000


def test_a_reader_that_went_away_stops_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    told = Progress(stream)
    with told.bar("a layer", 10) as bar:
        told.say("a word")
        bar.add(10)
    assert bar.done == 10
    with suppress(BrokenPipeError):
        stream.close()


def test_amounts_are_for_people() -> None:
    found = [amount(count) for count in (0, 999, 1000, 1_234_567, 5 * 10**9, 3 * 10**13)]
    assert found == ["0 bytes", "999 bytes", "1.0 kB", "1.2 MB", "5.0 GB", "30.0 TB"]
