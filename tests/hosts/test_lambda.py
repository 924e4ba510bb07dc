"""The registry on Lambda, spoken to as clients do: through what API Gateway makes of HTTP, and the
real runtime."""

import json
import time
import uuid
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from chalicelib.identity import Subject
from chalicelib.identity.keys import Keys
from chalicelib.identity.registry_tokens import RegistryTokens
from tests.accounts import create_token, set_visibility
from tests.client import (
    HTTPClient,
    begin,
    push_blob,
    push_image,
    push_manifest,
    sha256,
    with_query,
)
from tests.conftest import need
from tests.hosts.lambda_jobs import SCHEDULED
from tests.hosts.lambda_registry import PASSWORD, USER, LambdaRegistry, LoggedIn, migrated
from tests.hosts.lambda_runtime import Function, RuntimeApi
from tests.images import layout_contents, make_bytes, make_image, write_layout
from tests.servers import DockerEngine, Postgres, Registry, run, stopping

MIB = 1 << 20


@pytest.fixture
def client(lambda_registry: LambdaRegistry) -> LoggedIn:
    return LoggedIn(lambda_registry.host)


@pytest.fixture
def stranger(lambda_registry: LambdaRegistry) -> HTTPClient:
    return HTTPClient(lambda_registry.host)


def challenge(host: str, *more: str) -> str:
    """What a 401 is to say."""
    return ",".join([f'Bearer realm="http://{host}/token"', f'service="{host}"', *more])


@pytest.mark.parametrize("path", ["/v2/", "/v2", "/v2/a/manifests/latest"])
def test_a_stranger_is_challenged(stranger: HTTPClient, path: str) -> None:
    answer = stranger.request("GET", path)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == challenge(stranger.host)
    assert answer.code == "UNAUTHORIZED"


def test_a_wrong_password_is_refused_by_the_function(stranger: HTTPClient) -> None:
    answer = stranger.request("GET", "/v2/", headers={"Authorization": "Basic dGVzdGVyOngK"})
    assert answer.status == 401
    assert answer.code == "UNAUTHORIZED"
    assert "WWW-Authenticate" not in answer.headers, "the front is to rename it"
    remapped = answer.headers["x-amzn-Remapped-WWW-Authenticate"]
    assert remapped == challenge(stranger.host)


def bearer(client: HTTPClient | LoggedIn, *scopes: str) -> dict[str, str]:
    """The Authorization field with a token from the token server."""
    query = "&".join(f"scope={scope}" for scope in scopes)
    answer = client.request("GET", f"/token?{query}")
    assert answer.status == 200, answer
    return {"Authorization": f"Bearer {answer.json['token']}"}


def test_a_token_does_what_it_was_made_out_for(client: LoggedIn, stranger: HTTPClient) -> None:
    token = bearer(client, "repository:lambda/token:pull,push")
    started = stranger.request("POST", "/v2/lambda/token/blobs/uploads/", headers=token)
    assert started.status == 202, started
    data = b"by token"
    target = with_query(started.location, digest=sha256(data))
    assert stranger.request("PUT", target, data, token).status == 201
    for path in (sha256(data), sha256(data).replace(":", "%3A")):
        answer = stranger.request("GET", f"/v2/lambda/token/blobs/{path}", headers=token)
        assert answer.status == 307, answer


@pytest.mark.parametrize(
    ("method", "path", "wanted"),
    [
        ("PUT", "/v2/lambda/narrow/manifests/1", "repository:lambda/narrow:pull,push"),
        ("DELETE", "/v2/lambda/narrow/manifests/1", "repository:lambda/narrow:delete"),
        ("GET", "/v2/lambda/another/manifests/1", "repository:lambda/another:pull"),
        ("HEAD", "/v2/lambda/another/blobs/sha256%3A12", "repository:lambda/another:pull"),
        ("POST", "/v2/lambda/another/blobs/uploads/", "repository:lambda/another:pull,push"),
        ("GET", "/v2/_catalog", "registry:catalog:*"),
    ],
)
def test_a_token_of_too_narrow_a_scope_is_told_which_it_needs(
    client: LoggedIn, stranger: HTTPClient, method: str, path: str, wanted: str
) -> None:
    token = bearer(client, "repository:lambda/narrow:pull")
    answer = stranger.request(method, path, headers=token)
    assert answer.status == 401
    said = challenge(stranger.host, f'scope="{wanted}"', 'error="insufficient_scope"')
    assert answer.headers["WWW-Authenticate"] == said
    if method != "HEAD":
        assert answer.code == "UNAUTHORIZED"
        assert "This token is not for" in answer.json["errors"][0]["message"]


@pytest.mark.parametrize("kind", ["expired", "of another registry", "forged"])
def test_a_token_that_does_not_hold_is_challenged(
    kind: str,
    lambda_registry: LambdaRegistry,
    stranger: HTTPClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret = "another" if kind == "forged" else lambda_registry.settings["OPENREGISTRY_SECRET_KEY"]
    service = "elsewhere" if kind == "of another registry" else lambda_registry.host
    if kind == "expired":
        before = time.time() - 400
        monkeypatch.setattr(time, "time", lambda: before)
    grants = [{"type": "repository", "name": "lambda/x", "actions": ["pull"]}]
    token, _ = RegistryTokens(Keys(secret), service).issue(Subject(1), grants)
    monkeypatch.undo()
    answer = stranger.request(
        "GET", "/v2/lambda/x/tags/list", headers={"Authorization": f"Bearer {token}"}
    )
    assert answer.status == 401
    said = challenge(stranger.host, 'scope="repository:lambda/x:pull"')
    assert answer.headers["WWW-Authenticate"] == said
    assert answer.json["errors"][0]["message"] == "This token is not ours, or it has expired."


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v2/nothing", 404, "NOT_FOUND"),
        ("/v2/a/../b/manifests/latest", 400, "NAME_INVALID"),
        ("/v2/lambda/x/blobs/uploads/00000000-0000-4000-8000-000000000000?_state=x", 404,
         "BLOB_UPLOAD_UNKNOWN"),
    ],
)  # fmt: skip
def test_what_no_token_decides_is_for_the_function(
    stranger: HTTPClient, path: str, status: int, code: str
) -> None:
    """Even with a token that does not hold: an upload's Location has its own authority."""
    answer = stranger.request("GET", path, headers={"Authorization": "Bearer eyJ.x.y"})
    assert (answer.status, answer.code) == (status, code)


def test_a_public_repository_is_for_everyone(
    client: LoggedIn, stranger: HTTPClient, lambda_registry: LambdaRegistry
) -> None:
    image = make_image((500,), "public")
    for repository in ("lambda/public", "lambda/private"):
        push_image(client, repository, image, "1")
    set_visibility(lambda_registry.settings, "lambda/public", "public")
    token = bearer(stranger, "repository:lambda/public:pull,push", "repository:lambda/private:pull")
    target = "/v2/lambda/public/manifests/1"
    assert stranger.request("GET", target, headers=token).body == image.manifest.data
    assert stranger.request("GET", target.replace("public", "private"), headers=token).status == 401
    assert stranger.request("PUT", target, image.manifest.data, token).status == 401


def test_a_mount_that_needs_a_wider_token_is_an_upload(
    client: LoggedIn, stranger: HTTPClient
) -> None:
    """A challenge by the function would not be seen."""
    digest = push_blob(client, "lambda/source", b"mounted")
    narrow = "repository:lambda/target:pull,push"
    for scopes, status in (([narrow], 202), ([narrow, "repository:lambda/source:pull"], 201)):
        answer = stranger.request(
            "POST",
            f"/v2/lambda/target/blobs/uploads/?mount={digest}&from=lambda/source",
            headers=bearer(client, *scopes),
        )
        assert answer.status == status, answer


def test_an_access_token_is_a_password(
    stranger: HTTPClient, lambda_registry: LambdaRegistry
) -> None:
    token = create_token(lambda_registry.settings, USER, "repository:lambda/own/*:pull,push")
    basic = b64encode(f"anybody:{token}".encode()).decode()
    for credentials in (f"Basic {basic}", f"Bearer {token}"):
        headers = {"Authorization": credentials}
        started = stranger.request("POST", "/v2/lambda/own/a/blobs/uploads/", headers=headers)
        assert started.status == 202, started
        denied = stranger.request("POST", "/v2/lambda/a/blobs/uploads/", headers=headers)
        assert (denied.status, denied.code) == (403, "DENIED")


@pytest.mark.parametrize(
    ("path", "holds"),
    [
        ("/.well-known/jwks.json", b'"kty": "OKP"'),
        ("/api/v1/openapi.json", b'"openapi"'),
    ],
)
def test_what_needs_no_credentials(stranger: HTTPClient, path: str, holds: bytes) -> None:
    answer = stranger.request("GET", path)
    assert answer.status == 200, answer
    assert holds in answer.body


def test_messages_for_triggers_need_no_credentials(stranger: HTTPClient) -> None:
    answer = stranger.request("POST", f"/hooks/{uuid.uuid4()}", b"{}")
    assert (answer.status, answer.code) == (404, "NOT_FOUND")


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/nothing"), ("PUT", "/token")])
def test_what_is_not_there_asks_for_no_credentials(
    stranger: HTTPClient, method: str, path: str
) -> None:
    """API Gateway itself says 403 and "Missing Authentication Token"."""
    answer = stranger.request(method, path)
    assert (answer.status, answer.code) == (404, "NOT_FOUND"), answer


@pytest.mark.parametrize("path", ["/v2/", "/v2"])
def test_whoever_logs_in_is_welcome(client: LoggedIn, path: str) -> None:
    assert client.request("GET", path).status == 200


@pytest.mark.parametrize(("path", "status"), [("/health", "ok"), ("/ready", "ready")])
def test_health_needs_no_credentials(stranger: HTTPClient, path: str, status: str) -> None:
    answer = stranger.request("GET", path)
    assert (answer.status, answer.json["status"]) == (200, status)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v2/nothing", 404, "NOT_FOUND"),
        ("/v2/a/../b/manifests/latest", 400, "NAME_INVALID"),
        ("/v2/a/%2e%2e/b/manifests/latest", 400, "NAME_INVALID"),
        ("/v2/a+b/manifests/latest", 400, "NAME_INVALID"),
        ("/v2/a%252Fb/manifests/latest", 400, "NAME_INVALID"),
        ("/v2/a/blobs/sha256:12", 400, "DIGEST_INVALID"),
        ("/v2/a/b/c/d/e/f/g/h/manifests/latest", 404, "MANIFEST_UNKNOWN"),
    ],
)
def test_errors_are_the_specifications(client: LoggedIn, path: str, status: int, code: str) -> None:
    answer = client.request("GET", path)
    assert (answer.status, answer.code) == (status, code)


def test_a_blob_goes_up_and_is_fetched_from_storage(client: LoggedIn) -> None:
    data = make_bytes(300_000, "lambda")
    digest = push_blob(client, "lambda/deep/er/blob", data)
    target = f"/v2/lambda/deep/er/blob/blobs/{digest}"
    answer = client.request("GET", target)
    assert answer.status == 307
    assert client.request("GET", target.replace(":", "%3A")).status == 307
    storage = HTTPClient("")
    assert storage.request("GET", answer.location).body == data
    part = storage.request("GET", answer.location, headers={"Range": "bytes=10-19"})
    assert (part.status, part.body) == (206, data[10:20])


def test_a_blobs_head_is_storages_too(client: LoggedIn) -> None:
    """Here its length arrives; in an answer to HEAD that API Gateway passes on it may not."""
    digest = push_blob(client, "lambda/head", b"x" * 1234)
    answer = client.request("HEAD", f"/v2/lambda/head/blobs/{digest}")
    assert answer.status == 307
    assert answer.headers["Docker-Content-Digest"] == digest
    head = HTTPClient("").request("HEAD", answer.location)
    assert (head.status, head.headers["Content-Length"]) == (200, "1234")


def test_a_missing_blobs_head_is_404(client: LoggedIn) -> None:
    answer = client.request("HEAD", f"/v2/lambda/head/blobs/sha256:{'0' * 64}")
    assert (answer.status, answer.body) == (404, b"")


def test_a_manifest_comes_back_to_the_byte(client: LoggedIn) -> None:
    image = make_image((2000,), "été")
    for blob in image.blobs:
        push_blob(client, "lambda/manifest", blob.data)
    answer = push_manifest(client, "lambda/manifest", image.manifest, parameters="?tag=a&tag=b%2Bc")
    assert answer.status == 400, answer
    answer = push_manifest(client, "lambda/manifest", image.manifest, parameters="?tag=a&tag=b.c")
    assert answer.status == 201
    assert [value for name, value in answer.fields if name == "OCI-Tag"] == ["a", "b.c"]
    for reference in (image.manifest.digest, "a", "b.c"):
        answer = client.request("GET", f"/v2/lambda/manifest/manifests/{reference}")
        assert answer.status == 200
        assert answer.body == image.manifest.data
        assert answer.headers["Content-Type"] == image.manifest.media_type
        assert answer.headers["Docker-Content-Digest"] == image.manifest.digest


def test_a_manifests_head_has_its_length(client: LoggedIn) -> None:
    image = make_image((), "head")
    for blob in image.blobs:
        push_blob(client, "lambda/manifest", blob.data)
    push_manifest(client, "lambda/manifest", image.manifest, "head")
    answer = client.request("HEAD", "/v2/lambda/manifest/manifests/head")
    assert answer.status == 200
    assert answer.headers["Content-Length"] == str(len(image.manifest.data))
    assert answer.body == b""


def test_the_largest_manifest_goes_through(client: LoggedIn) -> None:
    padding = make_bytes(2 * MIB - 500, "padding").hex()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [],
            "annotations": {"padding": padding},
        }
    ).encode()
    assert 4 * MIB - 1000 < len(manifest) < 4 * MIB
    target = "/v2/lambda/large/manifests/latest"
    assert client.request("PUT", target, manifest).status == 201
    assert client.request("GET", target).body == manifest


@pytest.mark.parametrize("size", [5 * MIB, 11 * MIB])
@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_a_body_is_told_what_to_do(client: LoggedIn, size: int, chunked: bool) -> None:
    """The first is too much for Lambda, the second for API Gateway. The upload stays open: chunks
    of the size that the registry asks for fit."""
    data = make_bytes(size, "large")
    answer = client.request("POST", "/v2/lambda/large/blobs/uploads/")
    location, least = answer.location, int(answer.headers["OCI-Chunk-Min-Length"])
    pieces = (data[start : start + MIB] for start in range(0, size, MIB))
    answer = client.request("PATCH", location, pieces if chunked else data)
    assert answer.status == 413
    [error] = answer.json["errors"]
    assert error["code"] == "SIZE_INVALID"
    assert "`openregistry proxy`" in error["message"]
    assert "OPENREGISTRY_UPLOAD_URL" in error["message"]
    for start in range(0, size, least):
        chunk = data[start : start + least]
        fields = {"Content-Range": f"{start}-{start + len(chunk) - 1}"}
        answer = client.request("PATCH", location, chunk, fields)
        assert answer.status == 202, answer
        location = answer.location
    digest = sha256(data)
    assert client.request("PUT", with_query(location, digest=digest)).status == 201


def test_an_out_of_order_chunk_says_where_to_go_on(client: LoggedIn) -> None:
    location = begin(client, "lambda/order")
    answer = client.request("PATCH", location, b"12345", {"Content-Range": "5-9"})
    assert answer.status == 416
    assert answer.headers["Range"].startswith("0-")
    assert client.request("GET", answer.location).status == 204
    assert client.request("DELETE", answer.location).status == 204


def test_skopeo_pushes_and_pulls(lambda_registry: LambdaRegistry, tmp_path: Path) -> None:
    need("skopeo", "skopeo")
    image = make_image((1000, 0, 3 * MIB), "skopeo")
    layout = write_layout(tmp_path / "pushed", [image])
    name = f"docker://{lambda_registry.host}/lambda/skopeo:1"
    user = f"{USER}:{PASSWORD}"
    run("skopeo", "copy", "--dest-tls-verify=false", "--dest-creds", user, f"oci:{layout}", name)
    pulled = tmp_path / "pulled"
    run("skopeo", "copy", "--src-tls-verify=false", "--src-creds", user, name, f"oci:{pulled}:1")
    assert layout_contents(pulled) == {
        content.digest: content.data for content in (*image.blobs, image.manifest)
    }
    shown = run("skopeo", "inspect", "--tls-verify=false", "--creds", user, name).stdout
    assert json.loads(shown)["Digest"] == image.manifest.digest


def test_skopeo_shows_why_a_layer_is_too_large(
    lambda_registry: LambdaRegistry, tmp_path: Path
) -> None:
    need("skopeo", "skopeo")
    layout = write_layout(tmp_path / "pushed", [make_image((6 * MIB,), "large")])
    done = run(
        *("skopeo", "copy", "--dest-tls-verify=false", "--dest-creds", f"{USER}:{PASSWORD}"),
        *(f"oci:{layout}", f"docker://{lambda_registry.host}/lambda/skopeo:large"),
        check=False,
    )
    assert done.returncode != 0
    assert "set OPENREGISTRY_UPLOAD_URL to a host that streams" in done.stdout


def test_docker_logs_in_pushes_and_pulls(
    lambda_registry: LambdaRegistry, docker: DockerEngine, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(make_bytes(2 * MIB, "docker"))
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY file /\n")
    name = f"{lambda_registry.host}/lambda/docker:1"
    docker.run("login", "-u", USER, "-p", PASSWORD, lambda_registry.host)
    docker.run("build", "-t", name, tmp_path, DOCKER_BUILDKIT="0")
    docker.run("push", name)
    docker.run("rmi", name)
    docker.run("pull", name)
    docker.run("rmi", name)
    docker.run("logout", lambda_registry.host)
    done = docker.run("pull", name, check=False)
    assert done.returncode != 0
    wrong = docker.run("login", "-u", USER, "-p", "wrong", lambda_registry.host, check=False)
    assert wrong.returncode != 0
    assert "unauthorized" in wrong.stdout.lower()


def path_of(location: str) -> str:
    """A Location without the host that it names."""
    url = urlsplit(location)
    return f"{url.path}?{url.query}"


@pytest.mark.parametrize("last", ["lambda", "harness"])
def test_an_upload_goes_back_and_forth_between_hosts(
    last: str, lambda_registry: LambdaRegistry, serve: Callable[..., Registry]
) -> None:
    """Each request of one upload on the other host: nothing of it is in a process."""
    harness = serve(**lambda_registry.settings, OPENREGISTRY_ACCESS="accounts")
    hosts = {"lambda": LoggedIn(lambda_registry.host), "harness": LoggedIn(harness.host)}
    data = make_bytes(17 * MIB + 5, f"back and forth, {last}")
    location = path_of(begin(hosts["lambda"], "lambda/both"))
    start = 0
    for host, size in (
        ("harness", 3 * MIB),
        ("lambda", 4 * MIB),
        ("harness", 8 * MIB - 1),
        ("lambda", 100),
        ("harness", MIB),
        ("lambda", 1),
        ("harness", 7),
    ):
        chunk = data[start : start + size]
        fields = {"Content-Range": f"{start}-{start + size - 1}"}
        answer = hosts[host].request("PATCH", location, chunk, fields)
        assert answer.status == 202, answer
        location, start = path_of(answer.location), start + size
    digest = sha256(data)
    answer = hosts[last].request("PUT", with_query(location, digest=digest), data[start:])
    assert answer.status == 201, answer
    answer = hosts["lambda"].request("GET", f"/v2/lambda/both/blobs/{digest}")
    assert HTTPClient("").request("GET", answer.location).body == data


def test_expired_uploads_are_cleared_on_schedule(
    lambda_registry: LambdaRegistry, client: LoggedIn, postgres: Postgres, tmp_path: Path
) -> None:
    location = begin(client, "lambda/expired")
    upload = location.split("?")[0].rpartition("/")[2]
    database = lambda_registry.settings["OPENREGISTRY_DATABASE_URL"].rpartition("/")[2]
    postgres.query(f"UPDATE uploads SET expires_at = now() WHERE id = '{upload}'", database)
    postgres.query("UPDATE schedules SET due_at = now()", database)
    api = RuntimeApi()
    function = Function(tmp_path, "app.work", api, lambda_registry.settings)
    with stopping(function):
        function.start()
        api.invoke(SCHEDULED, 900)
    rows = postgres.query(f"SELECT count(*) FROM uploads WHERE id = '{upload}'", database)
    assert rows == [[0]]


def test_wrong_settings_are_told_and_logged_with_the_requests_id(tmp_path: Path) -> None:
    with LambdaRegistry(tmp_path, {"OPENREGISTRY_STORAGE_URL": "file:///tmp"}, processes=1) as it:
        answer = LoggedIn(it.host).request("GET", "/v2/")
        assert answer.status == 503
        [error] = answer.json["errors"]
        assert error["code"] == "UNAVAILABLE"
        assert error["detail"].startswith("OPENREGISTRY_STORAGE_URL: must be s3://")
        [line] = [line for line in it.logs() if line["level"] == "CRITICAL"]
        assert line["message"] == error["detail"]
        assert len(str(line["request_id"])) == 36
        assert len(str(line["function_request_id"])) == 36


def test_a_database_without_its_migrations_is_told_until_they_are_applied(
    tmp_path: Path, database_url: str
) -> None:
    settings = {
        "OPENREGISTRY_DATABASE_URL": database_url,
        "OPENREGISTRY_STORAGE_URL": "s3://registry/x?region=us-east-1",
    }
    with LambdaRegistry(tmp_path, settings, processes=1) as it:
        answer = LoggedIn(it.host).request("GET", "/v2/")
        assert answer.status == 503
        [error] = answer.json["errors"]
        assert error["code"] == "UNAVAILABLE"
        assert "openregistry migrate" in error["detail"]
        assert [line["message"] for line in it.logs() if line["level"] == "CRITICAL"] == [
            "the database lacks migrations of this release: openregistry migrate"
        ]
        migrated(database_url)
        assert LoggedIn(it.host).request("GET", "/v2/").status == 200
