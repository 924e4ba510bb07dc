"""oras: artifacts, referrers, blobs, and deletes."""

import json
from pathlib import Path

import pytest

from tests.clients.programs import Run, client
from tests.images import make_bytes
from tests.servers import Registry

pytestmark = pytest.mark.long


@pytest.fixture
def oras(tmp_path: Path) -> Run:
    return client("oras", tmp_path)


def push_artifact(oras: Run, name: str, home: Path) -> str:
    """Push a file of 200 kB as an artifact and give its digest."""
    (home / "file.bin").write_bytes(make_bytes(200_000, name))
    pushed = oras(
        "push",
        "--plain-http",
        "--artifact-type=application/vnd.example.thing",
        "--format=json",
        name,
        "file.bin:application/vnd.example.data",
    )
    digest: str = json.loads(pushed)["digest"]
    return digest


def test_push_and_pull(oras: Run, registry: Registry, tmp_path: Path) -> None:
    name = f"{registry.host}/oras/push-and-pull:1"
    digest = push_artifact(oras, name, tmp_path)
    assert oras("resolve", "--plain-http", name).strip() == digest
    manifest = json.loads(oras("manifest", "fetch", "--plain-http", name))
    assert manifest["artifactType"] == "application/vnd.example.thing"

    oras("pull", "--plain-http", "--output=pulled", name)
    assert (tmp_path / "pulled/file.bin").read_bytes() == (tmp_path / "file.bin").read_bytes()


def test_attach_and_discover(oras: Run, registry: Registry, tmp_path: Path) -> None:
    name = f"{registry.host}/oras/attach:1"
    subject = push_artifact(oras, name, tmp_path)
    types = ("application/vnd.example.sbom", "application/vnd.example.signature")
    attached = {}
    for artifact_type in types:
        (tmp_path / "note").write_text(artifact_type)
        output = oras(
            "attach",
            "--plain-http",
            "--distribution-spec=v1.1-referrers-api",
            f"--artifact-type={artifact_type}",
            "--annotation=org.example.by=oras",
            "--format=json",
            name,
            "note",
        )
        attached[artifact_type] = json.loads(output)["digest"]

    def discover(*options: str) -> dict[str, str]:
        found = oras(
            "discover",
            "--plain-http",
            "--distribution-spec=v1.1-referrers-api",
            "--format=json",
            *options,
            name,
        )
        referrers = json.loads(found)["referrers"]
        assert all(entry["annotations"]["org.example.by"] == "oras" for entry in referrers)
        return {entry["artifactType"]: entry["digest"] for entry in referrers}

    assert discover() == attached
    assert discover(f"--artifact-type={types[1]}") == {types[1]: attached[types[1]]}

    # A copy takes the referrers along.
    copy = f"{registry.host}/oras/attach-copy:1"
    oras("cp", "--recursive", "--from-plain-http", "--to-plain-http", name, copy)
    repository = name.removesuffix(":1")
    assert oras("resolve", "--plain-http", copy).strip() == subject
    tree = oras("discover", "--plain-http", copy)
    assert all(digest in tree for digest in attached.values())

    oras("manifest", "delete", "--plain-http", "--force", f"{repository}@{attached[types[0]]}")
    assert discover() == {types[1]: attached[types[1]]}


def test_blobs(oras: Run, registry: Registry, tmp_path: Path) -> None:
    repository = f"{registry.host}/oras/blobs"
    data = make_bytes(300_000, "oras blob")
    (tmp_path / "blob").write_bytes(data)
    pushed = oras("blob", "push", "--plain-http", "--descriptor", repository, "blob")
    descriptor = json.loads(pushed)
    assert descriptor["size"] == len(data)

    blob = f"{repository}@{descriptor['digest']}"
    oras("blob", "fetch", "--plain-http", "--output=fetched", blob)
    assert (tmp_path / "fetched").read_bytes() == data
    oras("blob", "delete", "--plain-http", "--force", blob)
    with pytest.raises(AssertionError, match="not found"):
        oras("blob", "fetch", "--plain-http", "--output=again", blob)


def test_index_and_delete(oras: Run, registry: Registry, tmp_path: Path) -> None:
    repository = f"{registry.host}/oras/index"
    digests = [push_artifact(oras, f"{repository}:{tag}", tmp_path) for tag in ("one", "two")]
    oras("manifest", "index", "create", "--plain-http", f"{repository}:all", "one", "two")
    index = json.loads(oras("manifest", "fetch", "--plain-http", f"{repository}:all"))
    assert [entry["digest"] for entry in index["manifests"]] == digests
    assert oras("repo", "tags", "--plain-http", repository).split() == ["all", "one", "two"]
    assert "oras/index" in oras("repo", "ls", "--plain-http", registry.host).split()

    oras("manifest", "delete", "--plain-http", "--force", f"{repository}:all")
    with pytest.raises(AssertionError, match="not found"):
        oras("resolve", "--plain-http", f"{repository}:all")
    assert oras("resolve", "--plain-http", f"{repository}:one").strip() == digests[0]
