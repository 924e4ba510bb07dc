"""What judges memory, and a short run of all of it."""

import subprocess
import sys

import pytest

from tests.load.memory import judge
from tests.servers import BIN


def line(begin: float, an_hour: float, seconds: int = 3600) -> list[tuple[float, float]]:
    """Samples of a process that grows by so many MiB an hour, unevenly."""
    return [
        (at, begin + an_hour * at / 3600 + (at // 30 % 2) * 0.5) for at in range(0, seconds, 30)
    ]


@pytest.mark.parametrize(("an_hour", "flat"), [(0, True), (3, True), (6, False), (-20, True)])
def test_a_process_that_grows_is_told_from_one_that_does_not(an_hour: float, flat: bool) -> None:
    verdict = judge(line(50, an_hour))
    assert verdict.flat is flat
    assert verdict.slope == pytest.approx(an_hour, abs=0.2)


def test_what_is_taken_at_the_beginning_is_no_growth() -> None:
    samples = [(at, 20 + min(at, 300) / 10) for at in range(0, 1200, 10)]
    assert judge(samples).flat
    assert judge(samples).peak == 50


def test_a_run_can_be_too_short() -> None:
    with pytest.raises(ValueError, match="too short"):
        judge([(0, 1), (1, 1)])


@pytest.mark.long
def test_a_short_run() -> None:
    """It is too short to tell whether memory is flat: only that nothing fails is asked of it."""
    done = subprocess.run(
        [BIN / "python", "-m", "tests.load", "--minutes", "0.3", "--rate", "5"],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode in (0, 1), done.stderr
    assert " 0 errors" in done.stdout, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    for name in ("put manifest", "get blob (redirect)", "worker 1", "jobs", "Postgres"):
        assert f"| {name} |" in done.stdout


def test_loads_are_bounded() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.load", "--rate", "201"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "at most 200" in done.stderr
