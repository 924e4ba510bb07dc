"""What asks other servers reaches public ones over HTTPS, and nothing else."""

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from chalicelib import outbound
from chalicelib.outbound import Outbound, OutboundError, Reply, is_public
from tests.identity.doubles.network import Authority, Resolver
from tests.identity.doubles.provider import Handler, Provider, drip, redirect

NOT_PUBLIC = "The server's name has no public address."


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as server:
        yield server


def refusal(ask: Callable[[], object]) -> str:
    with pytest.raises(OutboundError) as caught:
        ask()
    return caught.value.sentence


class Listener:
    """A port that counts who connects, and says nothing."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.create_server((address, 0), family=family)
        self._socket.settimeout(10)
        self.port = self._socket.getsockname()[1]
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        try:
            while True:
                self.connections.append(self._socket.accept()[0])
        except OSError:
            pass

    def close(self) -> None:
        for connection in self.connections:
            connection.close()
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    with closing(Listener()) as open_port:
        yield open_port


def test_a_private_origin_is_asked_over_plain_http(provider: Provider) -> None:
    provider.routes["GET", "/here"] = lambda handler: handler.reply(
        {"path": handler.path, "header": handler.headers["X-Mine"], "host": handler.headers["Host"]}
    )
    reply = Outbound([provider.origin]).get(f"{provider.origin}/here?a=b", {"X-Mine": "yes"})
    assert reply.status == 200
    host = provider.origin.removeprefix("http://")
    assert reply.json() == {"path": "/here?a=b", "header": "yes", "host": host}


def test_a_form_is_posted_encoded(provider: Provider) -> None:
    def answer(handler: Handler) -> None:
        sent = {"type": handler.headers["Content-Type"], "body": handler.body.decode()}
        handler.reply(sent, 400)

    provider.routes["POST", "/form"] = answer
    reply = Outbound([provider.origin]).post(f"{provider.origin}/form", {"a b": "ü&="})
    assert reply.status == 400
    assert reply.json() == {
        "type": "application/x-www-form-urlencoded",
        "body": "a+b=%C3%BC%26%3D",
    }


def test_an_answer_is_not_in_its_repr() -> None:
    assert "gho_secret" not in repr(Reply(200, b'{"access_token":"gho_secret"}'))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[2002:7f00:1::]",
        "[64:ff9b::127.0.0.1]",
    ],
)
def test_loopback_is_not_reached_by_any_of_its_names(host: str, listener: Listener) -> None:
    assert refusal(lambda: Outbound().get(f"https://{host}:{listener.port}/")) == NOT_PUBLIC
    assert not listener.connections


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("10.1.2.3", False),
        ("172.31.0.1", False),
        ("192.168.0.1", False),
        ("100.64.0.1", False),
        ("100.100.100.200", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("192.0.0.1", False),
        ("192.0.0.192", False),
        ("192.88.99.1", False),
        ("198.18.0.1", False),
        ("203.0.113.9", False),
        ("224.0.0.1", False),
        ("239.255.255.250", False),
        ("233.252.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
        ("ff0e::1", False),
        ("2001:db8::1", False),
        ("3fff::1", False),
        ("2002:c000:c0::1", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
        ("100::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("2002:a9fe:a9fe::1", False),
        ("2002:c0a8:1::1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::e000:1", False),
        ("64:ff9b:1::808:808", False),
        ("::10.0.0.1", False),
    ],
)
def test_only_addresses_of_the_public_internet_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_a_name_with_one_private_address_among_public_ones_is_refused(
    monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    Resolver(monkeypatch, {"mixed.test": [["8.8.8.8", "127.0.0.1"]]})
    assert refusal(lambda: Outbound().get(f"https://mixed.test:{listener.port}/")) == NOT_PUBLIC
    assert not listener.connections


def test_a_name_without_an_address_is_refused_in_the_same_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Resolver(monkeypatch, {"none.test": [[]]})
    assert refusal(lambda: Outbound().get("https://none.test/")) == NOT_PUBLIC


def test_a_name_that_is_rebound_after_the_check_gains_nothing(
    monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    monkeypatch.setattr(outbound, "SECONDS", 0.5)
    resolver = Resolver(monkeypatch, {"rebind.test": [["8.8.8.8"], ["127.0.0.1"]]})
    refusal(lambda: Outbound().get(f"https://rebind.test:{listener.port}/"))
    assert resolver.asked == ["rebind.test"]
    assert not listener.connections


def test_the_connection_goes_to_the_address_that_was_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (
        Provider(host="issuer.test") as first,
        Provider(host="issuer.test", address="127.0.0.2", port=first.port) as second,
    ):
        resolver = Resolver(monkeypatch, {"issuer.test": [["127.0.0.1"], ["127.0.0.2"]]})
        reply = Outbound([first.origin]).get(first.issuer + "/.well-known/jwks")
        assert reply.json() == first.key_set()
        assert not second.fetches
        assert resolver.asked == ["issuer.test"]


def test_the_next_address_is_tried_where_one_takes_no_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Provider(host="issuer.test") as provider:
        Resolver(monkeypatch, {"issuer.test": [["::1", "127.0.0.3", "127.0.0.1"]]})
        assert Outbound([provider.origin]).get(provider.origin + "/").status == 404


def test_a_private_origin_is_one_scheme_host_and_port(provider: Provider) -> None:
    with Provider() as other:
        asker = Outbound([provider.origin.upper()])
        assert asker.get(provider.origin + "/").status == 404
        assert refusal(lambda: asker.get(other.origin + "/")) == "Only https:// URLs are asked."
        secure = provider.origin.replace("http:", "https:")
        assert refusal(lambda: asker.get(secure + "/")) == NOT_PUBLIC
        assert not other.fetches


# TLS: the name is checked, though the connection is told an address.


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    made = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.path))
    return made


def test_the_certificate_is_checked_against_the_name_and_not_the_address(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    Resolver(monkeypatch, {"issuer.test": [["127.0.0.1"]]})
    context = authority.context("issuer.test")
    names: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    with Provider(host="issuer.test", tls=context) as provider:
        assert Outbound([provider.origin]).get(provider.origin + "/").status == 404
    assert names == ["issuer.test"]


@pytest.mark.parametrize("trusted", [True, False])
def test_another_names_certificate_is_refused_and_so_is_a_strangers(
    trusted: bool, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Resolver(monkeypatch, {"issuer.test": [["127.0.0.1"]]})
    (tmp_path / "stranger").mkdir()
    context = (
        authority.context("other.test")
        if trusted
        else Authority(tmp_path / "stranger").context("issuer.test")
    )
    with Provider(host="issuer.test", tls=context) as provider:
        sentence = refusal(lambda: Outbound([provider.origin]).get(provider.origin + "/"))
        assert sentence == "The server's certificate is not a trusted one for its name."
        assert not provider.fetches


# What an answer may be.


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(status: int, provider: Provider) -> None:
    with Provider() as other:
        headers = {"Location": other.origin + "/"}
        provider.routes["GET", "/"] = lambda handler: handler.reply({}, status, headers)
        provider.routes["POST", "/"] = redirect(other.origin + "/")
        asker = Outbound([provider.origin, other.origin])
        expected = "The server answered with a redirect, and none is followed."
        assert refusal(lambda: asker.get(provider.origin + "/")) == expected
        assert refusal(lambda: asker.post(provider.origin + "/", {})) == expected
        assert not other.fetches


def test_no_proxy_is_taken_from_the_environment(
    provider: Provider, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{listener.port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert Outbound([provider.origin]).get(provider.origin + "/").status == 404
    assert not listener.connections


def _endless(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        handler.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")


def _until_the_end(handler: Handler) -> None:
    """A body that ends with the connection: cut off by us it must not look whole."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n[]")
    for _ in range(100):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def _continuing(handler: Handler) -> None:
    while True:
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.01)


@pytest.mark.parametrize(
    "route",
    [
        drip(b"[]" + b" " * 1000),
        drip(b"[]", raw=True),
        lambda handler: time.sleep(2),
        _continuing,
        _until_the_end,
    ],
    ids=["body", "header", "silence", "continue", "until the end"],
)
def test_an_answer_that_takes_too_long_is_given_up(
    route: Callable[[Handler], None], provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "SECONDS", 0.5)
    provider.routes["GET", "/"] = route
    start = time.monotonic()
    sentence = refusal(lambda: Outbound([provider.origin]).get(provider.origin + "/"))
    assert sentence == "The server did not answer in time."
    assert 0.4 < time.monotonic() - start < 1.5


def test_a_slow_answer_over_tls_is_given_up(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "SECONDS", 0.5)
    Resolver(monkeypatch, {"issuer.test": [["127.0.0.1"]]})
    with Provider(host="issuer.test", tls=authority.context("issuer.test")) as provider:
        provider.routes["GET", "/"] = drip(b"[]" + b" " * 1000)
        start = time.monotonic()
        sentence = refusal(lambda: Outbound([provider.origin]).get(provider.origin + "/"))
        assert sentence == "The server did not answer in time."
        assert time.monotonic() - start < 1.5


def test_a_server_that_never_shakes_hands_is_given_up(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "SECONDS", 0.5)
    origin = f"https://127.0.0.1:{listener.port}"
    start = time.monotonic()
    assert refusal(lambda: Outbound([origin]).get(origin)) == "The server did not answer in time."
    assert time.monotonic() - start < 1.5
    assert listener.connections


def test_a_resolver_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "SECONDS", 0.3)

    def resolve(*_args: Any, **_options: Any) -> list[Any]:
        time.sleep(1)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    start = time.monotonic()
    sentence = refusal(lambda: Outbound().get("https://slow.test/"))
    assert sentence == "The server did not answer in time."
    assert time.monotonic() - start < 0.9


def test_a_body_of_a_mebibyte_is_read_and_no_longer_one(provider: Provider) -> None:
    asker = Outbound([provider.origin])
    too_long = "The server's answer is longer than 1 MiB."
    provider.routes["GET", "/"] = lambda handler: handler.reply(b"1" * (1 << 20))
    assert len(asker.get(provider.origin + "/").body) == 1 << 20
    provider.routes["GET", "/"] = lambda handler: handler.reply(b"1" * ((1 << 20) + 1))
    assert refusal(lambda: asker.get(provider.origin + "/")) == too_long
    provider.routes["GET", "/"] = _endless
    assert refusal(lambda: asker.get(provider.origin + "/")) == too_long


def test_a_compressed_body_is_not_unpacked(provider: Provider) -> None:
    packed = gzip.compress(json.dumps("a" * 100_000_000).encode(), 1)
    provider.routes["GET", "/"] = lambda handler: handler.reply(
        packed, headers={"Content-Encoding": "gzip"}
    )
    reply = Outbound([provider.origin]).get(provider.origin + "/")
    assert reply.body == packed
    assert refusal(reply.json) == "The server answered with something else than JSON."


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff", b"[" * 100_000, b"1" * 10_000])
def test_a_body_that_is_no_json_is_refused(body: bytes) -> None:
    assert refusal(Reply(200, body).json) == "The server answered with something else than JSON."


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", b"\x16\x03\x01 no HTTP\r\n\r\n"],
)
def test_an_answer_that_breaks_off_is_refused(answer: bytes, provider: Provider) -> None:
    def break_off(handler: Handler) -> None:
        handler.close_connection = True
        handler.wfile.write(answer)

    provider.routes["GET", "/"] = break_off
    sentence = refusal(lambda: Outbound([provider.origin]).get(provider.origin + "/"))
    assert sentence == "The server broke off its answer."


def test_a_server_that_is_not_there_cannot_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        origin = f"http://127.0.0.1:{gone.getsockname()[1]}"
    assert refusal(lambda: Outbound([origin]).get(origin)) == "The server cannot be reached."


# URLs


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "javascript:alert(1)",
        "//example.com/",
        "example.com",
        "",
    ],
)
def test_only_https_is_asked(url: str) -> None:
    assert refusal(lambda: Outbound().get(url)) in (
        "Only https:// URLs are asked.",
        "That is no URL.",
    )


@pytest.mark.parametrize(
    "url",
    [
        "https://user:password@example.com/",
        "https://example.com@127.0.0.1/",
        "https://example.com:443@127.0.0.1/",
    ],
)
def test_credentials_in_a_url_are_refused(url: str) -> None:
    assert refusal(lambda: Outbound().get(url)) == "A URL that is asked holds no credentials."


@pytest.mark.parametrize(
    "url",
    [
        "https://",
        "https:///path",
        "https://exa mple.com/",
        "https://example.com/\r\nX: y",
        "https://example.com\t/",
        "https://example.com\\@127.0.0.1/",
        "https://example.com:99999/",
        "https://example.com:x/",
        "https://exämple.com/",
        "https://ⅼocalhost/",
        "https://[::1/",
        "https://[fe80::1%25eth0]/",
        "https://a[::1]/",
        "https://%6c/",
        "https://example.com/" + "a" * 2048,
    ],
)
def test_a_url_that_could_be_read_in_two_ways_is_refused(url: str) -> None:
    assert refusal(lambda: Outbound().get(url)) == "That is no URL."


@pytest.mark.parametrize("value", ["", "a\r\nb: c", "a\nb", "tökén", "a\x00"])
def test_a_header_that_none_can_hold_is_refused_without_its_value(
    value: str, provider: Provider
) -> None:
    asker = Outbound([provider.origin])
    sentence = refusal(lambda: asker.get(provider.origin, {"Authorization": value}))
    assert sentence == "A header cannot hold that."
    assert not provider.fetches


def test_what_is_sent_is_taken_for_its_status(provider: Provider) -> None:
    """The rest of the answer may be as long, as slow and as false as its server likes."""

    def send(path: str) -> Reply:
        origin = Outbound([provider.origin])
        return origin.send(
            f"{provider.origin}{path}", b"{}", {"Content-Type": "x/y"}, seconds=0.7, kept=100
        )

    def swollen(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with suppress(OSError):
            for _ in range(10_000):
                handler.wfile.write(b"a" * 10_000)

    def false(handler: Handler) -> None:
        handler.send_response(204 if handler.path == "/none" else 200)
        handler.send_header("Content-Length", "5000")
        handler.end_headers()
        handler.wfile.write(b"short")

    def silent(handler: Handler) -> None:
        time.sleep(2)

    provider.routes["POST", "/swollen"] = swollen
    provider.routes["POST", "/false"] = false
    provider.routes["POST", "/drip"] = drip(b"[]" + b" " * 1000)
    provider.routes["POST", "/silent"] = silent
    provider.routes["POST", "/elsewhere"] = redirect("/swollen")
    assert send("/swollen") == Reply(200, b"a" * 100)
    assert send("/false") == Reply(200, b"short")
    begun = time.monotonic()
    assert send("/drip").status == 200
    assert refusal(lambda: send("/silent")) == "The server did not answer in time."
    assert time.monotonic() - begun < 2
    assert "redirect" in refusal(lambda: send("/elsewhere"))
