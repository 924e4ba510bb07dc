"""BuildKit pushes what it builds, and keeps its cache in the registry."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.programs import Run, built, client
from tests.images import make_bytes
from tests.servers import Registry, Server, stopping

pytestmark = pytest.mark.long

DOCKERFILE = """
FROM scratch AS first
COPY one /one
COPY two /two
FROM scratch
COPY --from=first /one /copied
"""


class Buildkit(Server):
    """A buildkitd with nothing in it."""

    name = "buildkitd"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.address = f"unix://{directory}/buildkitd.sock"

    def command(self) -> list[str]:
        # No build here runs a process, so any program does for runc.
        return [
            str(built("buildkitd")),
            f"--root={self.directory / 'root'}",
            f"--addr={self.address}",
            "--containerd-worker=false",
            "--oci-worker=true",
            "--oci-worker-binary=true",
            "--oci-worker-net=host",
            "--oci-worker-snapshotter=native",
        ]

    def ready(self) -> bool:
        return "running server on" in self.output()


@pytest.fixture(scope="module")
def buildkit(directory: Path) -> Iterator[Buildkit]:
    server = Buildkit(directory / "buildkit")
    with stopping(server):
        yield server.start()


@pytest.fixture
def buildctl(buildkit: Buildkit, tmp_path: Path) -> Run:
    buildctl = client("buildctl", tmp_path, BUILDKIT_HOST=buildkit.address)
    buildctl("prune", "--all")
    return buildctl


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A folder to build."""
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    for name in ("one", "two"):
        (context / name).write_bytes(make_bytes(200_000, name))
    return context


def build(buildctl: Run, context: Path, name: str, *options: str) -> tuple[str, set[str]]:
    """Build a folder and push it as `name`; give its digest and the steps found in the cache."""
    trace, metadata = context.parent / "trace.json", context.parent / "metadata.json"
    trace.unlink(missing_ok=True)
    buildctl(
        "build",
        "--progress=quiet",
        f"--trace={trace}",
        f"--metadata-file={metadata}",
        "--frontend=dockerfile.v0",
        f"--local=context={context}",
        f"--local=dockerfile={context}",
        f"--output=type=image,name={name},push=true,registry.insecure=true",
        *options,
    )
    statuses = [json.loads(line) for line in trace.read_text().splitlines()]
    steps = [step for status in statuses for step in status.get("vertexes", ())]
    cached = {step["name"] for step in steps if step.get("cached")}
    digest: str = json.loads(metadata.read_text())["containerimage.digest"]
    return digest, cached


def test_push(buildctl: Run, registry: Registry, context: Path, tmp_path: Path) -> None:
    repository = f"{registry.host}/buildkit/push"
    digest, cached = build(buildctl, context, f"{repository}:1")
    assert not cached
    crane = client("crane", tmp_path)
    assert crane("digest", f"{repository}:1").strip() == digest
    crane("validate", "--remote", f"{repository}@{digest}")


@pytest.mark.parametrize("kind", ["image", "index"])
def test_cache_in_the_registry(buildctl: Run, registry: Registry, context: Path, kind: str) -> None:
    """The cache's manifest is an image's, or else an index that names layers as its manifests."""
    repository = f"{registry.host}/buildkit/cache-{kind}"
    cache = f"type=registry,ref={repository}:cache,registry.insecure=true"
    export = f"--export-cache={cache},mode=max,image-manifest={str(kind == 'image').lower()}"
    digest, cached = build(buildctl, context, f"{repository}:1", export)
    assert not cached

    first, second, last = (
        "[first 1/2] COPY one /one",
        "[first 2/2] COPY two /two",
        "[stage-1 1/1] COPY --from=first /one /copied",
    )
    buildctl("prune", "--all")
    again, cached = build(buildctl, context, f"{repository}:2", f"--import-cache={cache}")
    assert again == digest
    assert {first, second, last} <= cached

    buildctl("prune", "--all")
    (context / "one").write_bytes(b"changed")
    _, cached = build(buildctl, context, f"{repository}:3", f"--import-cache={cache}")
    assert not {first, second, last} & cached
