"""`openregistry serve`."""

import argparse
import logging
import os
import signal
import socket
import sys
from contextlib import ExitStack
from dataclasses import replace

from chalicelib import __version__
from chalicelib.cli import CommandError, Commands
from chalicelib.settings import (
    Address,
    Settings,
    SettingsError,
    loose_modes,
    secret_key,
    strangers,
)

_log = logging.getLogger(__name__)

MOST_WORKERS = 4
"""Workers where the setting leaves it to us; more are rarely worth their memory."""
SPARE_CONNECTIONS = 5
"""Connections of the embedded Postgres that are left to its keeper and to people."""


def register(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add this room's commands."""
    parser = commands.add_parser(
        "serve",
        help="run the registry",
        description="Run the registry until SIGTERM or Ctrl-C, which let running requests finish; "
        "a second one ends them. Without settings it listens on 127.0.0.1:5000, runs a Postgres of "
        "its own, and keeps everything in .data.",
    )
    parser.set_defaults(run=serve)


def serve(_options: argparse.Namespace) -> int:
    """Run the registry."""
    from chalicelib.hosts import build_context, check_access, check_folders, open_database
    from chalicelib.hosts.harness import log, supervisor, worker
    from chalicelib.hosts.harness.functions import Registry
    from chalicelib.http import RegistryError
    from chalicelib.metadata.embedded import Embedded, EmbeddedError
    from chalicelib.metadata.migrate import MigrationError, migrate
    from chalicelib.storage import StorageError

    settings = Settings.from_environment()
    log.configure(settings.log_level)
    for sentence in (*strangers(os.environ), *loose_modes(settings)):
        _log.warning("%s", sentence)
    # Whatever is made is for its owner alone, in DATA_DIR and in the folder of blobs.
    os.umask(0o077)
    check_access(settings)
    worker.tls(settings)
    if settings.database_url:
        open_database(settings)
    signal.signal(signal.SIGTERM, _interrupt)
    with ExitStack() as stack:
        try:
            listener = stack.enter_context(supervisor.listen(settings.listen))
        except OSError as error:
            raise CommandError(
                f"OPENREGISTRY_LISTEN: {settings.listen} cannot be listened on: {error.strerror}"
            ) from error
        count = settings.workers or min(os.cpu_count() or 1, MOST_WORKERS)
        check_folders(settings)
        settings = replace(settings, secret_key=secret_key(settings))
        named = "OPENREGISTRY_DATABASE_URL: " if settings.database_url else ""
        try:
            if not settings.database_url:
                embedded = Embedded(settings.data_dir / "postgres")
                stack.callback(embedded.stop)
                settings = replace(settings, database_url=embedded.start())
                _fit(settings, count)
            for name in migrate(settings.database_url):
                _log.info("applied migration %s", name)
        except (EmbeddedError, MigrationError, RegistryError) as error:
            raise CommandError(f"{named}{error}") from error
        try:
            # PART_MEMORY is for all workers together.
            context = build_context(replace(settings, part_memory=settings.part_memory // count))
            context.store.preload()
        except (StorageError, RegistryError) as error:
            raise CommandError(str(error)) from error
        _announce(settings, listener)
        supervisor.Supervisor(Registry(context), settings, listener, count).run()
    return 0


def _fit(settings: Settings, count: int) -> None:
    """Raise ``SettingsError`` where our own Postgres does not take what the workers may open."""
    from chalicelib.hosts import open_database

    database = open_database(settings)
    try:
        most = int(database.run("SHOW max_connections")[0][0])
    finally:
        database.close()
    wanted = count * settings.database_pool
    if wanted > most - SPARE_CONNECTIONS:
        raise SettingsError(
            "OPENREGISTRY_DATABASE_POOL",
            f"{settings.database_pool} connections of each of {count} workers are {wanted}, and"
            f" the embedded Postgres has {most - SPARE_CONNECTIONS} to give: lower it or"
            " OPENREGISTRY_WORKERS, or raise max_connections in"
            f" {settings.data_dir / 'postgres' / 'postgresql.conf'}",
        )


def _interrupt(_number: int, _frame: object) -> None:
    """SIGTERM before anything is served."""
    raise KeyboardInterrupt


def _announce(settings: Settings, listener: socket.socket) -> None:
    """Say where it listens: the log in its own way, and a person with the first thing to try."""
    address = Address(*listener.getsockname()[:2])
    scheme = "https" if settings.tls_certificate else "http"
    url = settings.public_url or f"{scheme}://{address}"
    _log.info("OpenRegistry %s listens on %s://%s", __version__, scheme, address)
    name = url.partition("://")[2].replace("127.0.0.1:", "localhost:")
    sys.stdout.write(
        f"OpenRegistry {__version__} listens on {url}. Ctrl-C ends it.\n"
        "Push an image that you have (`docker images` lists them), and pull it back:\n\n"
        f"    docker tag IMAGE {name}/hello\n"
        f"    docker push {name}/hello\n"
        f"    docker pull {name}/hello\n\n"
    )
    sys.stdout.flush()
