"""`openregistry cid`."""

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path

from chalicelib.cli import CommandError, Commands
from chalicelib.resolvers.unixfs import PROFILES, UNIXFS_V1_2025

_PIECE = 1 << 20


def register(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add this room's commands."""
    parser = commands.add_parser(
        "cid",
        help="print the CID that IPFS gives a file",
        description="Print the CID that IPFS gives a file: of a blob, that under which it is found "
        "there. Nothing is sent anywhere.",
    )
    parser.add_argument("file", metavar="FILE", help="- for standard input")
    parser.add_argument(
        "--profile",
        choices=PROFILES,
        default=UNIXFS_V1_2025.name,
        help=f"how the file is made into a tree; by default {UNIXFS_V1_2025.name}",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=print_cid)


def print_cid(options: argparse.Namespace) -> int:
    """Print a CID."""
    from chalicelib.resolvers.unixfs import Cid

    cid, size = Cid(PROFILES[options.profile]), 0
    try:
        with ExitStack() as stack:
            file = sys.stdin.buffer
            if options.file != "-":
                file = stack.enter_context(Path(options.file).open("rb"))
            while piece := file.read(_PIECE):
                cid.update(piece)
                size += len(piece)
    except OSError as error:
        raise CommandError(f"{options.file} cannot be read: {error.strerror}") from error
    found = cid.finish()
    answer = {"cid": found, "profile": options.profile, "size": size}
    print(json.dumps(answer) if options.json else found)
    return 0
