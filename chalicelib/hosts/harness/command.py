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
from chalicelib.settings import Address, Settings, strangers

_log = logging.getLogger(__name__)

MOST_WORKERS = 4
"""Workers where the setting leaves it to us; more are rarely worth their memory."""


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
    from chalicelib.hosts import build_context, choose_access, open_database
    from chalicelib.hosts.harness import log, supervisor, worker
    from chalicelib.hosts.harness.functions import Registry
    from chalicelib.http import RegistryError
    from chalicelib.metadata.embedded import Embedded, EmbeddedError
    from chalicelib.metadata.migrate import MigrationError, migrate
    from chalicelib.storage import StorageError

    settings = Settings.from_environment()
    log.configure(settings.log_level)
    for sentence in strangers(os.environ):
        _log.warning("%s", sentence)
    choose_access(settings)
    worker.tls(settings)
    if settings.database_url:
        open_database(settings)
    signal.signal(signal.SIGTERM, _interrupt)
    with ExitStack() as stack:
        try:
            listener = stack.enter_context(supervisor.listen(settings.listen))
        except OSError as error:
            raise CommandError(
                f"{settings.listen} cannot be listened on: {error.strerror}"
            ) from error
        count = settings.workers or min(os.cpu_count() or 1, MOST_WORKERS)
        try:
            if not settings.database_url:
                embedded = Embedded(settings.data_dir / "postgres")
                stack.callback(embedded.stop)
                settings = replace(settings, database_url=embedded.start())
            for name in migrate(settings.database_url):
                _log.info("applied migration %s", name)
            # PART_MEMORY is for all workers together.
            share = replace(settings, part_memory=settings.part_memory // count)
            context = build_context(share)
            context.store.preload()
        except (EmbeddedError, MigrationError, StorageError, RegistryError) as error:
            raise CommandError(str(error)) from error
        _announce(settings, listener)
        supervisor.Supervisor(Registry(context), settings, listener, count).run()
    return 0


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
