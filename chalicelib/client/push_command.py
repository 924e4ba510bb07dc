"""`openregistry push`: an image of this machine, in whatever form, to a registry."""

import argparse
import os
from typing import TYPE_CHECKING

from chalicelib.cli import CommandError, Commands, add, print_answer

if TYPE_CHECKING:
    from chalicelib.client.names import Reference
    from chalicelib.client.push import Pushed
    from chalicelib.client.remote import RemoteError


def register(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = add(
        commands,
        "push",
        push,
        "push an image of this machine to a registry: an archive of docker save or podman save, "
        "an OCI layout (folder or tar), a folder of skopeo's dir:, a CAR file, or an image that "
        "docker or podman has. Layers that the registry has are not sent; what was interrupted "
        "goes on where it was",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a file or folder, with #TAG where it has several images; or an image's name, with "
        "docker-daemon: before it where a file has that name too",
    )
    parser.add_argument(
        "name", metavar="NAME", help="HOST[:PORT]/REPOSITORY[:TAG]; the tag latest by default"
    )
    parser.epilog = (
        "Layers that are plain tars are compressed with gzip, so the image may get another digest "
        "than the source has for it. Temporary files are in TMPDIR: 8 GiB at most for layers that "
        "are compressed, or one layer that is larger; and, whole, an image of an engine or an "
        "archive that was compressed itself. Who pushes is who did `docker login HOST`."
    )


def push(options: argparse.Namespace) -> int:
    """Push an image."""
    from chalicelib.client import credentials, ledger
    from chalicelib.client.names import BadName, Reference
    from chalicelib.client.progress import Progress
    from chalicelib.client.push import Push
    from chalicelib.client.remote import Remote, RemoteError
    from chalicelib.client.sources import SourceError, images
    from chalicelib.client.sources.opening import opened

    progress = Progress()
    try:
        target = Reference.parse(options.name)
        if target.digest:
            raise CommandError(f"A digest cannot be chosen: push to {target.registry.host}/…:TAG.")
        account = credentials.find(target.registry, target.repository)
        with opened(options.source, progress) as (source, reference):
            image = images.read(source, source.choose(reference))
            for note in image.notes:
                progress.say(f"openregistry: {note}")
            known = ledger.Ledger(ledger.path(os.environ))
            with Remote(target.registry, account) as remote:
                pushed = Push(remote, target, source, progress, known).run(image)
    except (BadName, credentials.CredentialsError, SourceError) as error:
        raise CommandError(str(error)) from error
    except RemoteError as error:
        raise CommandError(_sentence(error, target, account is not None)) from error
    except OSError as error:
        raise CommandError(
            f"Temporary files cannot be written (TMPDIR): {error.strerror or error}."
        ) from error
    print_answer(options, _answer(target, pushed, image.notes), _told(target, pushed))
    return 0


def _answer(target: "Reference", pushed: "Pushed", notes: list[str]) -> dict[str, object]:
    return {
        "image": f"{target.registry.host}/{target.repository}:{target.tag or 'latest'}",
        "digest": pushed.digest,
        "size": pushed.size,
        "manifests": pushed.manifests,
        "rewritten": pushed.rewritten,
        **{
            state: [{"digest": each.digest, "size": each.size} for each in pushed.of(state)]
            for state in ("sent", "skipped", "mounted")
        },
        "notes": notes,
    }


def _told(target: "Reference", pushed: "Pushed") -> str:
    from chalicelib.client.progress import amount

    words = []
    for state in ("sent", "skipped", "mounted"):
        blobs = pushed.of(state)
        if blobs:
            words.append(f"{len(blobs)} blobs {state} ({amount(sum(b.size for b in blobs))})")
    name = f"{target.registry.host}/{target.repository}:{target.tag or 'latest'}"
    return f"{name}: {pushed.digest}\n{', '.join(words)}"


def _sentence(error: "RemoteError", target: "Reference", logged_in: bool) -> str:
    """What an error means for who pushes. A quota, a blocked digest or an immutable tag has a
    sentence of the registry's own, with its figures, and a login would change nothing."""
    host = target.registry.host
    if error.status not in (401, 403) or (isinstance(error.detail, dict) and error.detail):
        return error.sentence
    what = "this account may not push there" if logged_in else "nobody is logged in there"
    return f"{error.sentence} {host}/{target.repository}: {what}. Try: docker login {host}"
