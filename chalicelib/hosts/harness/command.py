"""`openregistry serve`."""

import argparse
import logging
import os
import signal
import socket
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

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

if TYPE_CHECKING:
    from chalicelib.context import Context
    from chalicelib.hosts.harness.exporter import Exporter

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
    from chalicelib import tracing
    from chalicelib.hosts import build_context, check_access, check_folders, open_database
    from chalicelib.hosts.harness import certificates, log, supervisor, worker
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
    # Before there is a URL of our own Postgres, which would look like a setting.
    settings = replace(settings, access=check_access(settings))
    shown: certificates.Certificates | None = certificates.from_files(settings)
    if settings.database_url:
        open_database(settings)
    signal.signal(signal.SIGTERM, _interrupt)
    with ExitStack() as stack:
        listener = stack.enter_context(_listen("LISTEN", settings.listen))
        others = []
        if settings.acme_domains:
            others.append(stack.enter_context(_listen("ACME_LISTEN", settings.acme_listen)))
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
            tracing.preload()
            first = _first_administrator(settings) if settings.access == "accounts" else None
        except (StorageError, RegistryError) as error:
            raise CommandError(str(error)) from error
        if settings.acme_domains:
            from chalicelib.hosts.harness import acme

            acme.begin(settings)
            shown = acme.Ordered(context)
        exporter = open_exporter(context)
        _announce(settings, listener, first)
        supervisor.Supervisor(
            Registry(context), settings, listener, count,
            certificates=shown,
            exporter=exporter,
            others=[worker.Entrance(other, acme.Challenges(context)) for other in others],
        ).run()  # fmt: skip
    return 0


def _listen(setting: str, address: Address) -> socket.socket:
    """Raises ``CommandError`` with the setting's name."""
    from chalicelib.hosts.harness import supervisor

    try:
        return supervisor.listen(address)
    except OSError as error:
        raise CommandError(
            f"OPENREGISTRY_{setting}: {address} cannot be listened on: {error.strerror}"
        ) from error


def open_exporter(context: "Context") -> "Exporter | None":
    """What answers Prometheus, where that is wished. Raises ``CommandError``."""
    address = context.settings.metrics_listen
    if address is None:
        return None
    from chalicelib.hosts.harness.exporter import Exporter
    from chalicelib.metrics.survey import survey

    return Exporter(_listen("METRICS_LISTEN", address), partial(survey, context.database))


def _fit(settings: Settings, count: int) -> None:
    """Raise ``SettingsError`` where our own Postgres does not take what the workers may open."""
    from chalicelib.hosts import open_database

    database = open_database(settings)
    try:
        most = int(database.run("SHOW max_connections")[0][0])
    finally:
        database.close()
    # One more does jobs.
    processes = count + settings.work
    wanted = processes * settings.database_pool
    if wanted > most - SPARE_CONNECTIONS:
        raise SettingsError(
            "OPENREGISTRY_DATABASE_POOL",
            f"{settings.database_pool} connections of each of {processes} processes are {wanted},"
            f" and the embedded Postgres has {most - SPARE_CONNECTIONS} to give: lower it or"
            " OPENREGISTRY_WORKERS, or raise max_connections in"
            f" {settings.data_dir / 'postgres' / 'postgresql.conf'}",
        )


def _interrupt(_number: int, _frame: object) -> None:
    """SIGTERM before anything is served."""
    raise KeyboardInterrupt


class _First(NamedTuple):
    """What a person has to do before the first push where the registry has accounts: log in, as
    ``name`` if there is somebody of that name yet, or else become the first administrator by the
    link with ``secret``."""

    name: str
    secret: str | None


def _first_administrator(settings: Settings) -> _First:
    """What comes before the first push. Makes the first administrator where there is none and the
    settings say who it is. Raises ``SettingsError``."""
    from chalicelib.hosts import open_database
    from chalicelib.identity import letters, users

    if settings.exposed and not settings.public_url:
        _log.warning(
            "links in mails lead to %s: set OPENREGISTRY_PUBLIC_URL", letters.base_url(settings)
        )
    # Not the workers' database: they must not share a connection.
    database = open_database(settings)
    try:
        if not settings.admin_password:
            return _First("NAME", users.needs_administrator(database))
        made = users.create_first_administrator(
            database, settings.admin_name, settings.admin_email, settings.admin_password,
            secret=None,
        )  # fmt: skip
    except users.Refused as error:
        field = error.field.upper()
        raise SettingsError(f"OPENREGISTRY_ADMIN_{field}", f"cannot be used: {error}") from None
    finally:
        database.close()
    if made is None:
        return _First("NAME", None)
    _log.info("made the first administrator, %s", settings.admin_name)
    return _First(settings.admin_name, None)


def _announce(settings: Settings, listener: socket.socket, first: _First | None) -> None:
    """Say where it listens: the log in its own way, and a person with the first thing to try."""
    address = Address(*listener.getsockname()[:2])
    scheme = "https" if settings.secure else "http"
    url = settings.public_url or f"{scheme}://{address}"
    _log.info("OpenRegistry %s listens on %s://%s", __version__, scheme, address)
    name = url.partition("://")[2].replace("127.0.0.1:", "localhost:")
    image = f"{name}/hello" if first is None else f"{name}/{first.name}/hello"
    begin = "Push"
    sys.stdout.write(f"OpenRegistry {__version__} listens on {url}. Ctrl-C ends it.\n")
    if first is not None:
        begin = "Log in, push"
        if first.secret is not None:
            page = f"{url.partition('://')[0]}://{name}/account"
            sys.stdout.write(
                "Become the administrator; the link works once, within a day:\n\n"
                f"    {page}#first={first.secret}\n\n"
            )
    sys.stdout.write(
        f"{begin} an image that you have (`docker images` lists them), and pull it back:\n\n"
        + (f"    docker login -u {first.name} {name}\n" if first else "")
        + f"    docker tag IMAGE {image}\n"
        f"    docker push {image}\n"
        f"    docker pull {image}\n\n"
    )
    sys.stdout.flush()
