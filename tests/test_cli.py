"""The command line as a person uses it."""

import base64
import hashlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from uuid import UUID

import pytest

from chalicelib import __version__
from chalicelib.cli import as_json
from tests.accounts import add_user
from tests.client import HTTPClient
from tests.hosts.wire import Wire, until
from tests.servers import OPENREGISTRY, S3, Registry, answers, free_port, stopping

ROOT = Path(__file__).parents[1]
PASSWORD = "correct horse : é"


def run(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Run a command with these settings alone."""
    ours = {name: value for name, value in os.environ.items() if "OPENREGISTRY" not in name}
    return subprocess.run(
        [OPENREGISTRY, *arguments],
        env={**ours, **{f"OPENREGISTRY_{name}": value for name, value in settings.items()}},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_version() -> None:
    assert run("--version").stdout == f"openregistry {__version__}\n"
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert pyproject["project"]["version"] == __version__


def test_times_in_json_are_those_of_rfc_3339() -> None:
    at = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    assert as_json([{"at": at, "id": UUID(int=1)}]) == (
        '[{"at": "2026-03-04T05:06:07+00:00", "id": "00000000-0000-0000-0000-000000000001"}]'
    )


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "chalicelib", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == f"openregistry {__version__}\n"


def test_help() -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in ("serve", "migrate", "check-config"):
        assert command in done.stdout
        assert run(command, "--help").stdout.startswith(f"usage: openregistry {command}")


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("serve", "--nonsense")])
def test_usage_errors(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage: openregistry" in done.stderr


# Wrong settings: one sentence, whatever the command.


@pytest.mark.parametrize("command", ["serve", "check-config", "migrate"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LISTEN", "nowhere"),
        ("PART_SIZE", "huge"),
        ("SECRET_KEY", "short"),
        ("DATABASE_URL", "mysql://host/db"),
    ],
)
def test_a_wrong_setting(command: str, name: str, value: str, tmp_path: Path) -> None:
    done = run(command, **{"DATA_DIR": str(tmp_path), name: value})
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"openregistry: OPENREGISTRY_{name}: ")


@pytest.mark.parametrize("command", ["serve", "check-config"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ACCESS", {"ACCESS": "open", "LISTEN": "0.0.0.0:0"}),
        ("ACCESS", {"ACCESS": "open", "PUBLIC_URL": "https://registry.example.org"}),
        ("ACCESS", {"ACCESS": "htpasswd"}),
        ("STORAGE_URL", {"STORAGE_URL": "s3://"}),
        ("DATABASE_URL", {"DATABASE_URL": "postgresql://host:port/db"}),
        ("TLS_CERTIFICATE", {"TLS_CERTIFICATE": "/nowhere", "TLS_KEY": "/nowhere"}),
        ("DATA_DIR", {"DATA_DIR": "~nosuchuser/x"}),
        ("DATA_DIR", {"DATA_DIR": "/etc/hostname"}),
        ("DATA_DIR", {"DATA_DIR": "/dev/null/x"}),
        ("STORAGE_URL", {"STORAGE_URL": "file:///dev/null/x"}),
        ("STORAGE_URL", {"STORAGE_URL": "file:///etc/hostname"}),
        ("STORAGE_URL", {"STORAGE_URL": "s3://b?endpoint=nonsense"}),
    ],
)
def test_settings_that_do_not_go_together(
    command: str, name: str, settings: dict[str, str], tmp_path: Path
) -> None:
    done = run(
        command, **{"LISTEN": f"127.0.0.1:{free_port()}", "DATA_DIR": str(tmp_path)} | settings
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"openregistry: OPENREGISTRY_{name}: ")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "it was refused before anything was made"


@pytest.mark.parametrize("command", ["serve", "check-config"])
def test_a_kept_key_that_is_none(command: str, tmp_path: Path) -> None:
    (tmp_path / "secret-key").touch()
    done = run(command, LISTEN=f"127.0.0.1:{free_port()}", DATA_DIR=str(tmp_path))
    assert done.returncode == 2
    start = f"openregistry: OPENREGISTRY_SECRET_KEY: is not set, and {tmp_path / 'secret-key'} "
    assert done.stderr.splitlines()[-1].startswith(start)
    assert [each.name for each in tmp_path.iterdir()] == ["secret-key"]


# check-config.


def test_check_config(database_url: str, tmp_path: Path) -> None:
    done = run("check-config", DATABASE_URL=database_url, DATA_DIR=str(tmp_path), WORKERS="3")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.split() == ["OPENREGISTRY_WORKERS", "3"] for line in lines)
    assert f"storage: {tmp_path / 'blobs'}, which `openregistry serve` makes" in lines
    assert "secret key: made by `openregistry serve` when it first starts" in lines
    assert "database: ready" in lines
    assert not list(tmp_path.iterdir())


def test_a_command_says_why_postgres_does_not_answer(tmp_path: Path) -> None:
    """As check-config does: whoever runs it can do something about that."""
    url = "postgresql://somebody:of-nobody@127.0.0.1:1/registry"
    done = run("jobs", "status", DATABASE_URL=url, DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    assert "database does not answer" in done.stderr
    assert "127.0.0.1" in done.stderr
    assert "of-nobody" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_check_config_of_a_folder_in_use(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "secret-key").write_text("k" * 32)
    (tmp_path / "secret-key").chmod(0o644)
    done = run("check-config", DATABASE_URL=database_url, DATA_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "storage: ready" in done.stdout
    assert f"warning: {tmp_path / 'secret-key'} has mode 0644" in done.stdout
    assert "secret key" not in done.stdout


def test_check_config_masks_and_warns(database_url: str, tmp_path: Path) -> None:
    secret = "s" * 20
    done = run(
        "check-config",
        DATABASE_URL=database_url,
        DATA_DIR=str(tmp_path),
        SECRET_KEY=secret,
        DATADIR="x",
    )
    assert secret not in done.stdout
    assert "OPENREGISTRY_DATADIR is not a setting; OPENREGISTRY_DATA_DIR is" in done.stdout


def test_check_config_explains(tmp_path: Path) -> None:
    done = run("check-config", "--long", DATA_DIR=str(tmp_path))
    assert "host:port that `serve` listens on" in done.stdout
    assert "a Postgres of its own" in done.stdout


def test_check_config_of_what_does_not_answer(tmp_path: Path) -> None:
    port = free_port()
    done = run(
        "check-config",
        DATABASE_URL=f"postgresql://user:hidden@127.0.0.1:{port}/db",
        STORAGE_URL=f"s3://bucket?endpoint=http://127.0.0.1:{port}&region=x&path_style=true",
        DATA_DIR=str(tmp_path),
    )
    assert done.returncode == 1
    [database] = [line for line in done.stdout.splitlines() if line.startswith("database: ")]
    assert "refused" in database
    assert "storage: " in done.stdout
    assert "ready" not in done.stdout
    assert "hidden" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_check_config_of_a_folder_that_cannot_be(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    url = (tmp_path / "file" / "blobs").as_uri()
    done = run("check-config", DATABASE_URL=database_url, DATA_DIR=str(tmp_path), STORAGE_URL=url)
    assert done.returncode == 2
    assert done.stderr.startswith("openregistry: OPENREGISTRY_STORAGE_URL: ")
    assert str(tmp_path / "file") in done.stderr


def test_check_config_with_s3(database_url: str, s3_server: S3, tmp_path: Path) -> None:
    env = {**os.environ, **s3_server.environment()}
    done = subprocess.run(
        [OPENREGISTRY, "check-config"],
        env=env
        | {
            "OPENREGISTRY_DATABASE_URL": database_url,
            "OPENREGISTRY_STORAGE_URL": s3_server.new_storage_url(),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "storage: ready" in done.stdout


# migrate.


def test_migrate(database_url: str) -> None:
    first = run("migrate", DATABASE_URL=database_url)
    assert first.returncode == 0, first.stderr
    assert "applied 0001" in first.stdout
    assert run("migrate", DATABASE_URL=database_url).stdout == "the database is up to date\n"


def test_migrate_needs_a_database() -> None:
    done = run("migrate")
    assert done.returncode == 2
    assert "OPENREGISTRY_DATABASE_URL" in done.stderr


def test_migrate_without_an_answer() -> None:
    done = run("migrate", DATABASE_URL=f"postgresql://user@127.0.0.1:{free_port()}/db")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("openregistry: OPENREGISTRY_DATABASE_URL: ")
    assert "refused" in line


# serve.


def test_serve_with_nothing_but_a_folder(registry: Registry) -> None:
    """The session's registry runs so: embedded Postgres, blobs in the folder."""
    with Wire(int(registry.host.rpartition(":")[2])) as wire:
        assert wire.get("/v2/").status == 200
    assert (registry.data_dir / "secret-key").stat().st_mode & 0o777 == 0o600
    assert (registry.data_dir / "blobs").is_dir()


def test_serve_says_where(serve: Callable[..., Registry]) -> None:
    server = serve()
    lines = server.output().splitlines()
    logged = [json.loads(line)["message"] for line in lines if line.startswith("{")]
    assert any(f"listens on http://{server.host}" in message for message in logged)
    port = server.host.rpartition(":")[2]
    assert f"    docker push localhost:{port}/hello" in lines


def test_serve_with_an_address_that_is_taken(database_url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("serve", LISTEN=address, DATABASE_URL=database_url, DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == (
        f"openregistry: OPENREGISTRY_LISTEN: {address} cannot be listened on:"
        " Address already in use\n"
    )


def test_serve_with_an_address_that_is_none(database_url: str, tmp_path: Path) -> None:
    address = "nosuchhost.invalid:5000"
    done = run("serve", LISTEN=address, DATABASE_URL=database_url, DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"openregistry: OPENREGISTRY_LISTEN: {address} cannot be listened on: ")


def test_serve_without_a_database_that_answers(tmp_path: Path) -> None:
    url = f"postgresql://user:hidden@127.0.0.1:{free_port()}/db"
    done = run("serve", LISTEN="127.0.0.1:0", DATABASE_URL=url, DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("openregistry: OPENREGISTRY_DATABASE_URL: ")
    assert "refused" in last
    assert "Traceback" not in done.stderr
    assert "hidden" not in done.stderr


def test_serve_with_a_database_that_is_not_there(database_url: str, tmp_path: Path) -> None:
    done = run(
        "serve", LISTEN="127.0.0.1:0", DATABASE_URL=database_url + "x", DATA_DIR=str(tmp_path)
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("openregistry: OPENREGISTRY_DATABASE_URL: ")
    assert "does not exist" in last


def test_serve_with_more_connections_than_its_postgres_takes(tmp_path: Path) -> None:
    done = run(
        "serve",
        LISTEN="127.0.0.1:0",
        DATA_DIR=str(tmp_path / "data"),
        WORKERS="12",
        DATABASE_POOL="8",
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("openregistry: OPENREGISTRY_DATABASE_POOL: 8 connections")
    assert "13 processes are 104," in last
    assert not (tmp_path / "data" / "postgres" / "postmaster.pid").exists()


def test_what_serve_makes_is_for_its_owner_alone(serve: Callable[..., Registry]) -> None:
    """Root's embedded Postgres, which is another user, passes through DATA_DIR all the same."""
    server = serve(OPENREGISTRY_DATABASE_URL="")
    client = HTTPClient(server.host)
    blob = b"nobody else reads this"
    started = client.request("POST", "/v2/mode/blobs/uploads/")
    separator = "&" if "?" in started.location else "?"
    digest = "sha256:" + hashlib.sha256(blob).hexdigest()
    done = client.request("PUT", f"{started.location}{separator}digest={digest}", blob)
    assert done.status == 201
    places = [server.data_dir, *(server.data_dir / "blobs").rglob("*"), server.data_dir / "blobs"]
    assert [path for path in places if path.is_file() and path.read_bytes() == blob]
    for path in places:
        # Where a user has an entry of its own, the group's bits are that entry's mask.
        mode = path.stat().st_mode
        assert not mode & 0o067, f"{path} has mode {mode:o}"


def basic(name: str, password: str) -> str:
    """The header field that logs in."""
    return "Authorization: Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def test_serve_to_the_world(serve: Callable[..., Registry]) -> None:
    """There, everyone is asked who they are, without a setting."""
    port = free_port()
    server = serve(OPENREGISTRY_LISTEN=f"0.0.0.0:{port}", OPENREGISTRY_ACCESS="")
    add_user(server.settings, "ada", PASSWORD)
    with Wire(port) as wire:
        refused = wire.get("/v2/")
        assert refused.status == 401
        challenge = 'Bearer realm="http://localhost/token",service="openregistry"'
        assert refused["www-authenticate"] == challenge
        assert refused.code == "UNAUTHORIZED"
        assert wire.get("/v2/", basic("ada", "wrong")).status == 401
        assert wire.get("/v2/", basic("ada", PASSWORD)).status == 200
        assert wire.get("/ready").status == 200
    for _ in until():
        lines = server.output().splitlines()
        entries = [json.loads(line) for line in lines if line.startswith("{")]
        subjects = [entry["subject"] for entry in entries if entry.get("path") == "/v2/"]
        if len(subjects) == 3:
            break
    assert subjects[:2] == ["", ""]
    assert re.fullmatch("account:[0-9]+", subjects[2])
    assert "Basic" not in server.output()
    assert PASSWORD not in server.output()


@pytest.mark.parametrize("embedded", [True, False])
def test_whom_loopback_asks(serve: Callable[..., Registry], embedded: bool) -> None:
    """Nobody with a Postgres of its own; everyone where the database may be others' too."""
    settings = {"OPENREGISTRY_DATABASE_URL": ""} if embedded else {}
    server = serve(OPENREGISTRY_ACCESS="", **settings)
    status = HTTPClient(server.host).request("GET", "/v2/").status
    assert status == (200 if embedded else 401)


@pytest.mark.alone
def test_those_who_guess_passwords_keep_nobody_waiting(serve: Callable[..., Registry]) -> None:
    """They wait for each other: who is known is answered meanwhile. More of them than the threads
    of a worker."""
    server = serve(OPENREGISTRY_ACCESS="accounts", OPENREGISTRY_WORKERS="1")
    add_user(server.settings, "ada", PASSWORD)
    port = int(server.host.rpartition(":")[2])
    ended = threading.Event()
    waits: dict[int, list[float]] = {}

    def timed(wire: Wire, name: str, password: str) -> tuple[int, float]:
        begun = time.monotonic()
        return wire.get("/v2/", basic(name, password)).status, time.monotonic() - begun

    def guess(number: int) -> None:
        with Wire(port, address=f"127.0.1.{number + 1}") as wire:
            while not ended.is_set():
                status, seconds = timed(wire, f"bob{number}-{time.monotonic_ns()}", "wrong")
                waits.setdefault(status, []).append(seconds)

    with Wire(port) as wire, ThreadPoolExecutor(50) as threads:
        assert timed(wire, "ada", PASSWORD)[0] == 200
        guesses = [threads.submit(guess, number) for number in range(50)]
        try:
            time.sleep(1)
            ours = [timed(wire, "ada", PASSWORD) for _ in range(10)]
        finally:
            ended.set()
        for each in guesses:
            each.result()
    assert {status for status, _ in ours} == {200}
    assert waits.keys() == {401, 429}
    assert median(seconds for _, seconds in ours) < median(waits[401]) / 2


def test_serve_on_a_terminal(database_url: str, tmp_path: Path) -> None:
    """It says what to do next, and its log is for people."""
    port = free_port()
    terminal, other_end = pty.openpty()
    environment = {
        **os.environ,
        "OPENREGISTRY_LISTEN": f"127.0.0.1:{port}",
        "OPENREGISTRY_DATA_DIR": str(tmp_path),
        "OPENREGISTRY_DATABASE_URL": database_url,
        "OPENREGISTRY_ACCESS": "open",
    }
    process = subprocess.Popen(
        [OPENREGISTRY, "serve"], env=environment, stdout=other_end, stderr=other_end
    )
    os.close(other_end)
    shown = ""
    try:
        while "docker pull" not in shown:
            shown += os.read(terminal, 4096).decode()
        for _ in until():
            if answers(f"http://127.0.0.1:{port}/v2/"):
                break
        while "GET /v2/ 200" not in shown:
            shown += os.read(terminal, 4096).decode()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        os.close(terminal)
    assert f"docker tag IMAGE localhost:{port}/hello" in shown
    assert f"docker push localhost:{port}/hello" in shown


def test_serve_on_ipv6(serve: Callable[..., Registry]) -> None:
    port = free_port()
    try:
        socket.create_server(("::1", port), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    serve(OPENREGISTRY_LISTEN=f"[::1]:{port}")


def test_sigterm_while_it_starts(tmp_path: Path) -> None:
    """The embedded Postgres does not outlive it."""
    environment = {
        **os.environ,
        "OPENREGISTRY_DATA_DIR": str(tmp_path / "data"),
        "OPENREGISTRY_LISTEN": "127.0.0.1:0",
    }
    process = subprocess.Popen(
        [OPENREGISTRY, "serve"], env=environment, stderr=subprocess.PIPE, text=True
    )
    note = tmp_path / "data" / "postgres" / "postmaster.pid"
    for _ in until(60):
        if note.exists():
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors
    assert not note.exists()


def test_two_on_one_folder(tmp_path: Path) -> None:
    """They share the embedded Postgres; the first may end before the second."""
    first = Registry(tmp_path / "a", {"OPENREGISTRY_DATA_DIR": str(tmp_path / "data")})
    second = Registry(tmp_path / "b", {"OPENREGISTRY_DATA_DIR": str(tmp_path / "data")})
    with stopping(second):
        with stopping(first):
            first.start()
            second.start()
            first.signal(signal.SIGTERM)
            assert first.process is not None
            assert first.process.wait(20) == 0
        with Wire(int(second.host.rpartition(":")[2])) as wire:
            assert wire.get("/ready").status == 200
