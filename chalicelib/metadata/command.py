"""`openregistry migrate`."""

import argparse

from chalicelib.cli import CommandError, Commands
from chalicelib.http import RegistryError
from chalicelib.settings import Settings, SettingsError


def register(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add this room's commands."""
    parser = commands.add_parser(
        "migrate",
        help="bring the database to what this release needs",
        description="Apply the migrations that OPENREGISTRY_DATABASE_URL lacks. `serve` does so by "
        "itself; on Lambda this is a step of the deployment. It may run while the release before "
        "still serves.",
    )
    parser.set_defaults(run=migrate)


def migrate(_options: argparse.Namespace) -> int:
    """Apply what is missing, and say what was applied."""
    from chalicelib.hosts import open_database
    from chalicelib.metadata.migrate import MigrationError
    from chalicelib.metadata.migrate import migrate as apply

    settings = Settings.from_environment()
    if not settings.database_url:
        raise SettingsError(
            "OPENREGISTRY_DATABASE_URL",
            "is needed: the Postgres that `serve` runs by itself is migrated by `serve`",
        )
    open_database(settings)
    try:
        applied = apply(settings.database_url)
    except (MigrationError, RegistryError) as error:
        raise CommandError(f"OPENREGISTRY_DATABASE_URL: {error}") from error
    for name in applied:
        print(f"applied {name}")
    if not applied:
        print("the database is up to date")
    return 0
