"""Work that answers do not wait for."""

import threading
import time

import pytest

from chalicelib.afterwards import AT_ONCE, Afterwards
from chalicelib.http import Unavailable


def nothing() -> None:
    pass


def test_work_is_done_after_the_call() -> None:
    afterwards, gate, done = Afterwards(), threading.Event(), threading.Event()

    def work() -> None:
        gate.wait(10)
        done.set()

    afterwards.do(work)
    assert not done.is_set()
    gate.set()
    afterwards.wait()
    assert done.is_set()


def test_a_host_that_stands_still_between_requests() -> None:
    """The work is done when the call comes back, and it takes as long without any."""
    afterwards = Afterwards(least=0.4)
    done: list[float] = []

    def work() -> None:
        time.sleep(0.2)
        done.append(time.monotonic())

    for each in (work, nothing):
        begin = time.monotonic()
        afterwards.do(each)
        assert 0.4 <= time.monotonic() - begin < 0.6
        assert len(done) == 1


@pytest.mark.parametrize("least", [0, 0.1])
def test_errors_are_logged(least: float, caplog: pytest.LogCaptureFixture) -> None:
    afterwards = Afterwards(least)
    for _ in range(3):
        afterwards.do(lambda: 1 / 0)
        afterwards.wait()
    assert caplog.text.count("ZeroDivisionError: division by zero") == 3


def test_too_much_at_once() -> None:
    afterwards, gate = Afterwards(), threading.Event()
    for _ in range(AT_ONCE):
        afterwards.do(lambda: gate.wait(30))
    with pytest.raises(Unavailable, match="Too much mail"):
        afterwards.do(nothing)
    gate.set()
    afterwards.wait()
    afterwards.do(nothing)
    afterwards.wait()
