"""`openregistry pull`: an image, from any registry, to an OCI image layout."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from chalicelib.cli import CommandError, Commands, add, print_answer

if TYPE_CHECKING:
    from chalicelib.client.names import Reference
    from chalicelib.client.remote import RemoteError


def register(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add(
        commands,
        "pull",
        pull,
        "pull an image from a registry to an OCI image layout, a folder that other tools read. "
        "Manifests stay as they are, so digests and signatures do; one of Docker's own media types "
        "is none that skopeo and podman look for in a layout. What was interrupted goes on where "
        "it was, and what is there is not fetched again",
    )
    parser.add_argument(
        "image", metavar="NAME", help="HOST/REPOSITORY[:TAG][@DIGEST]; the tag latest by default"
    )
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="a new folder, or a layout; its images stay"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--platform",
        metavar="OS/ARCH[/VARIANT]",
        help="which image of several, as linux/arm64; by default this machine's",
    )
    which.add_argument("--all", action="store_true", help="the images for all platforms")


def pull(options: argparse.Namespace) -> int:
    """Pull an image."""
    from chalicelib.client import credentials
    from chalicelib.client.layout import Layout, LayoutError
    from chalicelib.client.names import BadName, Reference
    from chalicelib.client.platforms import Platform
    from chalicelib.client.progress import Progress, amount
    from chalicelib.client.pull import Pull, PullError
    from chalicelib.client.remote import Remote, RemoteError

    try:
        image = Reference.parse(options.image)
        platform = Platform.parse(options.platform) if options.platform else None
        account = credentials.find(image.registry, image.repository)
        remote = Remote(image.registry, account)
        layout = Layout(options.folder)
        with remote:
            pulled = Pull(remote, image, layout, Progress()).run(platform, everything=options.all)
    except (BadName, credentials.CredentialsError, LayoutError, PullError) as error:
        raise CommandError(str(error)) from None
    except RemoteError as error:
        raise CommandError(_sentence(error, image, account is not None)) from None

    answer = {
        "image": str(image),
        "folder": str(options.folder),
        "name": pulled.name,
        **pulled.descriptor,
        "blobs": {"count": pulled.blobs, "bytes": pulled.size},
        "fetched": {"count": pulled.fetched_blobs, "bytes": pulled.fetched},
        "absent": pulled.absent,
    }
    sentence = (
        f"{image} is in {options.folder}{f' as {pulled.name}' if pulled.name else ''}:"
        f" {pulled.descriptor['digest']}. Of {pulled.blobs} blobs {pulled.fetched_blobs} came now,"
        f" {amount(pulled.fetched)}."
    )
    if pulled.absent:
        sentence += f" Not fetched, since registries need not have them: {len(pulled.absent)}."
    print_answer(options, answer, sentence)
    return 0


def _sentence(error: "RemoteError", image: "Reference", logged_in: bool) -> str:
    """What an error means for who pulls."""
    host = image.registry.host
    if error.status in (401, 403):
        what = "this account may not pull it" if logged_in else "nobody is logged in there"
        return f"{error.sentence} {image}: {what}. Try: docker login {host}"
    if error.status == 404:
        missing = f"{host} has no {image}, or does not show it to everybody."
        hint = "" if logged_in else f" Perhaps: docker login {host}"
        return f"{missing} {error.sentence}{hint}"
    return error.sentence
