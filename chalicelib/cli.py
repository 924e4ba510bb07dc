"""The command line: `openregistry COMMAND`. Each room registers commands of its own."""

import argparse
import importlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from chalicelib import __version__
from chalicelib.http import RegistryError
from chalicelib.settings import (
    Settings,
    SettingsError,
    kept_secret_key,
    loose_modes,
    strangers,
)

ROOMS = (
    "chalicelib.hosts.harness.command",
    "chalicelib.hosts.proxy.command",
    "chalicelib.metadata.command",
    "chalicelib.metadata.backup_command",
    "chalicelib.identity.command",
    "chalicelib.jobs.command",
    "chalicelib.registry.command",
    "chalicelib.registry.rules_command",
    "chalicelib.registry.webhooks_command",
    "chalicelib.jobs.collection_command",
    "chalicelib.jobs.orphans_command",
    "chalicelib.fsck.command",
    "chalicelib.jobs.resolving_command",
    "chalicelib.resolvers.index_command",
    "chalicelib.resolvers.archives_command",
    "chalicelib.resolvers.command",
    "chalicelib.resolvers.choices_command",
    "chalicelib.client.pull_command",
    "chalicelib.client.push_command",
    "chalicelib.client.import_command",
)
"""Modules with a function ``register(commands)``, in the order of `--help`."""

Commands = argparse._SubParsersAction
"""What ``register`` gets. A command's parser says with ``set_defaults(run=…)`` which function runs
it: it is given the parsed arguments and gives the exit status."""

WRONG, FAILED = 2, 1
"""Exit statuses: what the person asked for or set cannot be; or it did not work now."""


class CommandError(Exception):
    """A command did not work; the text is the sentence that the person reads."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit status."""
    options = _parser().parse_args(arguments)
    # A command says itself what went wrong; only `serve` keeps a log.
    logging.getLogger().addHandler(logging.NullHandler())
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except SettingsError as error:
        return _say(str(error), WRONG)
    except CommandError as error:
        return _say(str(error), FAILED)
    except UnicodeEncodeError as error:
        if "surrogates" not in error.reason:
            raise
        return _say("what was given is not UTF-8", WRONG)
    except BrokenPipeError:
        # The reader went away (`| head`): nothing is left to be said, nor to be flushed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return 130


def whole(least: int, most: int) -> Callable[[str], int]:
    """A type of arguments: whole numbers from ``least`` to ``most``."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} must be a number from {least} to {most}")
        return number

    return read


ID = whole(0, (1 << 63) - 1)
"""A type of arguments: ids that are numbers."""


def group(commands: "Commands[argparse.ArgumentParser]", name: str, text: str) -> Any:
    """Commands that begin with one word, ``openregistry NAME …``; for ``add``."""
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def add(group: Any, name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
    """A command of a group, which takes ``--json`` too."""
    parser: argparse.ArgumentParser = group.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def placed(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The same command, which is about one repository or about all of an account."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--repository", metavar="NAME", help="of one repository")
    where.add_argument("--account", metavar="NAME", help="of all repositories of an account")
    return parser


def print_answer(options: argparse.Namespace, answer: dict[str, Any], sentence: str) -> None:
    """What a command has to say: the answer with ``--json``, else the sentence."""
    print(as_json(answer) if options.json else sentence)


def as_json(value: Any) -> str:
    """What a command prints with ``--json``: times as RFC 3339 has them, other ids as text."""

    def plain(each: object) -> str:
        return each.isoformat() if isinstance(each, datetime) else str(each)

    return json.dumps(value, default=plain)


def check_config(options: argparse.Namespace) -> int:
    """Print the settings in force, and try the database and the storage that they name."""
    from chalicelib.hosts import check_access, check_folders, open_database
    from chalicelib.hosts.harness import certificates
    from chalicelib.storage import open_store
    from chalicelib.storage.filesystem import FileStore

    settings = Settings.from_environment()
    shown = list(settings.shown())
    width = max(len(name) for name, _, _ in shown)
    for name, value, text in shown:
        print(
            f"{name:{width}}  {value or '-'}" + (f"\n{'':{width}}  {text}" if options.long else "")
        )
    print()
    for sentence in (*strangers(os.environ), *loose_modes(settings)):
        print(f"warning: {sentence}")

    check_access(settings)
    certificates.from_files(settings)
    check_folders(settings)
    if kept_secret_key(settings) is None:
        print("secret key: made by `openregistry serve` when it first starts")
    checks: list[tuple[str, Callable[[], None]]] = []
    store = open_store(settings)
    if isinstance(store, FileStore) and not store.folder.exists():
        print(f"storage: {store.folder}, which `openregistry serve` makes")
    else:
        checks.append(("storage", store.check))
    if settings.database_url:
        checks.append(("database", open_database(settings).check))
    else:
        print("database: a Postgres of its own, which `openregistry serve` starts")
    status = 0
    for name, check in checks:
        try:
            check()
        except Exception as error:
            # What the database's error says is for clients; its cause tells the person why.
            cause = error.__cause__ if isinstance(error, RegistryError) else None
            print(f"{name}: {str(cause or '') or str(error) or type(error).__name__}")
            status = FAILED
        else:
            print(f"{name}: ready")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="openregistry",
        description="A container registry made of functions.",
        epilog="Settings are environment variables, OPENREGISTRY_…: `openregistry check-config "
        "--long` lists and explains them.",
    )
    parser.add_argument("--version", action="version", version=f"openregistry {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for room in ROOMS:
        importlib.import_module(room).register(commands)
    check = commands.add_parser(
        "check-config",
        help="print the settings in force, and try the database and storage that they name",
        description="Print the settings in force, secrets masked, and try the database and the "
        "storage that they name. Exit status: 0 ready, 1 one of them does not answer, 2 a setting "
        "is wrong.",
    )
    check.add_argument("--long", action="store_true", help="explain each setting")
    check.set_defaults(run=check_config)
    return parser


def _say(sentence: str, status: int) -> int:
    print(f"openregistry: {sentence}", file=sys.stderr)
    return status
