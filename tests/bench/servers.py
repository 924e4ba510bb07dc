"""The two registries that are compared, each as its user starts it, on the same kind of storage."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.bench import processes
from tests.bench.load import Address
from tests.servers import S3, Registry, Server, answers, free_port, stopping

Storage = Literal["file", "s3"]
STORAGES: tuple[Storage, ...] = ("file", "s3")

PEER = "docker-registry"
OURS = "openregistry"


class DockerRegistry(Server):
    """Debian's docker-registry with Debian's settings, but for authentication, storage, and the
    regular search for abandoned uploads."""

    name = PEER

    def __init__(self, directory: Path, s3: S3 | None) -> None:
        super().__init__(directory)
        self.host = f"127.0.0.1:{free_port()}"
        self.config = directory / "config.yml"
        self.config.write_text(
            "version: 0.1\n"
            "log:\n  fields:\n    service: registry\n"
            "storage:\n"
            f"  {self._storage(s3)}\n"
            "  cache:\n    blobdescriptor: inmemory\n"
            "  delete:\n    enabled: true\n"
            # The purger starts at a random minute of the first hour, and on SeaweedFS it panics.
            "  maintenance:\n    uploadpurging:\n      enabled: false\n"
            f"http:\n  addr: {self.host}\n  headers:\n    X-Content-Type-Options: [nosniff]\n"
            "health:\n  storagedriver:\n    enabled: true\n    interval: 10s\n    threshold: 3\n"
        )

    def _storage(self, s3: S3 | None) -> str:
        if s3 is None:
            return f"filesystem: {{rootdirectory: {self.directory}/data}}"
        return (
            f"s3: {{accesskey: {s3.access_key}, secretkey: {s3.secret_key}, region: {s3.region},"
            f" regionendpoint: '{s3.endpoint}', bucket: {s3.bucket}, secure: false, v4auth: true,"
            " rootdirectory: /peer}"
        )

    def command(self) -> list[str]:
        return [self.name, "serve", str(self.config)]

    def ready(self) -> bool:
        return answers(f"http://{self.host}/v2/")


@dataclass(frozen=True, slots=True)
class Side:
    """One of the registries, running; ``s3`` is the server that it stores in, if it does."""

    name: str
    server: Server
    address: Address
    s3: S3 | None

    def cpu(self) -> "Cpu":
        """CPU seconds that its processes took since they started."""
        below = processes.tree(self.server.pid)
        postgres = {pid for pid in below if processes.is_postgres(pid)}
        postgres |= processes.postgres_below(self.server.directory)
        return Cpu(
            processes.cpu_seconds(below - postgres),
            processes.cpu_seconds(postgres),
            processes.cpu_seconds(processes.tree(self.s3.pid)) if self.s3 else 0.0,
        )


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds: of the registry's own processes, of its Postgres, and of the S3 server."""

    registry: float
    postgres: float
    storage: float

    def __sub__(self, earlier: "Cpu") -> "Cpu":
        return Cpu(
            self.registry - earlier.registry,
            self.postgres - earlier.postgres,
            self.storage - earlier.storage,
        )


def missing(names: tuple[str, ...]) -> str:
    """Why a side cannot be started on this machine; empty when all can."""
    if PEER in names and shutil.which(PEER) is None:
        return "docker-registry is not on the PATH: on Debian, apt install docker-registry"
    return ""


def clear_environment() -> None:
    """Leave no settings around: both sides are measured with their defaults.

    With AWS_CA_BUNDLE docker-registry does not even start on S3 storage.
    """
    for name in list(os.environ):
        if name.startswith(("AWS_", "OPENREGISTRY_", "REGISTRY_")):
            del os.environ[name]


@contextmanager
def running(
    names: tuple[str, ...], storage: Storage, directory: Path, settings: Mapping[str, str]
) -> Iterator[tuple[Side, ...]]:
    """Both sides, up and empty; ``settings`` are further variables for OpenRegistry."""
    with ExitStack() as stack:
        s3 = None
        if storage == "s3":
            s3 = S3(directory / "s3")
            stack.enter_context(stopping(s3.start()))
        sides = []
        for name in names:
            place = directory / name
            one = DockerRegistry(place, s3) if name == PEER else _ours(place, s3, settings)
            stack.enter_context(stopping(one.start()))
            host, _, port = one.host.rpartition(":")
            sides.append(Side(name, one, (host, int(port)), s3))
        yield tuple(sides)


def _ours(directory: Path, s3: S3 | None, settings: Mapping[str, str]) -> Registry:
    chosen = dict(settings)
    if s3 is None:
        chosen["OPENREGISTRY_STORAGE_URL"] = f"file://{directory}/blobs"
    else:
        chosen["OPENREGISTRY_STORAGE_URL"] = s3.new_storage_url()
        chosen |= s3.environment()
    return Registry(directory, chosen)
