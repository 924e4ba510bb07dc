"""Images of the engines on this machine, docker and podman, by their own `save`: it knows which
engine is meant (contexts, DOCKER_HOST, rootless), and all of them have it.

They write images into a temporary file, unlinked, since what is first in it is told last.
"""

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import BinaryIO

from chalicelib.client.sources import SourceError

PREFIX = "docker-daemon:"
"""What may stand before an image's name, as at skopeo, where a file has that name too."""
_ENGINES = ("docker", "podman")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,500}")
_ID = re.compile(r"(?:sha256:)?[0-9a-f]{12,64}")
_LOOK_SECONDS = 0.2


def is_image(text: str) -> bool:
    """Whether an engine can have an image of that name."""
    return _IMAGE.fullmatch(text) is not None


def save(image: str, tell: Callable[[int], None]) -> BinaryIO:
    """An image in a temporary file. ``tell`` is told how many more bytes there are, now and then.
    Raises ``SourceError`` with what the engines said; ``OSError``."""
    if not is_image(image):
        raise SourceError(f"{image!r} is no image's name.")
    programs = [program for program in _ENGINES if shutil.which(program)]
    if not programs:
        raise SourceError(f"No engine can be asked for {image}: there is no docker and no podman.")
    refusals = []
    for program in programs:
        file = tempfile.TemporaryFile()  # noqa: SIM115
        said = _save(program, _tagged(image), file, tell)
        if said is None:
            return file
        file.close()
        refusals.append(f"{program} says: {said}")
    raise SourceError(f"No engine gives {image}: {'; '.join(refusals)}.")


def _save(program: str, image: str, file: BinaryIO, tell: Callable[[int], None]) -> str | None:
    """Have a program write an image; gives what it says where it does not."""
    with tempfile.TemporaryFile() as errors:
        known = 0
        with subprocess.Popen(
            [program, "save", image], stdin=subprocess.DEVNULL, stdout=file, stderr=errors
        ) as process:
            try:
                while process.poll() is None:
                    time.sleep(_LOOK_SECONDS)
                    size = file.seek(0, 1)
                    tell(size - known)
                    known = size
            except BaseException:
                process.terminate()
                raise
        if process.returncode == 0:
            return None
        errors.seek(0)
        lines = errors.read(64 << 10).decode(errors="replace").split("\n")
    words = [line.strip().removeprefix("Error: ").rstrip(".") for line in lines if line.strip()]
    return words[-1] if words else f"it ended with {process.returncode}"


def _tagged(image: str) -> str:
    """The name of one image: without a tag `docker save` gives all that a repository has."""
    if "@" in image or _ID.fullmatch(image) or ":" in image.rpartition("/")[2]:
        return image
    return f"{image}:latest"
