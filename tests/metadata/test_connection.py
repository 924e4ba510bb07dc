"""Logging in, TLS and poolers: with Debian's Postgres, which has TLS, and PgBouncer."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pg8000.native
import pytest

from chalicelib.http import Unavailable
from chalicelib.metadata.database import Database, Transaction
from chalicelib.metadata.target import Target
from tests.conftest import need
from tests.servers import Postgres, Server, free_port, run, stopping

Connect = Callable[..., Database]


class TestURL:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("postgresql://u@h/d", {"user": "u", "host": "h", "port": 5432, "database": "d"}),
            ("postgres://u:p%40%2F@h:1/d", {"password": "p@/", "port": 1}),
            ("postgresql://u@/d?host=/run/pg&port=7", {"socket": "/run/pg/.s.PGSQL.7"}),
            ("postgresql://u@[::1]:7/d", {"host": "::1", "port": 7, "socket": None}),
            ("postgresql://u@h", {"database": "u", "sslmode": "prefer", "password": None}),
            ("postgresql://?user=u&password=p&dbname=d", {"host": "localhost", "password": "p"}),
            (
                "postgresql://u@h/d?sslmode=verify-full&sslrootcert=system",
                {"sslrootcert": "system"},
            ),
            ("postgresql://u@h/d?sslmode=require&channel_binding=require", {"sslmode": "require"}),
        ],
    )
    def test_what_libpq_takes(self, url: str, expected: Mapping[str, object]) -> None:
        target = Target.parse(url)
        assert {name: getattr(target, name) for name in expected} == expected

    @pytest.mark.parametrize(
        ("url", "sentence"),
        [
            ("mysql://u:secret@h/d", "begins with postgresql://"),
            ("postgresql://u:sec/ret@h/d", "special characters as %XX"),
            ("postgresql://u:secret@h:port/d", "cannot be read"),
            ("postgresql://u:secret@h/d?port=x", "cannot be read"),
            ("postgresql://u:secret@h/d?sslmod=require", "unknown parameter, sslmod"),
            ("postgresql://u:secret@h/d?sslmode=on", "sslmode in the database URL is one of"),
            (
                "postgresql://u:secret@h/d?sslrootcert=/none",
                "sslrootcert in the database URL names",
            ),
        ],
    )
    def test_what_cannot_be_right(self, url: str, sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence) as caught:
            Database(url)
        assert "sec" not in str(caught.value)

    def test_the_password_is_not_shown(self) -> None:
        assert "secret" not in repr(Target.parse("postgresql://u:secret@h/d"))


class DebianPostgres(Server):
    """Debian's Postgres, with TLS, and a user `login` who needs a password and TLS."""

    name = "debian-postgres"

    def __init__(self, directory: Path, certificates: Path) -> None:
        super().__init__(directory)
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not found:
            pytest.skip("/usr/lib/postgresql is missing (Debian's package postgresql has it)")
        self.programs = found[-1]
        self.data = directory / "data"
        self.port = free_port()
        self.data.mkdir()
        run("chown", "postgres:", self.data)
        initdb = [
            str(self.programs / "initdb"),
            "-A",
            "trust",
            "-U",
            "postgres",
            "-D",
            str(self.data),
        ]
        subprocess.run(initdb, user="postgres", cwd="/", check=True, stdout=subprocess.DEVNULL)
        hba = self.data / "pg_hba.conf"
        rules = (
            "hostssl all login 127.0.0.1/32 scram-sha-256",
            "hostssl all bearer 127.0.0.1/32 cert",
        )
        hba.write_text("\n".join((*rules, "host all login,bearer all reject", hba.read_text())))
        for name in ("server.crt", "server.key", "root.crt"):
            copy = self.data / name
            copy.write_bytes((certificates / name).read_bytes())
            copy.chmod(0o600)
            run("chown", "postgres:", copy)

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.data),
            "ssl": "on",
            "ssl_cert_file": "server.crt",
            "ssl_key_file": "server.key",
            "ssl_ca_file": "root.crt",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [str(self.programs / "postgres"), "-D", str(self.data), *options]

    def user(self) -> str:
        return "postgres"

    def ready(self) -> bool:
        try:
            self.query("SELECT 1")
        except (pg8000.native.InterfaceError, pg8000.native.DatabaseError):
            return False
        return True

    def stop(self, within: float = 30) -> None:
        if self.alive():
            self.signal(signal.SIGINT)  # which, unlike SIGTERM, waits for no client
        super().stop(within)

    def query(self, sql: str) -> None:
        with pg8000.native.Connection("postgres", host="127.0.0.1", port=self.port) as connection:
            connection.run(sql)


@pytest.fixture(scope="session")
def certificates(directory: Path) -> Path:
    """A root, and certificates that it signed: of the server `localhost`, of the user `bearer`."""
    need("openssl", "openssl")
    home = directory / "certificates"
    home.mkdir()
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "2"]

    def make(name: str, *options: str) -> None:
        out = ["-keyout", str(home / f"{name}.key"), "-out", str(home / f"{name}.crt")]
        run("openssl", "req", "-x509", *key, *out, *options)

    signed = ["-CA", str(home / "root.crt"), "-CAkey", str(home / "root.key")]
    leaf = ["-addext", "basicConstraints=critical,CA:FALSE"]
    make("root", "-subj", "/CN=root")
    make("stranger", "-subj", "/CN=stranger")
    san = ["-addext", "subjectAltName=DNS:localhost"]
    make("server", "-subj", "/CN=localhost", *san, *leaf, *signed)
    make("client", "-subj", "/CN=bearer", *leaf, *signed)
    return home


@pytest.fixture(scope="session")
def debian(directory: Path, certificates: Path) -> Iterator[DebianPostgres]:
    """Debian's Postgres."""
    server = DebianPostgres(directory / "debian-postgres", certificates)
    with stopping(server):
        server.start()
        server.query("CREATE ROLE login LOGIN PASSWORD 'p@ss'")
        server.query("CREATE ROLE bearer LOGIN")
        yield server


@pytest.fixture
def dial(debian: DebianPostgres, certificates: Path) -> Iterator[Callable[..., Database]]:
    """Connect with TLS parameters: `dial(sslmode="require", sslrootcert="root.crt")`."""
    opened = []

    def new(user: str = "postgres", host: str = "localhost", **parameters: str) -> Database:
        for name in ("sslrootcert", "sslcert", "sslkey"):
            if name in parameters:
                parameters[name] = str(certificates / parameters[name])
        query = "&".join(f"{name}={value}" for name, value in parameters.items())
        opened.append(Database(f"postgresql://{user}@{host}:{debian.port}/postgres?{query}"))
        return opened[-1]

    yield new
    for database in opened:
        database.close()


def encrypted(database: Database) -> bool:
    return bool(database.run("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")[0][0])


def refusal(database: Database) -> str:
    """Why there is no connection; it must be said at once."""
    began = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        database.check()
    assert time.monotonic() - began < 4
    return str(caught.value.__cause__)


class TestTLS:
    @pytest.mark.parametrize(
        ("host", "parameters", "tls"),
        [
            ("localhost", {}, True),
            ("localhost", {"sslmode": "prefer"}, True),
            ("localhost", {"sslmode": "disable"}, False),
            ("localhost", {"sslmode": "require"}, True),
            ("localhost", {"sslmode": "require", "sslrootcert": "root.crt"}, True),
            ("127.0.0.1", {"sslmode": "verify-ca", "sslrootcert": "root.crt"}, True),
            ("localhost", {"sslmode": "verify-full", "sslrootcert": "root.crt"}, True),
        ],
    )
    def test_modes(self, dial: Connect, host: str, parameters: dict[str, str], tls: bool) -> None:
        assert encrypted(dial(host=host, **parameters)) is tls

    @pytest.mark.parametrize(
        ("host", "parameters"),
        [
            ("127.0.0.1", {"sslmode": "verify-full", "sslrootcert": "root.crt"}),
            ("localhost", {"sslmode": "verify-full", "sslrootcert": "stranger.crt"}),
            ("localhost", {"sslmode": "verify-ca", "sslrootcert": "stranger.crt"}),
            ("localhost", {"sslmode": "require", "sslrootcert": "stranger.crt"}),
            ("localhost", {"sslmode": "verify-full"}),
        ],
    )
    def test_a_certificate_that_does_not_fit(
        self, dial: Connect, host: str, parameters: dict[str, str]
    ) -> None:
        assert "certificate verify failed" in refusal(dial(host=host, **parameters))

    def test_a_server_without_tls(self, url: str) -> None:
        assert "Server refuses SSL" in refusal(Database(f"{url}?sslmode=require"))
        Database(f"{url}?sslmode=prefer").check()

    def test_large_values(self, dial: Connect) -> None:
        value = bytes(range(256)) * (1 << 13)
        assert dial(sslmode="require").run("SELECT CAST(:b AS bytea)", b=value) == [[value]]

    def test_a_restart_is_not_noticed(self, dial: Connect, debian: DebianPostgres) -> None:
        database = dial(sslmode="require")
        database.run("CREATE TABLE IF NOT EXISTS t (id integer)")
        debian.restart()
        database.run("INSERT INTO t VALUES (1)")
        debian.restart()
        assert database.run("SELECT id FROM t") == [[1]]

    def test_a_client_certificate(self, dial: Connect) -> None:
        files = {"sslcert": "client.crt", "sslkey": "client.key"}
        assert encrypted(dial("bearer", "127.0.0.1", sslmode="require", **files))
        assert "28000" in refusal(dial("bearer", "127.0.0.1", sslmode="require"))


class TestLogin:
    def test_a_password(self, dial: Connect) -> None:
        database = dial("login:p%40ss", "127.0.0.1", sslmode="require", channel_binding="require")
        assert database.run("SELECT current_user") == [["login"]]

    def test_a_wrong_password(self, dial: Connect) -> None:
        words = refusal(dial("login:wrong", "127.0.0.1", sslmode="require"))
        assert "28P01" in words
        assert "wrong" not in words

    def test_no_password(self, dial: Connect) -> None:
        assert "asks for a password" in refusal(dial("login", "127.0.0.1", sslmode="require"))

    def test_no_channel_binding(self, dial: Connect) -> None:
        assert "channel binding" in refusal(dial(channel_binding="require", sslmode="disable"))

    def test_no_such_database(self, url: str) -> None:
        assert "3D000" in refusal(Database(url.removesuffix("/postgres") + "/none"))


class PgBouncer(Server):
    """PgBouncer in transaction mode, with two connections for everybody."""

    name = "pgbouncer"

    def __init__(self, directory: Path, postgres: Postgres) -> None:
        need("pgbouncer", "pgbouncer")
        super().__init__(directory)
        self.port = free_port()
        self.settings = directory / "pgbouncer.ini"
        self.settings.write_text(
            "[databases]\n"
            f"* = host=127.0.0.1 port={postgres.port} user=postgres\n"
            "[pgbouncer]\n"
            "pool_mode = transaction\ndefault_pool_size = 2\nauth_type = any\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            "server_login_retry = 1\n"
        )
        self.settings.chmod(0o644)

    def command(self) -> list[str]:
        return ["pgbouncer", str(self.settings)]

    def user(self) -> str:
        return "nobody"

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def ready(self) -> bool:
        database = Database(self.url, prepare=False)
        try:
            database.check()
        except Unavailable:
            return False
        finally:
            database.close()
        return True


@pytest.fixture(scope="session")
def bouncer(directory: Path, server: Postgres) -> Iterator[PgBouncer]:
    pooler = PgBouncer(directory / "pgbouncer", server)
    with stopping(pooler):
        yield pooler.start()


@pytest.fixture
def pooled(bouncer: PgBouncer, url: str) -> Iterator[Database]:
    """A database behind PgBouncer, without preparing; with a table `t (id integer)`."""
    database = Database(bouncer.url, pool=16, prepare=False)
    database.run("CREATE TABLE t (id integer PRIMARY KEY)")
    yield database
    database.close()


class TestPooler:
    def test_many_threads_share_two_connections(self, pooled: Database) -> None:
        def use(number: int) -> tuple[int, int]:
            def work(transaction: Transaction) -> int:
                transaction.run("INSERT INTO t VALUES (:id)", id=number)
                return int(transaction.run("SELECT id FROM t WHERE id = :id", id=number)[0][0])

            alone = pooled.run("SELECT :n + 1, :text", n=number, text="x" * (number % 7))
            assert alone == [[number + 1, "x" * (number % 7)]]
            [[process]] = pooled.run("SELECT pg_backend_pid()")
            return pooled.transaction(work), int(process)

        with ThreadPoolExecutor(16) as threads:
            found = list(threads.map(use, range(400)))
        assert [number for number, _ in found] == list(range(400))
        assert len({process for _, process in found}) == 2

    def test_no_setting_is_left_behind(self, pooled: Database) -> None:
        pooled.transaction(lambda transaction: transaction.run("SELECT 1"))
        for _ in range(4):
            assert pooled.run("SHOW statement_timeout") == [["0"]]
            assert pooled.run("SELECT count(*) FROM pg_prepared_statements") == [[0]]

    def test_a_restart_behind_it(self, pooled: Database, server: Postgres) -> None:
        server.restart()
        pooled.run("INSERT INTO t VALUES (1)")
        server.restart()
        pooled.transaction(lambda transaction: transaction.run("INSERT INTO t VALUES (2)"))
        server.restart()
        assert pooled.run("SELECT id FROM t ORDER BY id") == [[1], [2]]

    def test_preparing_is_refused_with_what_to_do(
        self, pooled: Database, bouncer: PgBouncer
    ) -> None:
        assert "OPENREGISTRY_DATABASE_PREPARE=false" in refusal(Database(bouncer.url))
