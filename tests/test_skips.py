"""In CI a test may not skip unless tests/allowed_skips.txt says so."""

import sys
from pathlib import Path

import pytest

from tests.servers import run

ROOT = Path(__file__).parents[1]

SKIPS = """
import pytest

def test_skips():
    pytest.skip("sometool is missing")

@pytest.fixture
def tool():
    pytest.skip("sometool is missing")

def test_with_fixture(tool):
    pass

@pytest.mark.xfail
def test_fails_as_expected():
    assert False
"""

ALLOWED = """
import pytest

def test_skips():
    pytest.skip("crane is missing, and so is Go, from which `make clients` builds it")
"""


def outcome(code: str, directory: Path, ci: str) -> str:
    """The last line of pytest about a file of tests."""
    file = directory / "test_skips.py"
    file.write_text(code)
    options = (
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:warnings",
        f"--rootdir={ROOT}",
        "--quiet",
    )
    done = run(
        sys.executable, "-m", "pytest", *options, file, check=False, CI=ci, PYTHONPATH=str(ROOT)
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("code", "ci", "expected"),
    [
        (SKIPS, "", "2 skipped, 1 xfailed"),
        (SKIPS, "true", "1 failed, 1 xfailed, 1 error"),
        (ALLOWED, "true", "1 skipped"),
    ],
)
def test_skips_in_ci(code: str, ci: str, expected: str, tmp_path: Path) -> None:
    assert outcome(code, tmp_path, ci).startswith(expected)
