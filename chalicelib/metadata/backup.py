"""The database in a file, and out of one: by Postgres's own pg_dump and pg_restore."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from chalicelib.folders import sync_folder
from chalicelib.metadata.target import Target

_MARK = b"openregistry-sha256:"
"""Comes after what pg_dump wrote, with the hash of that: pg_restore does not always notice that the
end is missing."""


class BackupError(Exception):
    """It did not work; the text is a sentence for whoever asked."""


def dump(url: str, path: Path, programs: Path | None) -> None:
    """Write all of a database into a file that is not there yet, of one moment, while others go on
    writing; for its owner alone. ``programs`` is the folder of Postgres's programs, None: those on
    the PATH. Raises ``BackupError``."""
    program = _program("pg_dump", programs)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-") as file:
            _run([program, "--format=custom"], url, file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").digest()
            file.write(_MARK + digest)
            file.flush()
            os.fsync(file.fileno())
            # Whole or not at all, and never in place of another.
            path.hardlink_to(file.name)
        sync_folder(path.parent)
    except FileExistsError:
        raise BackupError(f"{path} is there already") from None
    except OSError as error:
        raise BackupError(f"{path} cannot be written: {error.strerror}") from error


def load(url: str, path: Path, programs: Path | None) -> None:
    """Put what ``dump`` wrote into an empty database, all or nothing. Raises ``BackupError``."""
    program = _program("pg_restore", programs)
    try:
        if not _whole(path):
            raise BackupError(f"{path} is no file of `backup create`, or not all of it")
    except OSError as error:
        raise BackupError(f"{path} cannot be read: {error.strerror}") from error
    whole = ["--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges"]
    _run([program, *whole, f"--dbname={Target.parse(url).database}", str(path)], url, None)


def _whole(path: Path) -> bool:
    """Whether a file is as ``dump`` wrote it. Raises ``OSError``."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        left = path.stat().st_size - len(_MARK) - hashed.digest_size
        while piece := file.read(max(0, min(left, 1 << 20))):
            hashed.update(piece)
            left -= len(piece)
        return left == 0 and file.read() == _MARK + hashed.digest()


def _program(name: str, programs: Path | None) -> str:
    found = str(programs / name) if programs else shutil.which(name)
    if found is None:
        raise BackupError(
            f"{name} is not on the PATH: install Postgres's client programs (Debian:"
            " postgresql-client), of the server's version or a newer one"
        )
    return found


def _run(command: list[str], url: str, output: int | None) -> None:
    target = Target.parse(url)
    # Not on the command line, which others on this machine can read.
    settings = {
        "PGHOST": target.host,
        "PGPORT": str(target.port),
        "PGUSER": target.user,
        "PGPASSWORD": target.password,
        "PGDATABASE": target.database,
        "PGSSLMODE": target.sslmode,
        "PGSSLROOTCERT": target.sslrootcert,
        "PGSSLCERT": target.sslcert,
        "PGSSLKEY": target.sslkey,
        "PGCHANNELBINDING": target.channel_binding,
    }
    environment = {**os.environ, **{name: text for name, text in settings.items() if text}}
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        words = done.stderr.decode(errors="replace").split()
        with suppress(ValueError):
            words.remove(Path(command[0]).name + ":")
        raise BackupError(f"{Path(command[0]).name}: {' '.join(words[:80])}")
