"""The harness behind a proxy that the settings trust."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.program import Program
from tests.hosts.wire import Wire, until


@pytest.fixture(scope="module")
def program(directory: Path) -> Iterator[Program]:
    proxies = "trusted_proxies=127.0.0.0/8,10.0.0.0/8"
    with Program(directory / "proxies", 1, proxies).started() as running:
        yield running


def test_the_client_is_whom_the_proxy_saw(program: Program) -> None:
    with Wire(program.port) as wire:
        seen = wire.get(
            "/a?b=proxied",
            "X-Forwarded-For: 198.51.100.66",
            "X-Forwarded-For: 203.0.113.9, 10.0.0.2",
            "X-Forwarded-Proto: https",
        ).json()
        assert (seen["client"], seen["secure"]) == ("203.0.113.9", True)
        # The next one on the same connection is another client's.
        seen = wire.get("/a", "X-Forwarded-For: [2001:db8::1]:9", "X-Forwarded-Proto: http").json()
        assert (seen["client"], seen["secure"]) == ("2001:db8::1", False)
        seen = wire.get("/a").json()
        assert (seen["client"], seen["secure"]) == ("127.0.0.1", False)
    for _ in until():
        lines = [json.loads(line) for line in program.output().splitlines() if "b=" in line]
        if lines:
            break
    assert lines[0]["client"] == "203.0.113.9"
