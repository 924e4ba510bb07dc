"""The embedded server: started, shared, stopped and killed, as root and as an ordinary user."""

import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from chalicelib.metadata.database import Database
from chalicelib.metadata.embedded import USER, Embedded, EmbeddedError
from tests.servers import wait_until

ROOT = Path(__file__).parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="root alone can be other users")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that nobody else can enter. (That of pytest is closed anew by every pytest that
    starts.)"""
    path = Path(tempfile.mkdtemp(prefix="openregistry-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def home(place: Path) -> Iterator[Path]:
    """The server's directory. Nothing runs there at the end."""
    directory = place / "home" / "postgres"
    yield directory
    if (process := postmaster(directory)) is not None:
        os.kill(process, signal.SIGQUIT)
        gone(process)


def postmaster(directory: Path) -> int | None:
    """The process that the server's note tells of, where there is one."""
    try:
        process = int((directory / "postmaster.pid").read_text().split("\n")[0])
        os.kill(process, 0)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    return process


def running(directory: Path) -> int:
    """The server's process, which must be there."""
    process = postmaster(directory)
    assert process is not None
    return process


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(process: int) -> None:
    wait_until(lambda: not alive(process), 20, lambda: f"process {process} to end")


def ask(url: str, sql: str) -> list[list[object]]:
    with closing(Database(url, pool=1)) as database:
        return database.run(sql)


class User:
    """Another process that uses the server of a directory until it is told to stop."""

    CODE = """
import sys
from pathlib import Path
from chalicelib.metadata.embedded import Embedded
try:
    with Embedded(Path(sys.argv[1])) as server:
        print(server.url, flush=True)
        sys.stdin.read()
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )

    def url(self) -> str:
        assert self.process.stdout is not None
        url = self.process.stdout.readline().strip()
        assert url.startswith("postgresql://"), url
        return url

    def stop(self) -> None:
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0

    def kill9(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def use(home: Path) -> Iterator[Callable[[], User]]:
    """Another process that uses the server."""
    users: list[User] = []

    def new() -> User:
        users.append(User(home))
        return users[-1]

    yield new
    for other in users:
        if other.process.poll() is None:
            other.kill9()


class TestAlone:
    def test_start_and_stop(self, home: Path) -> None:
        server = Embedded(home)
        url = server.start()
        process = running(home)
        assert url == server.url
        assert ask(url, "SELECT current_user") == [[USER]]
        server.stop()
        assert not alive(process)
        assert not list(home.parent.glob("**/.s.PGSQL*"))
        server.stop()

    def test_settings(self, home: Path) -> None:
        with Embedded(home) as server:
            expected = {
                "fsync": "on",
                "synchronous_commit": "on",
                "full_page_writes": "on",
                "listen_addresses": "",
                "server_encoding": "UTF8",
                "lc_collate": "C",
                "max_connections": "100",
                "shared_buffers": "64MB",
            }
            found = {
                name: ask(server.url, f"SHOW {name}")[0][0]
                for name in expected
                if name[:3] != "lc_"
            }
            found["lc_collate"] = ask(
                server.url, "SELECT datcollate FROM pg_database WHERE datname = current_database()"
            )[0][0]
            assert found == expected

    def test_nobody_else_can_come_near(self, home: Path) -> None:
        with Embedded(home) as server:
            [socket_directory] = parse_qs(urlsplit(server.url).query)["host"]
            for path in (home, Path(socket_directory), Path(socket_directory, ".s.PGSQL.5432")):
                assert path.stat().st_mode & 0o077 == 0
            process = running(home)
            for network in ("tcp", "tcp6", "udp"):
                lines = Path(f"/proc/{process}/net/{network}").read_text().splitlines()[1:]
                sockets = {line.split()[9] for line in lines}
                assert not sockets & open_sockets(process)

    def test_what_was_written_is_there_the_next_time(self, home: Path) -> None:
        with Embedded(home) as server:
            ask(server.url, "CREATE TABLE t AS SELECT 5 AS id")
        began = time.monotonic()
        with Embedded(home) as server:
            assert time.monotonic() - began < 15
            assert ask(server.url, "SELECT id FROM t") == [[5]]

    def test_a_long_path(self, place: Path) -> None:
        home = place / ("x" * 120) / "postgres"
        with Embedded(home) as server:
            [socket_directory] = parse_qs(urlsplit(server.url).query)["host"]
            assert Path(socket_directory).parent == Path("/tmp")
            assert Path(socket_directory).stat().st_mode & 0o077 == 0
            assert ask(server.url, "SELECT 1") == [[1]]
        Path(socket_directory).rmdir()

    def test_a_long_path_whose_short_one_is_somebody_elses(self, place: Path) -> None:
        home = place / ("x" * 120) / "postgres"
        server = Embedded(home)
        [socket_directory] = parse_qs(urlsplit(server.url).query)["host"]
        Path(socket_directory).chmod(0o755)
        with pytest.raises(EmbeddedError, match="somebody else's"):
            server.start()
        Path(socket_directory).rmdir()

    def test_a_path_with_spaces_and_quotes(self, place: Path) -> None:
        home = place / 'it\'s a "place" with $HOME; & ü' / "postgres"
        with Embedded(home) as server:
            assert ask(server.url, "SELECT 1") == [[1]]
            process = running(home)
        assert not alive(process)

    def test_half_made_files_are_made_again(self, home: Path) -> None:
        half = home.with_name("postgres.new")
        half.mkdir(parents=True)
        (half / "PG_VERSION").write_text("18")
        home.mkdir()
        with Embedded(home) as server:
            assert ask(server.url, "SELECT 1") == [[1]]
        assert not half.exists()

    def test_a_server_that_cannot_start_says_why(self, home: Path) -> None:
        with Embedded(home):
            pass
        with (home / "postgresql.conf").open("a") as settings:
            settings.write("shared_buffers = wrong\n")
        with pytest.raises(EmbeddedError, match=r'invalid value .* "shared_buffers"'):
            Embedded(home).start()

    def test_a_directory_that_cannot_be(self, place: Path) -> None:
        (place / "file").write_text("")
        for name in ("file/postgres", "file/data/postgres"):
            with pytest.raises(EmbeddedError, match=r"Not a directory|File exists"):
                Embedded(place / name).start()


class TestShared:
    def test_the_last_one_stops_it(self, home: Path, use: Callable[[], User]) -> None:
        first, second = use(), use()  # at once
        url = first.url()
        assert second.url() == url
        process = running(home)
        with Embedded(home) as server:
            assert server.url == url
            first.stop()
            second.stop()
            assert running(home) == process
            assert ask(url, "SELECT 1") == [[1]]
        assert not alive(process)

    def test_a_user_that_is_killed(self, home: Path, use: Callable[[], User]) -> None:
        first = use()
        url = first.url()
        process = running(home)
        first.kill9()
        assert ask(url, "SELECT 1") == [[1]]
        second = use()
        assert second.url() == url
        assert running(home) == process
        second.stop()
        assert not alive(process)

    def test_ctrl_c_is_not_for_the_server(self, home: Path, use: Callable[[], User]) -> None:
        user = use()
        user.url()
        process = running(home)
        assert os.getsid(process) != os.getsid(user.process.pid)
        assert os.getpgid(process) != os.getpgid(user.process.pid)
        os.killpg(user.process.pid, signal.SIGINT)
        assert user.process.stdout is not None
        # Its standard input stays open: its end would stop it too.
        assert user.process.stdout.read() == "interrupted\n"
        user.process.wait(30)
        assert not alive(process)

    def test_a_forked_process_does_not_stop_it(self, home: Path) -> None:
        with Embedded(home) as server:
            process = running(home)
            child = os.fork()
            if child == 0:
                server.stop()
                os._exit(0)
            os.waitpid(child, 0)
            assert running(home) == process
            other = User(home)
            other.url()
            other.stop()
            assert running(home) == process
        assert not alive(process)


class TestKilled:
    def test_a_dead_server_is_started_again(self, home: Path) -> None:
        with Embedded(home) as server, closing(Database(server.url)) as database:
            database.run("CREATE TABLE t (id integer)")
            database.run("INSERT INTO t VALUES (1)")
            for number in (2, 3):
                process = running(home)
                os.kill(process, signal.SIGKILL)
                wait_until(lambda: postmaster(home) not in (None, process), 20, lambda: "a new one")  # noqa: B023
                database.run("INSERT INTO t VALUES (:id)", id=number)
            assert database.run("SELECT id FROM t") == [[1], [2], [3]]
            process = running(home)
        assert not alive(process)

    @pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
    def test_a_server_that_was_told_to_stop_too(self, home: Path, how: signal.Signals) -> None:
        with Embedded(home) as server:
            process = running(home)
            os.kill(process, how)
            if how == signal.SIGTERM:  # waits for its clients, of which we are one
                time.sleep(1)
                assert alive(process)
            else:
                gone(process)
                with closing(Database(server.url)) as database:
                    assert database.run("SELECT 1") == [[1]]

    def test_a_server_that_has_only_begun_to_start(self, home: Path) -> None:
        """Whoever stops while it starts finds it without its note."""
        with Embedded(home):
            pass
        server = Embedded(home)
        server._launch()
        child = server._child
        assert child is not None
        child.send_signal(signal.SIGSTOP)
        later = threading.Timer(1, child.send_signal, [signal.SIGCONT])
        later.start()
        server._halt()
        later.join()
        assert child.returncode is not None

    def test_everything_is_killed(self, home: Path, use: Callable[[], User]) -> None:
        user = use()
        url = user.url()
        ask(url, "CREATE TABLE t AS SELECT 5 AS id")
        process = running(home)
        user.process.send_signal(signal.SIGSTOP)  # or it would start the server again
        os.kill(process, signal.SIGKILL)
        user.kill9()
        with Embedded(home) as server:
            assert ask(server.url, "SELECT id FROM t") == [[5]]

    def test_the_dead_servers_id_is_taken(self, home: Path) -> None:
        with Embedded(home):
            note = (home / "postmaster.pid").read_text()
        owner = home.stat().st_uid
        bystander = subprocess.Popen(["sleep", "60"], user=owner)
        try:
            left = home / "postmaster.pid"
            left.write_text("\n".join([str(bystander.pid), *note.split("\n")[1:]]))
            os.chown(left, owner, -1)
            with Embedded(home) as server:
                assert ask(server.url, "SELECT 1") == [[1]]
                assert running(home) != bystander.pid
            assert bystander.poll() is None
        finally:
            bystander.kill()
            bystander.wait()


@as_root
class TestUsers:
    def test_as_root_the_server_is_another_user(self, home: Path) -> None:
        with Embedded(home):
            owner = Path(f"/proc/{running(home)}").stat().st_uid
            assert owner != 0
            assert home.stat().st_uid == owner

    def test_closed_directories_stay_closed(self, home: Path) -> None:
        with Embedded(home):
            for directory in (home.parents[1],):
                assert stat.S_IMODE(directory.stat().st_mode) & 0o007 == 0
                looking = ["test", "-x", str(directory)]
                assert subprocess.run(looking, user="nobody", group="nogroup").returncode == 1
                assert subprocess.run(looking, user=USER, group=USER).returncode == 0
                listing = ["test", "-r", str(directory)]
                assert subprocess.run(listing, user=USER, group=USER).returncode == 1

    def test_an_ordinary_user(self, home: Path) -> None:
        with Embedded(home) as server:
            ask(server.url, "CREATE TABLE t AS SELECT 5 AS id")

        def use() -> object:
            home.with_name("postgres.lock").touch()
            with Embedded(home) as server:
                return ask(server.url, "SELECT id FROM t"), running(home)

        answer = as_user(USER, use)
        assert isinstance(answer, list), answer
        rows, process = answer
        assert rows == [[5]]
        assert not alive(process)

    def test_root_leaves_the_files_of_a_user_to_that_user(self, place: Path) -> None:
        home = place / "postgres"
        home.mkdir(mode=0o700)
        shutil.chown(home, "nobody", "nogroup")
        with Embedded(home) as server:
            assert ask(server.url, "SELECT 1") == [[1]]
            assert {home.owner(), (home / "base").owner()} == {"nobody"}
            assert Path(f"/proc/{running(home)}").owner() == "nobody"
        assert {path.owner() for path in place.iterdir()} == {"nobody"}

    def test_a_user_on_the_files_of_another(self, home: Path) -> None:
        with Embedded(home):
            pass

        def use() -> object:
            with pytest.raises(EmbeddedError) as caught:
                Embedded(home).start()
            return str(caught.value)

        assert "cannot be set up: [Errno 13] Permission denied" in as_user("nobody", use)


def as_user(name: str, function: Callable[[], Any]) -> Any:
    """What a function gives in a process of another user."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        account = pwd.getpwnam(name)
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
        try:
            answer = function()
        except BaseException as error:
            answer = "".join(traceback.format_exception(error))
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answers:
        found = json.load(answers)
    os.waitpid(child, 0)
    return found


def open_sockets(process: int) -> set[str]:
    """The numbers of a process's sockets."""
    found = set()
    for link in Path(f"/proc/{process}/fd").iterdir():
        target = str(link.readlink())
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found
