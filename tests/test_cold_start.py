"""A cold start is a person waiting: what importing ``app.py`` may load, and how long it takes."""

import subprocess
import sys
from pathlib import Path

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
    "jwt": "every registry token, and every upload's Location, is signed",
    "cryptography": "jwt verifies registry tokens with it (Ed25519)",
    "_openssl": "cryptography's own",
    "_cffi_backend": "cryptography wants it",
}
"""Third-party packages, and why each is worth its time at every cold start."""

HEAVY = {"asyncio", "concurrent", "multiprocessing", "sqlite3", "tkinter", "unittest", "xml"}
"""Parts of the standard library that nothing here needs at the start."""

BUDGET = 0.3
"""Seconds."""


def test_importing_the_functions_loads_only_what_each_start_needs() -> None:
    script = "import sys; before = set(sys.modules); import app; print(*set(sys.modules) - before)"
    loaded = {name.partition(".")[0] for name in _python("-c", script).stdout.split()}
    strangers = loaded - sys.stdlib_module_names - ALLOWED.keys()
    assert not strangers, (
        f"importing app.py loads {sorted(strangers)}, at every cold start. Import inside the"
        " function that needs it (boto3: when storage is first used), or allow it in"
        f" {Path(__file__).name} and say why."
    )
    assert not loaded & HEAVY, (
        f"importing app.py loads {sorted(loaded & HEAVY)}: slow, and not needed at every start."
    )


def test_the_import_keeps_to_its_budget() -> None:
    """In processor time, and the best of five: other programs may keep the machine busy."""
    script = "import time, app; print(time.process_time())"
    times: list[float] = []
    while len(times) < 5 and min(times, default=1.0) > BUDGET:
        times.append(float(_python("-c", script).stdout))
    assert min(times) < BUDGET, f"`import app` took {min(times):.3f} s, and may take {BUDGET} s"


def _python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
