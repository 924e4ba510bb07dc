"""`openregistry import`: all images of another registry, or of its storage."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from chalicelib.cli import FAILED, CommandError, Commands, add, as_json

if TYPE_CHECKING:
    from chalicelib.client.importing import Origin
    from chalicelib.client.importing.bringing import Report
    from chalicelib.client.remote import RemoteError

_PATTERN = "*?["
_SHOWN = 100
"""How many failures are told of at the end; --json tells all."""


def register(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add(
        commands,
        "import",
        run,
        "bring the images of another registry, or of what Docker's (distribution) has in its "
        "storage, to a registry: tags, all that they name, and what refers to them, byte for byte. "
        "What the target has is not sent, and what was interrupted goes on where it was. Exit "
        "status 1: something was not imported, and is told with its reason",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="https://HOST or http://HOST:PORT, a registry; or its storage: a folder, or "
        "s3://BUCKET/PREFIX with the parameters of OPENREGISTRY_STORAGE_URL",
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="HOST[:PORT][/PREFIX]: NAME becomes PREFIX/NAME there",
    )
    parser.add_argument(
        "--repository",
        action="append",
        default=[],
        metavar="NAME",
        help="only these; * ? and [] stand for others, as in NAME/*. May be repeated",
    )
    parser.add_argument(
        "--names",
        type=Path,
        metavar="FILE",
        help="a file with names of repositories, one a line, where the source does not list them",
    )
    parser.add_argument(
        "--untagged",
        action="store_true",
        help="manifests too that no tag names, out of storage (a registry does not list them)",
    )
    parser.epilog = (
        "Who asks either registry is who did `docker login HOST`. Credentials for s3:// are found "
        "as AWS's own tools find them."
    )


def run(options: argparse.Namespace) -> int:
    """Import."""
    from chalicelib.client import credentials
    from chalicelib.client.importing import OriginError
    from chalicelib.client.importing.bringing import Import
    from chalicelib.client.names import BadName, Registry
    from chalicelib.client.progress import Progress
    from chalicelib.client.remote import Remote, RemoteError
    from chalicelib.registry.names import is_name

    try:
        scheme, separator, rest = options.target.rpartition("://")
        host, _, prefix = rest.partition("/")
        target = Registry.parse(f"{scheme}{separator}{host}")
        prefix = prefix.strip("/")
        if prefix and not is_name(prefix):
            raise CommandError(f"{prefix!r} is no name with which repositories can begin.")
        origin = _origin(options.source)
        account = credentials.find(target, prefix)
        with Remote(target, account) as remote:
            importing = Import(origin, remote, f"{prefix}/" if prefix else "", Progress())
            report = importing.run(
                _names(options, origin), untagged=options.untagged, named=not _is_listed(options)
            )
    except (BadName, credentials.CredentialsError, OriginError) as error:
        raise CommandError(str(error)) from error
    except RemoteError as error:
        raise CommandError(_sentence(error)) from error
    if options.json:
        print(as_json(asdict(report)))
    else:
        _print(report)
    return FAILED if report.failures else 0


def _origin(source: str) -> "Origin":
    from chalicelib.client import credentials
    from chalicelib.client.importing import storages
    from chalicelib.client.importing.registries import RegistryOrigin
    from chalicelib.client.names import Registry
    from chalicelib.client.remote import Remote

    if not source.startswith(("http://", "https://")):
        return storages.opened(source)
    registry = Registry.parse(source)
    return RegistryOrigin(Remote(registry, credentials.find(registry)))


def _names(options: argparse.Namespace, origin: "Origin") -> Iterator[str]:
    """The repositories to import. Those that are named in full need not be listed."""
    from chalicelib.client.remote import RemoteError

    patterns = options.repository
    if options.names is not None:
        try:
            lines = options.names.read_text().split("\n")
        except (OSError, UnicodeError) as error:
            raise CommandError(f"{options.names} cannot be read: {error}") from error
        listed = [line.strip() for line in lines if line.strip()]
        yield from (name for name in listed if not patterns or _meant(name, patterns))
        return
    if not _is_listed(options):
        yield from dict.fromkeys(patterns)
        return
    found = False
    try:
        for name in origin.repositories():
            if not patterns or _meant(name, patterns):
                found = True
                yield name
    except RemoteError as error:
        if not error.status:
            raise
        raise CommandError(
            f"{error.sentence} The source does not list its repositories: name them by --repository"
            " or in a file, by --names."
        ) from error
    if patterns and not found:
        raise CommandError(f"The source has no repository like {', '.join(patterns)}.")


def _is_listed(options: argparse.Namespace) -> bool:
    """Whether the source is to say which repositories there are."""
    if options.names is not None:
        return False
    patterns = options.repository
    return not patterns or any(mark in pattern for pattern in patterns for mark in _PATTERN)


def _meant(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _print(report: "Report") -> None:
    from chalicelib.client.progress import amount

    print(
        f"{report.repositories} repositories; images: {report.images} imported,"
        f" {report.there} were there, {len(report.failures)} not imported\n"
        f"{report.manifests} manifests pushed; blobs: {report.sent} sent"
        f" ({amount(report.sent_size)}), {report.mounted} mounted"
        f" ({amount(report.mounted_size)})"
    )
    for failure in report.failures[:_SHOWN]:
        print(f"not imported: {failure.image}: {failure.reason}", file=sys.stderr)
    if len(report.failures) > _SHOWN:
        more = len(report.failures) - _SHOWN
        print(f"not imported: {more} more, which --json tells", file=sys.stderr)


def _sentence(error: "RemoteError") -> str:
    return f"{error.sentence} What was imported stays: run it again, and it goes on."
