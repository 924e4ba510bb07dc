"""Docker engines that build and run the registry's image, and the base that it is built on here.

No image comes from elsewhere: the base is made of Debian's packages, as `make image BASE=…` allows.
"""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import need
from tests.servers import DockerEngine, Server, run

ROOT = Path(__file__).parents[2]
BASE = Path.home() / ".cache/openregistry/base-bookworm.tar"
"""What debootstrap made: Debian with Python and nothing else."""
TAG = "openregistry:test"

_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


class Engine(DockerEngine):
    """An engine whose layers share their files, and whose containers share this machine's network,
    unless it is ``isolated``."""

    isolated = False

    def command(self) -> list[str]:
        shared = ("--bridge=none", "--iptables=false", "--ip6tables=false", "--storage-driver=vfs")
        words = [word for word in super().command() if word not in shared]
        words.append("--storage-driver=overlay2")
        if not self.isolated:
            return [*words, *shared[:3]]
        up = 'ip link set lo up && exec "$@"'
        return ["unshare", "--net", "sh", "-c", up, "engine", *words]

    def within(self, *command: str | Path) -> list[str | Path]:
        """A command, as it is run within the engine's network."""
        return ["nsenter", f"--target={self.pid}", "--net", *command]

    def build(self, tag: str, *, buildkit: bool = False) -> str:
        """Build the registry's image by Makefile and Dockerfile on the base; what was written."""
        options = f"--network host --build-arg PIP_CERT={_CERTIFICATES}"
        return run(
            *("make", "image", f"TAG={tag}", "BASE=base:bookworm", f"ARGS={options}"),
            within=500,
            DOCKER_HOST=f"unix://{self.socket}",
            DOCKER_CONFIG=str(self.directory / "client"),
            DOCKER_BUILDKIT=str(int(buildkit)),
            PATH=f"/usr/bin:{os.environ['PATH']}",  # Debian's client, which belongs to its engine
        ).stdout

    @contextlib.contextmanager
    def in_isolation(self) -> Iterator[None]:
        """Have the engine, with its images, in a network namespace of its own, in which it may make
        bridges and filters as it does on a server."""
        self._move(isolated=True)
        try:
            yield
        finally:
            self._move(isolated=False)

    def _move(self, *, isolated: bool) -> None:
        Server.stop(self)
        self._unmount()
        self.isolated = isolated
        self.start()

    def stop(self, within: float = 30) -> None:
        super().stop(within)
        self._unmount()

    def _unmount(self) -> None:
        """The network of containers that have none of their own stays mounted."""
        for place in (self.directory / "exec/netns").glob("*"):
            run("umount", place, check=False)

    @contextlib.contextmanager
    def container(self, *arguments: str | Path) -> Iterator["Container"]:
        """Run a container; it is removed at the end."""
        name = self.run("run", "--detach", *arguments).stdout.split()[-1]
        try:
            yield Container(self, name)
        finally:
            self.run("rm", "--force", "--volumes", name)


@dataclass(frozen=True)
class Container:
    """A container of an engine."""

    engine: Engine
    name: str

    def look(self) -> Any:
        """What the engine knows of it."""
        [found] = json.loads(self.engine.run("inspect", self.name).stdout)
        return found

    def health(self) -> str:
        """What its health check says: starting, healthy or unhealthy."""
        return str(self.look()["State"]["Health"]["Status"])

    def log(self) -> str:
        """What it has written."""
        return self.engine.run("logs", self.name).stdout

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in it."""
        return self.engine.run("exec", self.name, *command, check=check).stdout


def base() -> Path:
    """The base as a tar file, made where there is none yet."""
    need("/usr/sbin/debootstrap", "debootstrap")
    BASE.parent.mkdir(parents=True, exist_ok=True)
    with BASE.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not BASE.exists():
            _make_base()
    return BASE


def _make_base() -> None:
    packages = "--include=python3,python3-venv,ca-certificates"
    with tempfile.TemporaryDirectory(prefix="openregistry-base-") as folder:
        root = Path(folder, "root")
        run("debootstrap", "--variant=minbase", packages, "bookworm", root, within=550)
        for waste in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc"):
            shutil.rmtree(root / waste)
        # pip trusts within what it trusts here.
        shutil.copy(_CERTIFICATES, root / _CERTIFICATES.relative_to("/"))
        made = BASE.with_suffix(".new")
        subprocess.run(["tar", "-C", root, "-cf", made, "."], check=True)
        made.rename(BASE)
