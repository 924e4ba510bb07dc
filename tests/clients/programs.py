"""Run the Go clients that `make clients` builds."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.build import DIRECTORY

Run = Callable[..., str]


def built(name: str) -> Path:
    """A built client; without it the test is skipped."""
    program = DIRECTORY / name
    if not program.exists():
        pytest.skip(f"{name} is missing (`make clients` builds it where Go is at hand)")
    return program


def client(name: str, home: Path, **environment: str) -> Run:
    """Give a function that runs a client in `home`, which is its home directory too.

    It returns what the client writes to stdout; a failure's message holds stderr.
    """
    program = built(name)
    env = {"HOME": str(home), "PATH": os.environ["PATH"], **environment}

    def run(*arguments: str | Path, within: float = 60) -> str:
        done = subprocess.run(
            [program, *arguments],
            cwd=home,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within,
        )
        if done.returncode:
            words = " ".join(map(str, [name, *arguments]))
            raise AssertionError(
                f"`{words}` ended with {done.returncode}:\n{done.stderr}\n{done.stdout}"
            )
        return done.stdout

    return run
