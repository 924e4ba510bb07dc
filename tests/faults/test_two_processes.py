"""Two registries, each a `serve` of its own, on one database and one store."""

import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.accounts import add_user
from tests.client import (
    HTTPClient,
    begin,
    pieces,
    push_blob,
    push_image,
    push_manifest,
    sha256,
    with_query,
)
from tests.conftest import need
from tests.faults.conftest import Place
from tests.faults.crowd import blob, whole
from tests.hosts.lambda_registry import PASSWORD, USER, LoggedIn
from tests.hosts.wire import until
from tests.images import make_bytes, make_image, write_layout
from tests.servers import Registry, run

MIB = 1 << 20
DATA = make_bytes(12 * MIB, "two processes")

Pair = tuple[Registry, Registry]


@pytest.fixture
def pair(place: Place, serve: Callable[..., Registry]) -> Pair:
    return serve(**place.settings), serve(**place.settings)


def test_they_are_one_registry(pair: Pair, place: Place) -> None:
    an_upload_alternates(*pair)
    an_upload_is_cancelled_at_the_other(*pair)
    of_two_patches_at_once_one_counts(*pair)
    a_tag_moves(*pair)
    what_is_deleted_is_gone(*pair)
    pair[1].stop()
    place.holds_nothing_but_blobs(pair[0])


def an_upload_alternates(here: Registry, there: Registry) -> None:
    """POST here, PATCH there, PATCH here, PUT there; asked in between at both."""
    hosts = HTTPClient(here.host), HTTPClient(there.host)
    location = begin(hosts[0], "two/alternate")
    start = 0
    for turn, size in enumerate((7 * MIB, 5, 2 * MIB, MIB)):
        chunk = DATA[start : start + size]
        fields = {"Content-Range": f"{start}-{start + size - 1}"}
        answer = hosts[1 - turn % 2].request("PATCH", location, chunk, fields)
        assert (answer.status, answer.location[:3]) == (202, "/v2")
        start += size
        for host in hosts:
            status = host.request("GET", answer.location)
            assert (status.status, status.headers["Range"]) == (204, f"0-{start - 1}")
        location = status.location
        late = hosts[turn % 2].request("PATCH", location, chunk, fields)
        assert (late.status, late.headers["Range"]) == (416, f"0-{start - 1}")
    target = with_query(location, digest=sha256(DATA))
    assert hosts[1].request("PUT", target, DATA[start:]).status == 201
    for registry, host in ((here, hosts[0]), (there, hosts[1])):
        assert blob(registry.host, "two/alternate", sha256(DATA)) == DATA
        # Its answer may have been lost.
        assert host.request("PUT", target).status == 201
        assert host.request("GET", location).status == 404


def an_upload_is_cancelled_at_the_other(here: Registry, there: Registry) -> None:
    first, second = HTTPClient(here.host), HTTPClient(there.host)
    location = first.request("PATCH", begin(first, "two/cancel"), DATA).location
    assert second.request("DELETE", location).status == 204
    target = with_query(location, digest=sha256(DATA))
    for host in (first, second):
        assert host.request("GET", location).status == 404
        assert host.request("PUT", target).status == 404


def of_two_patches_at_once_one_counts(here: Registry, there: Registry) -> None:
    location = begin(HTTPClient(here.host), "two/at-once")
    bodies = DATA[: 6 * MIB], DATA[-6 * MIB :]
    statuses: list[int] = []

    def patch(registry: Registry, body: bytes) -> None:
        client = HTTPClient(registry.host)
        fields = {"Content-Range": f"0-{len(body) - 1}"}
        statuses.append(client.request("PATCH", location, pieces(body, 65_536), fields).status)

    threads = [
        threading.Thread(target=patch, args=arguments)
        for arguments in zip((here, there), bodies, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [202, 416]
    client = HTTPClient(there.host)
    puts = [
        client.request("PUT", with_query(location, digest=sha256(body))).status for body in bodies
    ]
    won = puts.index(201)
    assert puts[1 - won] in (400, 404)  # before or after the other
    assert blob(here.host, "two/at-once", sha256(bodies[won])) == bodies[won]
    assert blob(here.host, "two/at-once", sha256(bodies[1 - won])) is None


def a_tag_moves(here: Registry, there: Registry) -> None:
    """Each look at the other, right after each move."""
    hosts = HTTPClient(here.host), HTTPClient(there.host)
    images = [make_image(seed=f"two/moves/{number}") for number in range(3)]
    for turn in range(20):
        image, name = images[turn % 3], f"turn-{turn}"
        here_now, there_now = hosts[turn % 2], hosts[1 - turn % 2]
        if turn < 3:
            push_image(here_now, "two/moves", image, "moving")
        else:
            assert push_manifest(here_now, "two/moves", image.manifest, "moving").status == 201
        answer = there_now.request("GET", "/v2/two/moves/manifests/moving")
        assert answer.headers["Docker-Content-Digest"] == image.manifest.digest
        assert push_manifest(here_now, "two/moves", image.manifest, name).status == 201
        assert name in there_now.request("GET", "/v2/two/moves/tags/list").json["tags"]
    for registry in (here, there):
        assert whole(registry.host, "two/moves", images[19 % 3], "moving", "turn-19")


def what_is_deleted_is_gone(here: Registry, there: Registry) -> None:
    first, second = HTTPClient(here.host), HTTPClient(there.host)
    image = make_image(seed="two/deletes")
    manifest = f"/v2/two/deletes/manifests/{image.manifest.digest}"
    for _ in range(3):
        push_image(first, "two/deletes", image, "latest")
        # Both have answered with all of it: no memory of that may outlive it.
        for registry in (here, there):
            assert whole(registry.host, "two/deletes", image, "latest", image.manifest.digest)
        assert second.request("DELETE", "/v2/two/deletes/manifests/latest").status == 202
        assert first.request("HEAD", "/v2/two/deletes/manifests/latest").status == 404
        assert first.request("HEAD", manifest).status == 200
        assert first.request("DELETE", manifest).status == 202
        assert second.request("HEAD", manifest).status == 404
        for content in image.blobs:
            target = f"/v2/two/deletes/blobs/{content.digest}"
            assert second.request("DELETE", target).status == 202
            assert first.request("HEAD", target).status == 404


def test_a_location_needs_no_credentials_at_the_other_host(
    filesystem_place: Place, serve: Callable[..., Registry], tmp_path: Path
) -> None:
    """Both ask for credentials; the first sends uploads to the second."""
    settings = filesystem_place.settings | {"OPENREGISTRY_ACCESS": "accounts"}
    there = serve(**settings)
    add_user(there.settings, USER, PASSWORD, administrator=True)
    here = serve(**settings, OPENREGISTRY_UPLOAD_URL=there.url)
    a_capability_is_enough(here, there)
    skopeo_follows_the_location(here, there, tmp_path)


def a_capability_is_enough(here: Registry, there: Registry) -> None:
    logged_in, stranger = LoggedIn(here.host), HTTPClient(there.host)
    begun = logged_in.request("POST", "/v2/two/guarded/blobs/uploads/")
    assert urlsplit(begun.location).netloc == there.host
    answer = stranger.request("PATCH", begun.location, DATA)
    assert answer.status == 202
    assert stranger.request("GET", answer.location).headers["Range"] == f"0-{len(DATA) - 1}"
    done = stranger.request("PUT", with_query(answer.location, digest=sha256(DATA)))
    assert (done.status, done.headers["Docker-Content-Digest"]) == (201, sha256(DATA))
    # It was the right to one upload, and to nothing else.
    assert stranger.request("POST", "/v2/two/guarded/blobs/uploads/").status == 401
    assert stranger.request("GET", f"/v2/two/guarded/blobs/{sha256(DATA)}").status == 401
    another = logged_in.request("POST", "/v2/two/another/blobs/uploads/").location
    stolen = f"{another.partition('?')[0]}?{urlsplit(answer.location).query}"
    assert stranger.request("PATCH", stolen, DATA).status == 404
    assert stranger.request("PATCH", another.partition("?")[0], DATA).status == 404
    assert push_blob(logged_in, "two/guarded", b"more") == sha256(b"more")


def skopeo_follows_the_location(here: Registry, there: Registry, tmp_path: Path) -> None:
    need("skopeo", "skopeo")
    image = make_image((9 * MIB, 1000), "two/skopeo")
    layout = write_layout(tmp_path / "image", [image])
    credentials, name = f"{USER}:{PASSWORD}", "two/skopeo:latest"
    run("skopeo", "copy", "--dest-tls-verify=false", f"--dest-creds={credentials}",
        f"oci:{layout}:latest", f"docker://{here.host}/{name}")  # fmt: skip
    run("skopeo", "copy", "--src-tls-verify=false", f"--src-creds={credentials}",
        f"docker://{there.host}/{name}", f"oci:{tmp_path / 'back'}:latest")  # fmt: skip
    for _ in until():  # the log is written a little later
        if there.output().count('"PATCH", "path": "/v2/two/skopeo/') == len(image.blobs):
            break
    assert '"PATCH"' not in here.output()
