"""A cold start is a person waiting: what importing ``app.py`` may load, and how long it takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ALLOWED = {
    "app": "the functions",
    "chalicelib": "the functions",
    "chalice": "its app module alone: what routes events on Lambda",
    "pg8000": "nearly every request asks Postgres",
    "scramp": "pg8000 logs in with it",
    "asn1crypto": "scramp wants it",
    "dateutil": "pg8000 wants it",
    "six": "dateutil wants it",
    "aws_lambda_powertools": "the log's lines: 11 ms, of 150",
    "jmespath": "Powertools imports it",
    "typing_extensions": "Powertools imports it",
    "jwt": "every registry token, and every upload's Location, is signed",
    "cryptography": "jwt verifies registry tokens with it (Ed25519)",
    "_openssl": "cryptography's own",
    "_cffi_backend": "cryptography wants it",
}
"""Third-party packages, and why each is worth its time at every cold start."""

HEAVY = {"asyncio", "concurrent", "multiprocessing", "sqlite3", "tkinter", "unittest", "xml"}
"""Parts of the standard library that nothing here needs at the start."""

YARDSTICK = (
    "asyncio, decimal, difflib, doctest, email.parser, http.server, inspect, logging.config,"
    " multiprocessing.pool, pdb, sqlite3, unittest.mock, xml.dom.minidom, xmlrpc.client"
)
"""Modules of the standard library that take about a tenth of a second to import, on a machine that
imports ``app.py`` in a sixth."""

BUDGET = 2.3
"""How many times as long as that ``app.py`` may take."""


def test_importing_the_functions_loads_only_what_each_start_needs() -> None:
    script = "import sys; before = set(sys.modules); import app; print(*set(sys.modules) - before)"
    # Powertools looks whether botocore is there: its first module, and none that is slow.
    modules = set(_python("-c", script).stdout.split()) - {"botocore"}
    loaded = {name.partition(".")[0] for name in modules}
    strangers = loaded - sys.stdlib_module_names - ALLOWED.keys()
    assert not strangers, (
        f"importing app.py loads {sorted(strangers)}, at every cold start. Import inside the"
        " function that needs it (boto3: when storage is first used), or allow it in"
        f" {Path(__file__).name} and say why."
    )
    assert not loaded & HEAVY, (
        f"importing app.py loads {sorted(loaded & HEAVY)}: slow, and not needed at every start."
    )


@pytest.mark.alone
def test_the_import_keeps_to_its_budget() -> None:
    """Beside other imports, taking turns, since machines differ, and one is not always as fast. In
    processor time, and the best of five: other programs may keep the machine busy."""
    ours, others = zip(*((_seconds("app"), _seconds(YARDSTICK)) for _ in range(5)), strict=True)
    ratio = min(ours) / min(others)
    assert ratio < BUDGET, (
        f"`import app` took {min(ours):.3f} s, {ratio:.1f} times as long as the yardstick, and may"
        f" take {BUDGET} times"
    )


def _seconds(modules: str) -> float:
    """What importing these takes, the interpreter's own start included."""
    return float(_python("-c", f"import time, {modules}; print(time.process_time())").stdout)


def _python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Compiled modules are kept, as the package for Lambda has them."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=kept, capture_output=True, text=True, check=True
    )
