"""`openregistry backup`."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chalicelib.cli import CommandError, Commands, group
from chalicelib.settings import Settings

if TYPE_CHECKING:
    from chalicelib.metadata.database import Database


def register(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add this room's commands."""
    backup = group(commands, "backup", "the database in a file, and after it was restored")
    create = backup.add_parser(
        "create",
        help="write the database into a file",
        description="Write the database, as it is at this moment, into a file, while the registry"
        " goes on. Blobs are not in it, nor is the secret key.",
    )
    create.add_argument("file", type=Path, metavar="FILE", help="which must not be there yet")
    create.set_defaults(run=_create)
    restore = backup.add_parser(
        "restore",
        help="put such a file into an empty database",
        description="Put a file of `backup create` into an empty database, bring it to what this"
        " release needs, and do what `backup settle` does.",
    )
    restore.add_argument("file", type=Path, metavar="FILE")
    settle = backup.add_parser(
        "settle",
        help="make a database that was restored by other means safe to go on from",
        description="To be run once, before the registry starts, on a database that is an earlier"
        " state of itself: raises the access epoch and all ids beyond those that others may have"
        " seen, signs everybody out, and cancels uploads under way.",
    )
    for command, run in ((restore, _restore), (settle, _settle)):
        command.add_argument(
            "--revoke-tokens",
            action="store_true",
            help="void all access tokens: those that were revoked since hold again",
        )
        command.set_defaults(run=run)


def _create(options: argparse.Namespace) -> int:
    from chalicelib.metadata import backup

    settings = Settings.from_environment()
    with _opened(settings) as (url, programs):
        try:
            backup.dump(url, options.file, programs)
        except backup.BackupError as error:
            raise CommandError(str(error)) from error
    print(f"{options.file}: {options.file.stat().st_size} bytes")
    if not settings.secret_key:
        print(f"what is sealed in it opens with {settings.data_dir / 'secret-key'}: keep that too")
    return 0


def _restore(options: argparse.Namespace) -> int:
    from chalicelib.hosts import open_database, opened_database
    from chalicelib.http import RegistryError
    from chalicelib.metadata import backup
    from chalicelib.metadata.migrate import MigrationError, migrate
    from chalicelib.metadata.restored import has_tables

    settings = Settings.from_environment()
    with _opened(settings) as (url, programs):
        database = open_database(replace(settings, database_url=url))
        try:
            if has_tables(database):
                ours = f" (move {settings.data_dir / 'postgres'} away)"
                raise CommandError(
                    "the database is not empty: restore into another one"
                    + ("" if settings.database_url else ours)
                )
        except RegistryError as error:
            raise CommandError(str(error.__cause__ or error)) from error
        finally:
            database.close()
        try:
            backup.load(url, options.file, programs)
            migrate(url)
        except (backup.BackupError, MigrationError) as error:
            raise CommandError(str(error)) from error
        with opened_database(replace(settings, database_url=url)) as restored:
            _settled(restored, options)
    return 0


def _settle(options: argparse.Namespace) -> int:
    from chalicelib.hosts import opened_database

    with opened_database() as database:
        _settled(database, options)
    return 0


def _settled(database: "Database", options: argparse.Namespace) -> None:
    from chalicelib.identity.users import OPERATOR
    from chalicelib.metadata.restored import settle

    done = database.transaction(partial(settle, revoke_tokens=options.revoke_tokens, by=OPERATOR))
    print(f"ended: {done.sign_ins} sign-ins, {done.uploads} uploads under way")
    if options.revoke_tokens:
        print(f"void: {done.access_tokens} access tokens")
    else:
        print("access tokens that were revoked since hold again, unless --revoke-tokens voids all")
    print("look what storage lacks with `openregistry fsck`; sweeps go on after `sweep --force`")


@contextmanager
def _opened(settings: Settings) -> Iterator[tuple[str, Path | None]]:
    """The URL of the database, and where Postgres's programs are that fit it: the embedded one has
    its own. Raises ``CommandError`` and ``SettingsError``."""
    from chalicelib.hosts import open_database
    from chalicelib.metadata.embedded import Embedded, EmbeddedError, programs

    if settings.database_url:
        open_database(settings)
        yield settings.database_url, None
        return
    try:
        with Embedded(settings.data_dir / "postgres") as embedded:
            yield embedded.url, programs()
    except EmbeddedError as error:
        raise CommandError(str(error)) from error
