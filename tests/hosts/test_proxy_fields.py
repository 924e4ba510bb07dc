"""Header fields that name the registry, as clients of the proxy see them."""

from collections.abc import Mapping

import pytest

from chalicelib.client.names import Registry
from chalicelib.client.remote import Remote
from chalicelib.hosts.proxy import fields
from chalicelib.hosts.proxy.tokens import Tokens
from chalicelib.http import Headers

REGISTRY = Registry.parse("registry.example.org")
URL = "https://registry.example.org/v2/team/app/blobs/sha256:00"


def passed(**given: str) -> Mapping[str, str]:
    """The fields of an answer that has the given ones, by name; `_` stands for `-`."""
    headers = Headers([(name.replace("_", "-"), value) for name, value in given.items()])
    return Headers(fields.to_client(headers, URL, REGISTRY))


@pytest.mark.parametrize(
    ("location", "here"),
    [
        ("/v2/team/app/blobs/uploads/1?state=a%2Fb", "/v2/team/app/blobs/uploads/1?state=a%2Fb"),
        ("https://registry.example.org/v2/a/blobs/sha256:00", "/v2/a/blobs/sha256:00"),
        ("http://registry.example.org/v2/a/tags/list?n=1", "/v2/a/tags/list?n=1"),
        # Storage, also where it is at the same host, and other hosts' registries.
        ("https://bucket.example.org/key?sig=a%2Fb", "https://bucket.example.org/key?sig=a%2Fb"),
        ("/storage/key?sig=x", "https://registry.example.org/storage/key?sig=x"),
        ("https://other.example.org/v2/a/blobs/1", "https://other.example.org/v2/a/blobs/1"),
        ("https://registry.example.org:444/v2/a", "https://registry.example.org:444/v2/a"),
    ],
)
def test_location(location: str, here: str) -> None:
    assert passed(Location=location)["location"] == here


def test_link() -> None:
    link = '<https://registry.example.org/v2/_catalog?last=b&n=2>; rel="next"'
    assert passed(Link=link)["link"] == '</v2/_catalog?last=b&n=2>; rel="next"'
    relative = '</v2/a/tags/list?last=b>; rel="next"'
    assert passed(Link=relative)["link"] == relative


def test_fields_of_one_connection_are_dropped() -> None:
    answer = passed(
        Connection="keep-alive, X-Internal", Keep_Alive="timeout=5", X_Internal="1",
        Transfer_Encoding="chunked", Date="now", Docker_Content_Digest="sha256:00",
    )  # fmt: skip
    assert dict(answer) == {"docker-content-digest": "sha256:00"}


def test_requests() -> None:
    request = Headers(
        {
            "Host": "localhost:5001", "Authorization": "Bearer x", "Connection": "close, X-Mine",
            "X-Mine": "1", "Accept": "a, b", "Range": "bytes=0-1", "Expect": "100-continue",
            "Content-Length": "3", "Content-Type": "text/plain", "TE": "trailers",
        }
    )  # fmt: skip
    assert fields.to_registry(request) == {
        "Accept": "a, b",
        "Range": "bytes=0-1",
        "Content-Type": "text/plain",
    }


@pytest.mark.parametrize(
    ("challenge", "here"),
    [
        (
            'Bearer realm="https://auth.example.org/token",service="r",scope="repository:a:pull"',
            'Bearer realm="http://localhost:5001/token",service="r",scope="repository:a:pull"',
        ),
        (
            'Bearer service="r, s", realm="https://auth.example.org/token", error="invalid_token"',
            'Bearer service="r, s", realm="http://localhost:5001/token", error="invalid_token"',
        ),
        (
            'Basic realm="Registry", bearer realm=https://auth.example.org/token,service=r',
            'Basic realm="Registry", bearer realm="http://localhost:5001/token",service=r',
        ),
        ('Basic realm="https://auth.example.org/token"',) * 2,
        (
            'Bearer realm="/token",service="r", Basic realm="x"',
            'Bearer realm="http://localhost:5001/token",service="r", Basic realm="x"',
        ),
    ],
)
def test_challenges(challenge: str, here: str) -> None:
    tokens = Tokens(Remote(REGISTRY))
    assert tokens.challenge(challenge, URL, "localhost:5001") == here
