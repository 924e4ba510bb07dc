"""Counting in memory: nothing is lost or counted twice, whoever counts and however it is sent."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from chalicelib import metrics
from chalicelib.hosts.harness import reports
from chalicelib.hosts.harness.reports import Channel, Reporter
from chalicelib.metrics import Counter, Gauge, Histogram, catalogue
from chalicelib.metrics.gathering import Added, Gathered

COUNTER = Counter("counted_total", "What is counted", ("what",))
GAUGE = Gauge("measured", "What is measured")
SECONDS = Histogram("took_seconds", "What took long", bounds=(0.1, 1.0))


@pytest.fixture
def gathered() -> Iterator[Gathered]:
    recorder = Gathered()
    metrics.record(recorder)
    yield recorder
    metrics.record(None)


def test_without_a_recorder_nothing_happens() -> None:
    COUNTER.add(1, "a")
    GAUGE.set(1)
    SECONDS.observe(1)


def test_what_is_taken_is_taken_once(gathered: Gathered) -> None:
    COUNTER.add(2, "a")
    COUNTER.add(3, "a")
    GAUGE.set(7)
    first, second = gathered.take(), gathered.take()
    assert first.counters == {("counted_total", ("a",)): 5}
    assert second.counters == {}
    assert first.gauges == second.gauges == {("measured", ()): 7}


def test_a_value_is_counted_at_the_first_bound_that_is_no_smaller(gathered: Gathered) -> None:
    for value in (0.05, 0.1, 0.2, 1.0, 5.0):
        SECONDS.observe(value)
    [found] = gathered.take().histograms.values()
    assert found.counts == [2, 2, 1]
    assert found.sum == pytest.approx(6.35)


def test_what_could_not_be_delivered_is_delivered_later(gathered: Gathered) -> None:
    COUNTER.add(1, "a")
    SECONDS.observe(0.5)
    taken = gathered.take()
    COUNTER.add(1, "a")
    SECONDS.observe(0.5)
    gathered.put_back(taken)
    again = gathered.take()
    assert again.counters == {("counted_total", ("a",)): 2}
    assert [each.counts for each in again.histograms.values()] == [[0, 2, 0]]


def test_gauges_that_are_cleared_are_gone(gathered: Gathered) -> None:
    GAUGE.set(1)
    GAUGE.clear()
    assert gathered.take().gauges == {}


def test_threads_lose_nothing(gathered: Gathered) -> None:
    def count(_number: int) -> None:
        for _ in range(2000):
            COUNTER.add(1, "a")
            SECONDS.observe(0.5)

    total = Added()
    with ThreadPoolExecutor(8) as pool:
        done = pool.map(count, range(8))
        for _ in range(50):
            total.add(gathered.take())
        list(done)
    total.add(gathered.take())
    assert total.counters["counted_total", ("a",)] == 16000
    assert total.histograms["took_seconds", ()].counts == [0, 16000, 0]


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_pieces_are_the_whole(gathered: Gathered, most: int) -> None:
    for number in range(10):
        COUNTER.add(number + 1, str(number))
    SECONDS.observe(2)
    GAUGE.set(3)
    whole = gathered.take()
    total = Added()
    for piece in whole.pieces(most):
        assert len(piece.counters) + len(piece.histograms) <= most
        assert piece.gauges == whole.gauges
        total.add(piece)
    assert total.counters == whole.counters
    assert total.histograms == whole.histograms


def test_gauges_come_though_nothing_was_counted(gathered: Gathered) -> None:
    GAUGE.set(3)
    assert [piece.gauges for piece in gathered.take().pieces(10)] == [{("measured", ()): 3}]


def test_a_report_arrives_as_it_was_sent(gathered: Gathered) -> None:
    COUNTER.add(2, "a")
    SECONDS.observe(2)
    GAUGE.set(3)
    taken = gathered.take()
    channel = Channel()
    assert channel.deliver("worker-0", taken)
    assert channel.receive() == ("worker-0", taken)


def test_the_largest_piece_fits_into_a_datagram() -> None:
    """200 values with the longest labels there are; Linux takes 208 KiB."""
    recorder = Gathered()
    for number in range(200):
        route = f"/v2/{{repository}}/_openregistry/uploads/direct/{number}"
        for value in catalogue.REQUEST_SECONDS.bounds:
            recorder.observe(catalogue.REQUEST_SECONDS, (route, "DELETE", "5xx"), value + 1e9)
    [piece] = recorder.take().pieces(200)
    assert Channel().deliver("worker-0", piece)


def test_a_reader_that_is_behind_costs_nothing_but_time() -> None:
    channel = Channel()
    total = Added()
    reporter = Reporter("worker-0", channel.deliver)
    try:
        for _ in range(1000):
            COUNTER.add(1, "a")
            reporter.report()
        # The queue is full by now, and what did not fit waits.
        while total.counters["counted_total", ("a",)] < 1000:
            total.add(channel.receive()[1])
            reporter.report()
    finally:
        metrics.record(None)
    assert total.counters["counted_total", ("a",)] == 1000


def test_a_measurement_that_fails_is_told_and_made_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a process would never be heard of again."""
    failures = iter([RuntimeError("the set changed"), None])

    def measure() -> None:
        if error := next(failures, None):
            raise error

    reported = threading.Event()

    def deliver(_process: str, _added: Added) -> bool:
        reported.set()
        return True

    monkeypatch.setattr(metrics, "_samplers", [measure])
    monkeypatch.setattr(reports, "REPORT_SECONDS", 0.01)
    try:
        Reporter("worker-0", deliver).start()
        assert reported.wait(5)
    finally:
        metrics.record(None)
    assert "the set changed" in caplog.text
