"""Run the Go clients that `make clients` builds."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.build import DIRECTORY

Run = Callable[..., str]


def built(name: str) -> Path:
    """A built client; without it the test is skipped."""
    program = DIRECTORY / name
    if not program.exists() and shutil.which("go") is None:
        pytest.skip(f"{name} is missing, and so is Go, from which `make clients` builds it")
    if not program.exists():
        pytest.skip(f"{name} is missing (`make clients` builds it where Go is at hand)")
    return program


def client(name: str, home: Path, **environment: str) -> Run:
    """Give a function that runs a client in `home`, which is its home directory too.

    It returns what the client wrote to stdout, bytes that are not UTF-8 as surrogates (`as_bytes`
    gives them back); what it wrote to stderr is in a failure's message.
    """
    program = built(name)
    env = {"HOME": str(home), "PATH": os.environ["PATH"], **environment}

    def run(*arguments: str | Path, stdin: bytes = b"", within: float = 60) -> str:
        done = subprocess.run(
            [program, *arguments],
            cwd=home,
            env=env,
            input=stdin,
            capture_output=True,
            timeout=within,
        )
        output = done.stdout.decode(errors="surrogateescape")
        errors = done.stderr.decode(errors="replace")
        if done.returncode:
            words = " ".join(map(str, [name, *arguments]))
            raise AssertionError(f"`{words}` ended with {done.returncode}:\n{errors}\n{output}")
        return output

    return run


def as_bytes(output: str) -> bytes:
    """The bytes of a client's output."""
    return output.encode(errors="surrogateescape")
