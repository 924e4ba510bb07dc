"""The table: paths, methods, permissions, and what any request at all is answered with."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chalicelib import endpoints
from chalicelib.context import Context
from chalicelib.http import Request, Unauthorized
from chalicelib.identity import Permission, Subject
from chalicelib.identity.open import Open
from chalicelib.registry.names import checked_name
from tests.client import CoreClient

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("method", "path", "function"),
    [
        ("GET", "/v2/", "check_version"),
        ("GET", "/v2", "check_version"),
        ("GET", "/v2/_catalog", "list_repositories"),
        ("GET", "/v2/a/b/c/d/e/tags/list", "list_tags"),
        ("GET", "/v2/a/manifests/latest", "get"),
        ("PUT", "/v2/manifests/manifests/latest", "put"),
        ("GET", "/v2/blobs/uploads/tags/list", "list_tags"),
        ("POST", "/v2/a/blobs/uploads/", "start"),
        ("POST", "/v2/a/blobs/uploads", "start"),
        ("POST", "/v2/blobs/uploads/blobs/uploads/", "start"),
        ("PATCH", "/v2/a/blobs/uploads/123", "patch"),
        ("DELETE", f"/v2/a/blobs/{DIGEST}", "delete"),
        ("GET", f"/v2/a/referrers/{DIGEST}", "list_referrers"),
        ("GET", "/v2/a/_oci/ext/discover", "discover"),
        ("POST", "/hooks/123", "trigger"),
    ],
)
def test_paths(method: str, path: str, function: str) -> None:
    endpoint = endpoints.find(method, path)
    assert endpoint is not None
    assert endpoint.function.__name__ == function


def test_every_row_says_who_may() -> None:
    open_to_all = {
        row.path for row in endpoints.ENDPOINTS if row.permission is Permission.ANONYMOUS
    }
    # The API says for itself who may call what (tests/api).
    assert open_to_all == {
        "/health", "/ready", "/token", "/.well-known/jwks.json", "/api/v1/{rest}",
        "/hooks/{trigger}",
        "/account", "/account.js", "/account.css",
        "/status", "/status.json", "/status.css",
    }  # fmt: skip
    for row in endpoints.ENDPOINTS:
        if not row.by_capability and "{repository}" in row.path:
            writes = {"PUT", "POST", "PATCH"} & set(row.methods)
            deletes = "DELETE" in row.methods
            wanted = (
                Permission.DELETE if deletes else Permission.PUSH if writes else Permission.PULL
            )
            assert row.permission is wanted, row


def test_nothing_is_reached_without_permission(file_context: Context) -> None:
    asked: list[tuple[Permission, str | None]] = []

    class Nobody(Open):
        def authorise(
            self, request: Request, permission: Permission, repository: str | None
        ) -> Subject:
            asked.append((permission, repository))
            raise Unauthorized("No.", headers=[("WWW-Authenticate", "Basic")])

        def permits(self, *_: object) -> bool:
            return False

    client = CoreClient(replace(file_context, access=Nobody(file_context.database)))
    parts = {
        "repository": "some/name", "reference": "x", "digest": DIGEST, "upload": "u", "rest": "r",
        "trigger": "t",
    }  # fmt: skip
    for row in endpoints.ENDPOINTS:
        path = row.path.format(**parts)
        for method in row.methods:
            answer = client.request(method, path)
            assert answer.status == (404 if row.by_capability else 401), (method, path)
    assert "some/name" in {name for _, name in asked}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "NOT_FOUND"),
        ("GET", "/v1/", 404, "NOT_FOUND"),
        ("GET", "/v2/a/b", 404, "NOT_FOUND"),
        ("GET", "/v2//tags/list", 404, "NOT_FOUND"),
        ("PUT", "/v2/", 405, "UNSUPPORTED"),
        ("PATCH", "/v2/a/manifests/latest", 405, "UNSUPPORTED"),
        ("GET", "/v2/UPPER/tags/list", 400, "NAME_INVALID"),
        ("GET", "/v2/a//b/tags/list", 400, "NAME_INVALID"),
        ("GET", "/v2/a/../b/tags/list", 400, "NAME_INVALID"),
        ("GET", "/v2/-a/tags/list", 400, "NAME_INVALID"),
        ("GET", "/v2/a%00/tags/list", 400, "NAME_INVALID"),
        ("GET", "/v2/a%0A/tags/list", 400, "NAME_INVALID"),
        ("GET", f"/v2/{'a' * 256}/tags/list", 400, "NAME_INVALID"),
        ("GET", f"/v2/{'a' * 255}/tags/list", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/a/manifests/%00", 404, "MANIFEST_UNKNOWN"),
        ("DELETE", "/v2/a/manifests/%00", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/a/referrers/sha256:x", 400, "DIGEST_INVALID"),
        ("GET", f"/v2/a/referrers/{DIGEST}?last=x", 400, "DIGEST_INVALID"),
        ("POST", "/v2/a/blobs/uploads/?digest=x", 400, "DIGEST_INVALID"),
        ("POST", "/v2/a/blobs/uploads/?digest-algorithm=md5", 400, "DIGEST_INVALID"),
    ],
)
def test_errors(file_context: Context, method: str, path: str, status: int, code: str) -> None:
    answer = CoreClient(file_context).request(method, path)
    assert (answer.status, answer.code) == (status, code)
    assert answer.json["errors"][0]["message"]
    assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
    if status == 405:
        assert answer.headers["Allow"]


component = st.from_regex(r"[a-z0-9]+((\.|_|__|-{1,3})[a-z0-9]+)*", fullmatch=True)


@given(st.lists(component, min_size=1, max_size=8))
def test_any_name_of_the_grammar(components: list[str]) -> None:
    name = "/".join(components)
    if len(name) <= 255:
        assert checked_name(name) == name
        endpoint, params = endpoints._match("GET", f"/v2/{name}/manifests/latest")
        assert isinstance(endpoint, endpoints.Endpoint)
        assert params == {"repository": name, "reference": "latest"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.sampled_from(["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"]),
    st.lists(
        st.one_of(
            st.sampled_from(["v2", "blobs", "uploads", "manifests", "tags", "list", DIGEST, "a"]),
            st.text(max_size=12),
        ),
        max_size=7,
    ),
    st.text(max_size=20),
    st.binary(max_size=40),
)
def test_no_request_is_our_fault(
    file_context: Context, method: str, segments: list[str], query: str, body: bytes
) -> None:
    from urllib.parse import quote

    path = "/v2/" + "/".join(quote(segment, safe="") for segment in segments)
    answer = CoreClient(file_context).request(method, f"{path}?{quote(query, safe='=&')}", body)
    assert answer.status < 500, (path, answer)


def test_ready_names_what_is_not(file_context: Context) -> None:
    class Broken:
        name = "broken"

        def check(self) -> None:
            raise OSError("the disk is gone")

    ok = CoreClient(file_context).request("GET", "/ready")
    assert (ok.status, ok.json) == (200, {"status": "ready"})
    broken = CoreClient(replace(file_context, store=Broken()))  # type: ignore[arg-type]
    answer = broken.request("GET", "/ready")
    assert (answer.status, answer.json["storage"]) == (503, "the disk is gone")
