"""Storage in trouble: S3 that answers errors, nothing or half, and a disk that is full."""

import json
import os
import select
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.client import (
    Answer,
    HTTPClient,
    begin,
    pieces,
    push_blob,
    push_image,
    push_manifest,
    sha256,
    with_query,
)
from tests.faults.conftest import Place
from tests.faults.crowd import Crowd, blob, whole
from tests.hosts.wire import Wire, until
from tests.images import INDEX, Content, make_bytes, make_image
from tests.servers import S3, Registry
from tests.storage.faults import Fault, FaultyProxy

MIB = 1 << 20
DATA = make_bytes(12 * MIB, "storage in trouble")
SHORT, LONG = DATA[:MIB], DATA[: 6 * MIB]  # one PutObject, and parts
OPERATIONS = (
    "PutObject",
    "CreateMultipartUpload",
    "UploadPart",
    "CompleteMultipartUpload",
    "GetObject",
    "HeadObject",
    "DeleteObject",
)
TROUBLE = {
    "500": Fault(status=500),
    "503": Fault(status=503),
    "reset at once": Fault(reset=0),
    "reset in the body": Fault(reset=100_000),
    "answer lost": Fault(lost=-1),
    "answer cut": Fault(lost=10),
}


@pytest.fixture
def proxy(s3_server: S3) -> Iterator[FaultyProxy]:
    with closing(FaultyProxy(s3_server.endpoint)) as made:
        yield made


@pytest.fixture
def troubled(
    s3_place: Place, s3_server: S3, proxy: FaultyProxy, serve: Callable[..., Registry]
) -> Registry:
    """A registry whose S3 is behind the proxy; clients are sent to S3 itself."""
    settings = dict(s3_place.settings)
    url = settings["OPENREGISTRY_STORAGE_URL"].split("?")[0]
    settings["OPENREGISTRY_STORAGE_URL"] = (
        f"{url}?endpoint={proxy.endpoint}&public_endpoint={s3_server.endpoint}"
    )
    return serve(**settings)


def refused(answer: Answer) -> None:
    """That it says what is wrong, and to try again."""
    assert answer.status == 503, answer
    assert int(answer.headers["Retry-After"]) > 0
    [error] = answer.json["errors"]
    assert error["code"] == "UNAVAILABLE"
    assert "torage" in error["message"]
    assert "torage" in error["detail"]


def test_s3_in_trouble(troubled: Registry, proxy: FaultyProxy) -> None:
    for name, fault in TROUBLE.items():
        trouble_that_passes(troubled, proxy, fault, name.replace(" ", "-"))
    image = make_image(seed="before the trouble")
    push_image(HTTPClient(troubled.host), "trouble/read", image, "latest")
    trouble_that_stays(troubled, proxy, TROUBLE["503"], "503")
    what_needs_no_storage_goes_on(troubled, proxy, TROUBLE["503"])
    assert whole(troubled.host, "trouble/read", image, "latest")


@pytest.mark.long
def test_s3_in_trouble_that_stays(troubled: Registry, proxy: FaultyProxy) -> None:
    for name, fault in TROUBLE.items():
        if name == "answer cut":
            continue  # a PutObject's answer has no bytes that could be cut off
        trouble_that_stays(troubled, proxy, fault, name.replace(" ", "-"))


def trouble_that_passes(registry: Registry, proxy: FaultyProxy, fault: Fault, name: str) -> None:
    """Each kind of request fails twice, and nobody notices."""
    client, repository = HTTPClient(registry.host), f"trouble/passes/{name}"
    for operation in OPERATIONS:
        proxy.will(operation, fault, fault)
    for data in (SHORT + name.encode(), LONG + name.encode()):
        body = pieces(data[:-1], 1 << 16)
        answer = client.request("PATCH", begin(client, repository), body)
        assert answer.status == 202, (name, answer)
        answer = client.request("PATCH", answer.location, data[-1:])
        assert answer.status == 202, (name, answer)
        answer = client.request("PUT", with_query(answer.location, digest=sha256(data)))
        assert answer.status == 201, (name, answer)
        assert blob(registry.host, repository, sha256(data)) == data
    proxy.plans.clear()


def trouble_that_stays(registry: Registry, proxy: FaultyProxy, fault: Fault, name: str) -> None:
    """The client is told; once it is over, it goes on where it was."""
    client, repository = HTTPClient(registry.host), f"trouble/stays/{name}"
    data = LONG + name.encode()
    short = data[-MIB:]
    first = 5 * MIB + 1

    # One PUT with all of it.
    target = with_query(begin(client, repository), digest=sha256(short))
    proxy.always = dict.fromkeys(OPERATIONS, fault)
    refused(client.request("PUT", target, short))
    assert blob(registry.host, repository, sha256(short)) is None
    proxy.always = {}
    assert client.request("PUT", target, short).status == 201
    assert blob(registry.host, repository, sha256(short)) == short

    # A first PATCH that comes through, a second that does not, a commit that does not.
    location = client.request("PATCH", begin(client, repository), data[:first]).location
    proxy.always = dict.fromkeys(OPERATIONS, fault)
    refused(client.request("PATCH", location, data[first:]))
    status = client.request("GET", location)
    assert (status.status, status.headers["Range"]) == (204, f"0-{first - 1}")
    proxy.always = {}
    location = client.request("PATCH", status.location, data[first:]).location
    target = with_query(location, digest=sha256(data))
    proxy.always = dict.fromkeys(OPERATIONS, fault)
    refused(client.request("PUT", target))
    assert blob(registry.host, repository, sha256(data)) is None
    proxy.always = {}
    assert client.request("PUT", target).status == 201
    assert blob(registry.host, repository, sha256(data)) == data


def what_needs_no_storage_goes_on(registry: Registry, proxy: FaultyProxy, fault: Fault) -> None:
    client = HTTPClient(registry.host)
    proxy.always = dict.fromkeys((*OPERATIONS, "HeadBucket"), fault)
    manifest = client.request("GET", "/v2/trouble/read/manifests/latest")
    assert manifest.status == 200
    config = manifest.json["config"]["digest"]
    assert client.request("HEAD", f"/v2/trouble/read/blobs/{config}").status == 200
    assert client.request("POST", "/v2/trouble/read/blobs/uploads/").status == 202
    assert client.request("GET", "/health").status == 200
    ready = client.request("GET", "/ready")
    assert ready.status == 503
    assert "storage" in ready.body.decode()
    proxy.always = {}
    assert client.request("GET", "/ready").status == 200


@pytest.mark.long
@pytest.mark.timeout(300)
def test_s3_that_hangs(troubled: Registry, proxy: FaultyProxy) -> None:
    """A request that hangs is tried again; while all of them do, the rest goes on."""
    client = HTTPClient(troubled.host)
    proxy.will("PutObject", Fault(hang=True))
    digest = push_blob(client, "hangs/once", SHORT)
    assert blob(troubled.host, "hangs/once", digest) == SHORT

    proxy.always = dict.fromkeys(OPERATIONS, Fault(hang=True))
    with Crowd(troubled.host, clients=40) as crowd:
        for _ in until(60, 0.5):
            if proxy.count("PutObject") >= 40:
                break
        for target in ("/health", "/v2/", "/v2/_catalog"):
            assert HTTPClient(troubled.host).request("GET", target).status == 200
        proxy.always = {}
        proxy.stopped.set()  # what hangs is cut off
        crowd.progress(20)
    assert set(crowd.statuses) <= {200, 201, 202, 307, 503}
    assert not crowd.wrong
    crowd.check()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_s3_that_fails_now_and_then(
    troubled: Registry, proxy: FaultyProxy, s3_place: Place
) -> None:
    """A third of all requests fails, in every way."""
    faults = list(TROUBLE.values())
    for operation in OPERATIONS:
        plan = [faults[n // 3 % len(faults)] if n % 3 == 0 else None for n in range(3000)]
        proxy.will(operation, *plan)
    with Crowd(troubled.host, clients=4, sizes=(1000, 300_000, 6 * MIB)) as crowd:
        crowd.progress(60, within=200)
    proxy.plans.clear()
    assert set(crowd.statuses) <= {200, 201, 202, 307, 503}
    assert crowd.cut == 0
    crowd.check()
    s3_place.holds_nothing_but_blobs(troubled)


# A disk that is full.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MiB."""
    with mounted(tmp_path / "small", 20) as folder:
        yield folder


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[Path]:
    """A file system of so many MiB."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}m,mode=755", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"only root in a machine of its own can mount a small disk ({done.stderr})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def resize(folder: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}m", folder], check=True)


def full(answer: Answer) -> None:
    """That it says that the disk is full."""
    assert answer.status in (503, 507), answer
    assert "full" in answer.body.decode(), answer


def free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def fill(folder: Path) -> None:
    """Take all the room that is left, also from a Postgres that takes some meanwhile."""
    with (folder / "ballast").open("ab") as ballast:
        while room := free(folder):
            with suppress(OSError):
                os.posix_fallocate(ballast.fileno(), ballast.seek(0, os.SEEK_END), room)


def test_a_full_disk(small_disk: Path, serve: Callable[..., Registry]) -> None:
    registry = serve(OPENREGISTRY_STORAGE_URL=small_disk.as_uri())
    client, room = HTTPClient(registry.host), free(small_disk)
    large = make_bytes(30 * MIB, "too large")

    # One PUT, and one stream, that are too large. What they had written is gone with them.
    whole_put = with_query(begin(client, "disk/full"), digest=sha256(large))
    full(client.request("PUT", whole_put, large))
    location = begin(client, "disk/full")
    full(client.request("PATCH", location, pieces(large, 1 << 16)))
    assert client.request("GET", location).headers["Range"] == "0-0"
    assert room - free(small_disk) < MIB

    # Chunks that fit, and that together do not: the commit needs room for both.
    for start in (0, 6 * MIB):
        answer = client.request("PATCH", location, DATA[start : start + 6 * MIB])
        assert answer.status == 202
        location = answer.location
    commit = with_query(location, digest=sha256(DATA))
    full(client.request("PUT", commit))
    full(client.request("PUT", commit))
    assert blob(registry.host, "disk/full", sha256(DATA)) is None
    assert room - free(small_disk) < 13 * MIB

    # The registry is alive, and what fits goes on.
    assert client.request("GET", "/health").status == 200
    assert client.request("GET", "/ready").status == 200
    image = make_image((4 * MIB,), "it fits")
    push_image(client, "disk/fits", image, "latest")
    assert whole(registry.host, "disk/fits", image, "latest")

    # Not one byte is left.
    fill(small_disk)
    full(client.request("PUT", with_query(begin(client, "disk/full"), digest=sha256(SHORT)), SHORT))
    target = f"/v2/disk/full/blobs/uploads/?digest={sha256(SHORT)}"
    for _ in range(2):
        full(client.request("POST", target, SHORT))
    ready = client.request("GET", "/ready")
    assert ready.status == 503
    assert "full" in ready.body.decode()
    assert whole(registry.host, "disk/fits", image, "latest")
    manifest = push_manifest(client, "disk/fits", image.manifest, "another")
    assert manifest.status == 201  # it is in Postgres

    # There is room again: the clients go on where they were.
    (small_disk / "ballast").unlink()
    resize(small_disk, 64)
    assert client.request("GET", "/ready").status == 200
    assert client.request("PUT", commit).status == 201
    assert blob(registry.host, "disk/full", sha256(DATA)) == DATA
    assert client.request("PUT", whole_put, large).status == 201
    assert blob(registry.host, "disk/full", sha256(large)) == large


def test_a_full_disk_under_load(small_disk: Path, serve: Callable[..., Registry]) -> None:
    """It fills up; then it is larger, and the same clients go on."""
    registry = serve(OPENREGISTRY_STORAGE_URL=small_disk.as_uri())
    with Crowd(registry.host, clients=6, sizes=(100_000, MIB)) as crowd:
        for _ in until(60, 0.1):
            if crowd.statuses[503] > 20:
                break
        assert HTTPClient(registry.host).request("GET", "/health").status == 200
        resize(small_disk, 200)
        crowd.progress(12)
    assert set(crowd.statuses) <= {200, 201, 202, 503}
    assert crowd.cut == 0
    crowd.check()


def test_postgres_is_on_the_full_disk_too(directory: Path, serve: Callable[..., Registry]) -> None:
    image = make_image(seed="with Postgres")
    with mounted(directory / "full", 130) as disk:
        registry = serve(OPENREGISTRY_DATABASE_URL="", OPENREGISTRY_DATA_DIR=str(disk / "data"))
        client = HTTPClient(registry.host)
        push_image(client, "disk/both", image, "latest")
        fill(disk)
        document = {"schemaVersion": 2, "manifests": [], "filler": DATA[:MIB].hex()}
        large = Content(INDEX, json.dumps(document).encode())
        full(push_manifest(client, "disk/both", large, "large"))
        answer = client.request("POST", f"/v2/disk/b/blobs/uploads/?digest={sha256(SHORT)}", SHORT)
        assert answer.status == 503
        assert client.request("GET", "/health").status == 200
        assert whole(registry.host, "disk/both", image, "latest")
        (disk / "ballast").unlink()
        for _ in until(30, 0.2):
            if registry.ready():
                break
        assert push_manifest(client, "disk/both", large, "large").status == 201
        assert push_blob(client, "disk/both", SHORT) == sha256(SHORT)
        assert whole(registry.host, "disk/both", image, "latest")
        registry.stop()


def test_temporary_files_have_no_room(
    s3_place: Place, small_disk: Path, serve: Callable[..., Registry]
) -> None:
    """Memory for parts is spent by uploads that stall, and so is the disk beyond it. Who wants more
    is told; when they are gone, there is room again."""
    settings = s3_place.settings | {
        "OPENREGISTRY_PART_MEMORY": "8MiB",
        "OPENREGISTRY_WORKERS": "1",
        "TMPDIR": str(small_disk),
    }
    registry = serve(**settings)
    client, port = HTTPClient(registry.host), int(registry.host.rpartition(":")[2])
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(port)) for _ in range(8)]
        for wire in wires:
            location = begin(client, "no/room")
            wire.head("PATCH", location, f"Content-Length: {6 * MIB}").send(DATA[: 4 * MIB])
        refusals = []
        for _ in until(60, 0.1):
            refusals = [wire for wire in wires if select.select([wire.socket], [], [], 0)[0]]
            if refusals:
                break
        for wire in refusals:
            answer = wire.answer()
            assert answer.status == 503
            assert "No space left" in answer.body.decode()
        # Reading and what has no bytes go on.
        assert client.request("GET", "/ready").status == 200
        assert client.request("GET", "/v2/_catalog").status == 200
    image = make_image((9 * MIB, 1000), "room again")
    for _ in until(60, 0.2):
        if free(small_disk) > 15 * MIB:
            break
    push_image(client, "no/room", image, "latest")
    assert whole(registry.host, "no/room", image, "latest")
