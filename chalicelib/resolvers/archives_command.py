"""`openregistry car`: whole images as files."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from chalicelib.cli import FAILED, CommandError, Commands, add, group, print_answer
from chalicelib.hosts import opened_context

_IPFS = "ipfs://"


def register(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add this room's commands."""
    car = group(commands, "car", "write whole images to files that IPFS takes, and read them")
    parser = add(
        car,
        "export",
        export,
        "write an image to a file (CAR), with all that is needed to pull it from a node that has "
        "imported it. It is made of what is in object storage; no node is asked. Exit status 1 "
        "also where something is left out that the registry does not have",
    )
    parser.add_argument("image", metavar="REPOSITORY:TAG", help="or REPOSITORY@DIGEST")
    parser.add_argument("file", metavar="FILE.car", help="is replaced where it is there")
    parser = add(
        car,
        "import",
        import_,
        "make an image of a file (CAR), or of a root on IPFS. What the file does not have comes "
        "from IPFS",
    )
    parser.add_argument("source", metavar="SOURCE", help="a file, or ipfs://CID")
    parser.add_argument(
        "image", metavar="NAME[:TAG]", help="what it is to be called here; by default with latest"
    )
    parser.add_argument(
        "--trust",
        action="append",
        metavar="PUBLIC",
        help="take it only where one of these public keys has signed it; by default it is taken "
        "though nobody has",
    )


def export(options: argparse.Namespace) -> int:
    """Write an image to a file."""
    from chalicelib.resolvers import archives
    from chalicelib.resolvers.index_command import telling
    from chalicelib.resolvers.placing import Corrupt

    repository, reference = _parts(options.image)
    if not reference:
        raise CommandError(f"{options.image} names no tag: write {options.image}:latest")
    file = Path(options.file)
    part = file.with_name(f"{file.name}.part")
    try:
        with (
            opened_context() as context,
            part.open("wb") as writing,
            telling(options.json) as tell,
        ):
            exported = archives.export(context, repository, reference, writing, tell)
        part.replace(file)
    except OSError as error:
        raise CommandError(f"{file} cannot be written: {error.strerror}") from error
    except Corrupt as error:
        raise CommandError(str(error)) from error
    finally:
        part.unlink(missing_ok=True)
    print_answer(
        options,
        asdict(exported),
        f"{_IPFS}{exported.root}\n{options.file}: {exported.digest}, {exported.manifests} manifests"
        f" and {exported.blobs} blobs in {exported.size} bytes",
    )
    for digest in exported.left_out:
        print(f"openregistry: left out, since it is not here: {digest}", file=sys.stderr)
    return FAILED if exported.left_out else 0


def import_(options: argparse.Namespace) -> int:
    """Make an image of a file or a root."""
    from chalicelib.resolvers import ResolverError, archives, finding, peers, signing
    from chalicelib.resolvers.index_command import telling
    from chalicelib.resolvers.placing import Corrupt

    repository, tag = _parts(options.image)
    tag = tag or "latest"
    try:
        trusted = options.trust and [signing.checked_key(key) for key in options.trust]
    except ValueError as error:
        raise CommandError(f"--trust {error}") from error
    try:
        with opened_context() as context, telling(options.json) as tell:
            if options.source.startswith(_IPFS):
                root, sources = options.source.removeprefix(_IPFS), finding.sources(context)
                found = peers.pull_root(context, sources, root, repository, tag, trusted, tell=tell)
            else:
                with Path(options.source).open("rb") as file:
                    found = archives.import_image(context, file, repository, tag, trusted, tell)
    except OSError as error:
        raise CommandError(f"{options.source} cannot be read: {error.strerror}") from error
    except (peers.Refused, signing.NotTrusted, ResolverError, Corrupt) as error:
        raise CommandError(str(error)) from error
    signed = f"signed by {found.key}" if found.key else "signed by nobody"
    if found.key and not trusted:
        signed += ", whom nobody was asked to trust (--trust)"
    print_answer(
        options,
        asdict(found),
        f"{repository}:{tag}: {found.digest}\n{signed}\n{found.manifests} manifests and"
        f" {found.blobs} blobs of {found.size} bytes imported, {found.blobs_there} blobs were"
        " there",
    )
    return 0


def _parts(image: str) -> tuple[str, str]:
    """A repository, and a tag or a digest; "" where there is none."""
    repository, at, digest = image.partition("@")
    if at:
        return repository, digest
    repository, _, tag = image.partition(":")
    return repository, tag
