"""What the harness asks of the registry's functions before it runs them."""

import pytest

from chalicelib.context import Context
from chalicelib.endpoints import Body
from chalicelib.hosts.harness.functions import Registry, Turn
from chalicelib.http import Headers, Request

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("method", "path", "turn"),
    [
        ("GET", "/health", Turn.HEALTH),
        ("HEAD", "/health", Turn.HEALTH),
        ("POST", "/health", Turn.BULK),
        ("GET", "/ready", Turn.READY),
        ("GET", "/ready/", Turn.BULK),
        ("GET", "/v2/", Turn.QUICK),
        ("GET", "/v2/a/manifests/latest", Turn.QUICK),
        ("GET", "/v2/a/blobs/b/manifests/latest", Turn.QUICK),
        ("DELETE", "/v2/a/manifests/latest", Turn.BULK),
        ("GET", f"/v2/a/b/blobs/{DIGEST}", Turn.BULK),
        ("HEAD", f"/v2/a/b/blobs/{DIGEST}", Turn.QUICK),
        ("GET", "/v2/a/blobs/uploads/123", Turn.BULK),
        ("PUT", "/v2/a/manifests/latest", Turn.QUICK),
        ("POST", "/token", Turn.BULK),
        ("POST", "/api/v1/sessions", Turn.BULK),
        ("GET", "/nowhere", Turn.QUICK),
    ],
)
def test_turns(file_context: Context, method: str, path: str, turn: Turn) -> None:
    assert Registry(file_context).turn(Request(method, path)) is turn


@pytest.mark.parametrize("credentials", ["Basic YTpi", "Bearer eyJ"])
def test_an_open_registry_checks_no_credentials(file_context: Context, credentials: str) -> None:
    request = Request("GET", "/v2/", headers=Headers({"Authorization": credentials}))
    assert Registry(file_context).turn(request) is Turn.QUICK


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/v2/a/manifests/latest", Body.BUFFERED),
        ("PATCH", "/v2/a/blobs/uploads/123", Body.STREAMED),
        ("GET", "/v2/", Body.NONE),
        ("PUT", "/nowhere", Body.NONE),
    ],
)
def test_bodies(file_context: Context, method: str, path: str, body: Body) -> None:
    assert Registry(file_context).wants(Request(method, path)) is body


def test_health(file_context: Context) -> None:
    response = Registry(file_context).health(Request("GET", "/health"))
    assert (response.status, response.body) == (200, b'{"status":"ok"}')


def test_ready(file_context: Context) -> None:
    response = Registry(file_context).ready(Request("GET", "/ready"))
    assert (response.status, response.body) == (200, b'{"status": "ready"}')
