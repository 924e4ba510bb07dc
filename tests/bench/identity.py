"""What it costs to know who asks: reads of a registry with accounts, and of one that is open.

Both run at once, each with an embedded Postgres of its own, and take turns; the same requests go
to both, with each kind of credential to the one with accounts.
"""

import itertools
import json
import random
import shutil
import statistics
import subprocess
import tempfile
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from tests.bench import load, scripts
from tests.bench.load import Address, Request
from tests.client import Answer, Body, HTTPClient, push_blob, push_image
from tests.images import make_image
from tests.servers import OPENREGISTRY, Registry, stopping

GOAL = 0.85
"""Authenticated reads are to reach this part of the others' rate."""
CONNECTIONS = 16
TAGS = BLOBS = 64
USER, PASSWORD = "bench", "a password for the bench"
REPOSITORY = f"{USER}/app"
NOBODY = "(open registry)"


def measure(repeat: int, seconds: float) -> list[str]:
    """Lines of a table: reads a second by each credential, and their ratio to those of nobody."""
    place = Path(tempfile.mkdtemp(prefix="openregistry-bench-"))
    place.chmod(0o755)
    try:
        with ExitStack() as stack:
            servers = {}
            for access in ("open", "accounts"):
                servers[access] = Registry(place / access, {"OPENREGISTRY_ACCESS": access})
                stack.enter_context(stopping(servers[access].start()))
            return list(_measured(servers["open"], servers["accounts"], repeat, seconds))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _measured(everyone: Registry, accounts: Registry, repeat: int, seconds: float) -> Iterator[str]:
    credentials = _credentials(accounts)
    sides = [(NOBODY, everyone, "")]
    sides += [(kind, accounts, field) for kind, field in credentials.items()]
    digests = _seed(everyone, "")
    _seed(accounts, credentials["password"])
    reads = {
        "manifest GET": [f"GET /v2/{REPOSITORY}/manifests/tag-{n}" for n in range(TAGS)],
        "blob HEAD": [f"HEAD /v2/{REPOSITORY}/blobs/{digest}" for digest in digests],
    }
    for name, lines in reads.items():
        rates: Mapping[str, list[float]] = {kind: [] for kind, _, _ in sides}
        for turn in range(repeat):
            for kind, server, field in sides if turn % 2 == 0 else sides[::-1]:
                rates[kind].append(_rate(_address(server), lines, field, seconds))
        base = statistics.median(rates[NOBODY])
        for kind, found in rates.items():
            rate = statistics.median(found)
            ratio = "" if kind == NOBODY else f"  {rate / base:.2f}x (goal: {GOAL:.2f}x or more)"
            yield f"{name:14} {kind:16} {rate:9.1f} /s{ratio}"


def _rate(address: Address, lines: list[str], field: str, seconds: float) -> float:
    fields = [f"Authorization: {field}"] if field else []
    requests = [Request(scripts.head(*line.split(" "), *fields)) for line in lines]
    work = (scripts.read(random.choice(requests)) for _ in itertools.count())
    outcome = load.run(address, work, connections=CONNECTIONS, seconds=seconds)
    if outcome.errors:
        raise RuntimeError(f"a read failed: {outcome.errors[0]}")
    return outcome.done / outcome.seconds


def _credentials(server: Registry) -> dict[str, str]:
    """An Authorization field of each kind, of one user."""
    _openregistry(server, "user", "add", USER, "--email", "bench@example.org", "--password-stdin")
    scope = f"repository:{USER}/*:pull"
    token = _openregistry(server, "token", "create", "--user", USER, "--scope", scope).strip()
    password = _basic(PASSWORD)
    asked = urllib.request.Request(
        f"{server.url}/token?scope=repository:{REPOSITORY}:pull",
        headers={"Authorization": password},
    )
    with urllib.request.urlopen(asked) as answer:
        registry_token = json.load(answer)["token"]
    return {
        "registry token": f"Bearer {registry_token}",
        "access token": _basic(token),
        "password": password,
    }


def _openregistry(server: Registry, *words: str) -> str:
    done = subprocess.run(
        [OPENREGISTRY, *words],
        input=PASSWORD,
        env={**server.environment()},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def _basic(password: str) -> str:
    return "Basic " + b64encode(f"{USER}:{password}".encode()).decode()


class _Client(HTTPClient):
    """A client that may bring credentials."""

    def __init__(self, host: str, field: str) -> None:
        super().__init__(host)
        self._fields = {"Authorization": field} if field else {}

    def request(
        self, method: str, target: str, body: Body = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        return super().request(method, target, body, {**self._fields, **(headers or {})})


def _seed(server: Registry, field: str) -> list[str]:
    """Push what is read; gives digests of blobs."""
    client = _Client(server.host, field)
    for number in range(TAGS):
        push_image(client, REPOSITORY, make_image((1000,), f"{number}"), f"tag-{number}")
    return [push_blob(client, REPOSITORY, f"blob {number}".encode()) for number in range(BLOBS)]


def _address(server: Registry) -> Address:
    host, _, port = server.host.rpartition(":")
    return host, int(port)
