"""`openregistry restore`, `peer`, and `resolve publish|key`: what survives a loss, and what other
registries may have of it."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from chalicelib.cli import FAILED, CommandError, Commands, add, as_json, group, print_answer
from chalicelib.hosts import opened_context

if TYPE_CHECKING:
    from chalicelib.context import Context

Tell = Callable[[str, int, int], None]
_TELL_SECONDS = 10.0
"""How often progress is told where nobody watches."""
_SHOWN = 100
"""How many of those that could not be had are told of; --json tells all."""


def register(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add this room's commands."""
    restore = group(commands, "restore", "have from IPFS and other networks again what was lost")
    parser = add(
        restore,
        "blobs",
        restore_blobs,
        "put blobs back into object storage that it has lost. May be interrupted and begun again. "
        "Exit status 1: some could not be had",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="ask object storage for every blob first, not only for those that were found missing",
    )
    parser = add(
        restore,
        "metadata",
        restore_metadata,
        "fill a database that was lost from the index that was published: repositories, tags, "
        "manifests and blobs. What is there stays. May be interrupted and begun again. Exit status "
        "1: something could not be had",
    )
    parser.add_argument(
        "--from",
        default="",
        dest="origin",
        metavar="PLACE",
        help="bucket, ipns://NAME or ipfs://CID; by default the newest index in object storage or "
        "under the registry's own IPNS name",
    )
    parser.add_argument(
        "--key",
        default="",
        metavar="PUBLIC",
        help="the public key that has signed it; by default that of this SECRET_KEY",
    )
    parser.add_argument(
        "--adopt",
        action="store_true",
        help="hash what object storage has and no row knows, and fetch only what is not there",
    )

    peer = group(commands, "peer", "have what other registries have put on IPFS")
    parser = add(
        peer,
        "pull",
        pull,
        "pull an image from IPFS that a registry has put there whose public key is trusted. It "
        "need not be running",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="ipfs://CID, the root of an image; or ipns://NAME#repository:tag, by the index of a "
        "registry",
    )
    parser.add_argument(
        "image", metavar="NAME[:TAG]", help="what it is to be called here; by default with latest"
    )
    parser.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="PUBLIC",
        help="a public key that is trusted, beside those of OPENREGISTRY_TRUSTED_KEYS and the "
        "registry's own",
    )


def add_to(resolve: Any) -> None:
    """Add commands to the group ``resolve``."""
    parser = add(
        resolve,
        "publish",
        publish,
        "publish the signed index of what networks have, as a worker does every hour. Exit status "
        "1: a network does not have all of it",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="also in place of an index that this database has not made",
    )
    add(resolve, "key", show_key, "print the registry's public key, and its IPNS name")


def publish(options: argparse.Namespace) -> int:
    """Publish the index."""
    from chalicelib.resolvers import ResolverError, publishing

    with opened_context() as context:
        try:
            report = publishing.publish(context, force=options.force)
        except (publishing.Refused, ResolverError) as error:
            raise CommandError(str(error)) from error
    failures = {name or "object storage": text for name, text in report.failures.items()}
    left_out = report.left_out._asdict() if report.left_out else None
    if options.json:
        print(as_json({**asdict(report), "failures": failures, "left_out": left_out}))
    elif report.number is None:
        print("no network has anything: there is nothing to tell")
    else:
        print(f"ipfs://{report.cid}" + (f"\nipns://{report.name}" if report.name else ""))
        what = f"{report.pages} pages" if report.changed else "not changed"
        print(f"{what}; {report.put} files were put somewhere")
        for name, number in (left_out or {}).items():
            if number:
                print(f"on no network, and not told of: {number} {name}")
    for name, text in failures.items():
        print(f"openregistry: {name}: {text}", file=sys.stderr)
    return FAILED if failures else 0


def show_key(options: argparse.Namespace) -> int:
    """Print the public key, and the IPNS name."""
    from chalicelib.identity.keys import Keys
    from chalicelib.resolvers import publishing, signing
    from chalicelib.settings import Settings, kept_secret_key

    settings = Settings.from_environment()
    secret = kept_secret_key(settings)
    if secret is None:
        raise CommandError("there is no secret key yet; `openregistry serve` makes one")
    keys = Keys(secret, settings.old_secret_key)
    key, name = signing.public_keys(keys)[0], publishing.ipns_name(keys)
    print_answer(options, {"key": key, "ipns": name}, f"key:  {key}\nipns: {name}")
    return 0


def restore_blobs(options: argparse.Namespace) -> int:
    """Put blobs back."""
    from chalicelib import digests
    from chalicelib.resolvers import restoring

    with opened_context() as context, telling(options.json) as tell:
        report = restoring.restore_blobs(context, check=options.check, tell=tell)
    failures = [
        {"digest": digests.unpack(each.digest), "size": each.size, "reason": each.reason}
        for each in report.failures
    ]
    if options.json:
        print(as_json({**asdict(report), "failures": failures}))
    else:
        if options.check:
            print(f"checked: {report.checked} blobs")
        print(f"missing: {report.missing} blobs, {report.missing_size} bytes")
        print(f"restored: {report.restored} blobs, {report.restored_size} bytes")
        _print_lost([(digests.unpack(each.digest), each.reason) for each in report.failures])
    return FAILED if failures else 0


def restore_metadata(options: argparse.Namespace) -> int:
    """Fill the database."""
    from chalicelib.resolvers import ResolverError, finding, restoring_metadata, signing

    with opened_context() as context:
        try:
            trusted = [signing.checked_key(options.key)] if options.key else _own(context)
            top = finding.newest(context, options.origin, trusted)
        except (ResolverError, signing.NotTrusted) as error:
            raise CommandError(f"there is no index to restore from: {error}") from error
        except ValueError as error:
            raise CommandError(f"--key {error}") from error
        with telling(options.json) as tell:
            report = restoring_metadata.restore_metadata(
                context, top, adopt=options.adopt, tell=tell
            )
    left_out = report.left_out._asdict() if report.left_out else None
    if options.json:
        print(as_json({**asdict(report), "left_out": left_out}))
    else:
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(report.number))
        print(f"index of {made}, signed by {report.key}")
        print(f"repositories: {report.repositories}")
        print(f"manifests: {report.manifests} restored, {report.manifests_there} were there")
        print(f"tags: {report.tags} restored, {report.tags_kept} point elsewhere by now and stay")
        print(
            f"blobs: {report.fetched} fetched, {report.adopted} adopted,"
            f" {report.blobs_there} were there"
        )
        if report.unread:
            print(f"sealed by another registry, and not read: {report.unread} pages")
        for name, number in (left_out or {}).items():
            if number:
                print(f"was on no network when the index was made: {number} {name}")
        _print_lost([(each.what, each.reason) for each in report.lost])
    return FAILED if report.lost else 0


def pull(options: argparse.Namespace) -> int:
    """Pull an image of another registry."""
    from chalicelib.resolvers import ResolverError, peers, signing
    from chalicelib.resolvers.placing import Corrupt

    repository, _, tag = options.image.partition(":")
    tag = tag or "latest"
    with opened_context() as context, telling(options.json) as tell:
        try:
            keys = map(signing.checked_key, options.key)
            trusted = [*_own(context), *context.settings.trusted_keys, *keys]
            pulled = peers.pull(context, options.source, repository, tag, trusted, tell)
        except (peers.Refused, signing.NotTrusted, ResolverError, Corrupt) as error:
            raise CommandError(str(error)) from error
        except ValueError as error:
            raise CommandError(f"--key {error}") from error
    print_answer(
        options,
        asdict(pulled),
        f"{options.image}: {pulled.digest}\nsigned by {pulled.key}\n"
        f"{pulled.manifests} manifests and {pulled.blobs} blobs of {pulled.size} bytes fetched,"
        f" {pulled.blobs_there} blobs were there",
    )
    return 0


def _own(context: "Context") -> list[str]:
    from chalicelib.resolvers import signing

    return signing.public_keys(context.keys)


def _print_lost(lost: list[tuple[str, str]]) -> None:
    for what, reason in lost[:_SHOWN]:
        print(f"could not be had: {what}: {reason}")
    if len(lost) > _SHOWN:
        print(f"could not be had: {len(lost) - _SHOWN} more, which --json tells")


@contextmanager
def telling(quiet: bool) -> Iterator[Tell]:
    """Tells progress on standard error: over and over on a terminal, until it is done, else a line
    now and then."""
    said = float("-inf")

    def tell(what: str, done: int, most: int) -> None:
        nonlocal said
        now = time.monotonic()
        if quiet or now < said + (0.1 if sys.stderr.isatty() else _TELL_SECONDS):
            return
        line = f"{what}: {done} of {most}"
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line}", end="\r", file=sys.stderr, flush=True)
        else:
            print(f"openregistry: {line}", file=sys.stderr, flush=True)
        said = now

    try:
        yield tell
    finally:
        if said > float("-inf") and sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
