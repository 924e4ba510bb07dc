"""How registries are asked: tokens, retries, redirects, and what is told of errors.

The registry here is a script that answers what a test wants; test_pull.py asks real ones.
"""

import json
import ssl
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from chalicelib.client import remote
from chalicelib.client.credentials import Credentials
from chalicelib.client.remote import Remote, RemoteError
from chalicelib.http import Piece
from tests.registry_client.conftest import Start
from tests.registry_client.script import Answer, Asked, Handler, Script
from tests.servers import free_port, run

OK: Answer = (200, {}, b"ok")
ADA = Credentials("ada", "secret")
SCOPE = "repository:app:pull"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.001)


class Guard:
    """A registry and its token server: tokens are t1, t2, …, and only the newest is good."""

    def __init__(self, start: Start, **token: Any) -> None:
        self.server = start(self.answer)
        self.token = {"expires_in": 300, **token}
        self.issued = 0
        self.requests: list[Asked] = []
        self.tokens: list[Asked] = []

    def answer(self, asked: Asked) -> Answer:
        if asked.path == "/token":
            self.tokens.append(asked)
            if asked.authorization == Credentials("ada", "wrong").basic:
                return (
                    401,
                    {},
                    b'{"errors": [{"code": "UNAUTHORIZED", "message": "wrong password"}]}',
                )
            self.issued += 1
            return 200, {}, json.dumps({"token": f"t{self.issued}", **self.token}).encode()
        self.requests.append(asked)
        if asked.authorization == f"Bearer t{self.issued}":
            return OK
        challenge = (
            f'Bearer realm="{self.server.url}/token",service="the \\"registry\\"",scope="{SCOPE}"'
        )
        return 401, {"WWW-Authenticate": challenge}, b"{}"


def test_nobody_is_asked_for_credentials_in_vain(script: Start) -> None:
    server = script(lambda asked: OK)
    assert Remote(server.host, ADA).send("GET", "/v2/").status == 200
    assert server.asked[0].authorization is None
    assert server.asked[0].headers["Accept-Encoding"] == "identity"


def test_a_token_is_had_once_and_kept(script: Start) -> None:
    guard = Guard(script)
    asker = Remote(guard.server.host, ADA)
    for _ in range(3):
        assert asker.send("GET", "/v2/app/tags/list", scope=SCOPE).body == b"ok"
    [token] = guard.tokens
    assert token.query == {
        "service": ['the "registry"'],
        "scope": [SCOPE],
        "account": ["ada"],
        "client_id": ["openregistry"],
    }
    assert token.authorization == ADA.basic
    seen = [each.authorization for each in guard.requests]
    assert seen == [None, "Bearer t1", "Bearer t1", "Bearer t1"]


def test_a_token_for_each_scope(script: Start) -> None:
    guard = Guard(script)
    asker = Remote(guard.server.host)
    asker.send("GET", "/v2/app/tags/list", scope=SCOPE)
    both = "repository:a:pull repository:b:pull,push"
    asker.send("POST", "/v2/b/blobs/uploads/", scope=both)
    assert [token.query["scope"] for token in guard.tokens] == [[SCOPE], both.split()]
    assert guard.tokens[0].authorization is None
    # What nobody gave a scope for is asked for with that of the challenge.
    asker.send("GET", "/v2/app/tags/list")
    assert guard.tokens[2].query["scope"] == [SCOPE]


def test_one_thread_has_the_token_for_all(script: Start) -> None:
    guard = Guard(script)
    asker = Remote(guard.server.host, ADA)
    asker.send("GET", "/v2/")
    threads = [
        threading.Thread(target=asker.send, args=("GET", "/v2/app"), kwargs={"scope": SCOPE})
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(guard.tokens) == 2


def test_a_fresh_token_after_401(script: Start) -> None:
    guard = Guard(script)
    asker = Remote(guard.server.host, ADA)
    asker.send("GET", "/v2/", scope=SCOPE)
    guard.issued += 1  # t1 is good no longer
    assert asker.send("GET", "/v2/", scope=SCOPE).status == 200
    assert [each.authorization for each in guard.requests[2:]] == ["Bearer t1", "Bearer t3"]


def test_a_token_that_has_expired_is_not_sent(script: Start) -> None:
    guard = Guard(script, expires_in=0.2)
    asker = Remote(guard.server.host, ADA)
    asker.send("GET", "/v2/", scope=SCOPE)
    time.sleep(0.25)
    asker.send("GET", "/v2/", scope=SCOPE)
    assert [each.authorization for each in guard.requests] == [None, "Bearer t1", "Bearer t2"]


def test_who_is_refused_with_a_fresh_token_is_refused(script: Start) -> None:
    guard = Guard(script, token="another")
    reply = Remote(guard.server.host, ADA).send("GET", "/v2/", scope=SCOPE)
    assert (reply.status, len(guard.requests)) == (401, 2)


def test_access_token_is_another_name_for_it(script: Start) -> None:
    guard = Guard(script, token=None, access_token="t1")
    assert Remote(guard.server.host).send("GET", "/v2/").status == 200
    with pytest.raises(RemoteError, match="gave no token"):
        Remote(Guard(script, token=None).server.host).send("GET", "/v2/")


def test_wrong_credentials(script: Start) -> None:
    guard = Guard(script)
    with pytest.raises(RemoteError, match="answered 401: UNAUTHORIZED: wrong password") as caught:
        Remote(guard.server.host, Credentials("ada", "wrong")).send("GET", "/v2/")
    assert (caught.value.status, caught.value.code) == (401, "UNAUTHORIZED")
    assert guard.server.host in caught.value.sentence


def test_identity_tokens(script: Start) -> None:
    guard = Guard(script)
    asker = Remote(guard.server.host, Credentials("", identity_token="identity"))
    assert asker.send("GET", "/v2/", scope=SCOPE).status == 200
    [token] = guard.tokens
    assert (token.method, token.authorization) == ("POST", None)
    assert parse_qs(token.body.decode()) == {
        "grant_type": ["refresh_token"],
        "refresh_token": ["identity"],
        "service": ['the "registry"'],
        "scope": [SCOPE],
        "client_id": ["openregistry"],
    }


def test_basic(script: Start) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.authorization == ADA.basic:
            return OK
        return 401, {"WWW-Authenticate": 'Basic realm="all"'}, b""

    server = script(answer)
    asker = Remote(server.host, ADA)
    assert [asker.send("GET", "/v2/").status for _ in range(2)] == [200, 200]
    assert [each.authorization for each in server.asked] == [None, ADA.basic, ADA.basic]
    assert Remote(server.host).send("GET", "/v2/").status == 401
    assert Remote(server.host, Credentials("eve", "")).send("GET", "/v2/").status == 401


def test_an_authorization_of_ones_own(script: Start) -> None:
    guard = Guard(script)
    asker = Remote(guard.server.host, ADA)
    assert asker.send("GET", "/v2/", authorization="Bearer other").status == 401
    assert asker.send("GET", "/v2/", authorization="").status == 401
    assert [each.authorization for each in guard.requests] == ["Bearer other", None]
    with pytest.raises(ValueError, match="by itself"):
        asker.send("GET", "/v2/", headers={"authorization": "Bearer other"})


@pytest.mark.parametrize("given", [None, "Bearer other"])
def test_no_other_host_sees_an_authorization(script: Start, given: str | None) -> None:
    """Neither by a redirect, nor by a URL, whatever it answers."""
    other = script(
        lambda asked: (
            (401, {"WWW-Authenticate": 'Basic realm="mine"'}, b"")
            if asked.path == "/curious"
            else OK
        )
    )

    def answer(asked: Asked) -> Answer:
        if asked.authorization is None:
            return 401, {"WWW-Authenticate": "Basic"}, b""
        return 307, {"Location": f"{other.url}{asked.path}"}, b""

    server = script(answer)
    asker = Remote(server.host, ADA)
    kwargs: Any = {"authorization": given, "headers": {"Range": "bytes=1-"}}
    assert asker.send("GET", "/blob", **kwargs).status == 200
    assert asker.send("GET", "/curious", **kwargs).status == 401
    assert asker.send("PUT", f"{other.url}/part", body=b"1", **kwargs).status == 200
    assert len(other.asked) == 3
    assert [each.authorization for each in other.asked] == [None] * 3
    assert {each.headers["Range"] for each in other.asked} == {"bytes=1-"}


def test_redirects(script: Start) -> None:
    server = script(
        lambda asked: (
            (307, {"Location": "there"}, b"")
            if asked.path == "/a/here"
            else ((302, {"Location": "/loop"}, b"") if asked.path == "/loop" else OK)
        )
    )
    asker = Remote(server.host)
    assert asker.send("GET", "/a/here").url == f"{server.url}/a/there"
    kept = asker.send("GET", "/a/here", redirects=False)
    assert (kept.status, kept.location) == (307, f"{server.url}/a/there")
    assert asker.send("POST", "/a/here").status == 307
    with pytest.raises(RemoteError, match="redirects without end"):
        asker.send("GET", "/loop")
    with pytest.raises(RemoteError, match="left out where to go on"):
        _ = asker.send("GET", "/ok").location


def test_a_password_is_not_sent_without_tls(script: Start, tmp_path: Path) -> None:
    """Where the registry speaks TLS, its token server must too."""
    tokens = script(lambda asked: OK)
    challenge = {"WWW-Authenticate": f'Bearer realm="{tokens.url}/token"'}
    server = script(lambda asked: (401, challenge, b""))
    certificate = with_tls(server, tmp_path)
    asker = Remote(f"https://{server.host}", ADA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(certificate))
        with pytest.raises(RemoteError, match="without TLS: credentials are not sent"):
            asker.send("GET", "/v2/")
    assert tokens.asked == []


def with_tls(server: Script, directory: Path) -> Path:
    """Have a server speak TLS; its certificate."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    subject = ("-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1")
    options = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    run("openssl", "req", *options, *subject, "-keyout", key, "-out", certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return certificate


def test_certificates(script: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = script(lambda asked: OK)
    certificate = with_tls(server, tmp_path)
    with pytest.raises(RemoteError, match=r"no trusted certificate: .*self.signed"):
        Remote(f"https://{server.host}").send("GET", "/v2/")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert Remote(f"https://{server.host}").send("GET", "/v2/").status == 200


@pytest.mark.parametrize("status", [0, 429, 500, 502, 503, 504])
def test_another_attempt(script: Start, status: int) -> None:
    """With the body from its first byte; 0 is a server that hangs up."""
    server = script(
        lambda asked: (status, {}, b"later") if len(server.asked) < 3 else (201, {}, b"done")
    )
    asker = Remote(server.host)
    pieces: list[Piece] = [b"one ", bytearray(b"two "), memoryview(b"three")]
    length = {"Content-Length": "13"}
    reply = asker.send("PUT", "/part", headers=length, body=lambda: iter(pieces))
    assert (reply.status, reply.body) == (201, b"done")
    assert [each.body for each in server.asked] == [b"one two three"] * 3
    assert asker.send("PUT", "/part", body=lambda: iter(pieces)).status == 201
    assert server.asked[-1].body == b"one two three"
    assert asker.send("PUT", "/part", body=memoryview(b"whole")).status == 201
    assert server.asked[-1].body == b"whole"


def test_attempts_have_an_end(script: Start) -> None:
    server = script(lambda asked: (503, {}, b'{"errors": [{"code": "UNAVAILABLE"}]}'))
    asker = Remote(server.host)
    reply = asker.send("GET", "/v2/")
    assert len(server.asked) == remote.ATTEMPTS
    with pytest.raises(RemoteError, match=r"answered 503: UNAVAILABLE\.$"):
        reply.check(200)
    asker.send("GET", "/v2/", attempts=1)
    assert len(server.asked) == remote.ATTEMPTS + 1


@pytest.mark.parametrize("status", [400, 404, 405, 413, 416])
def test_refusals_are_not_asked_again(script: Start, status: int) -> None:
    server = script(lambda asked: (status, {}, b""))
    assert Remote(server.host).send("GET", "/v2/").status == status
    assert len(server.asked) == 1


def test_retry_after(script: Start) -> None:
    server = script(
        lambda asked: (429, {"Retry-After": "1"}, b"") if len(server.asked) == 1 else OK
    )
    began = time.monotonic()
    assert Remote(server.host).send("GET", "/v2/").status == 200
    assert 1 <= time.monotonic() - began < 3


def test_a_server_that_is_not_there() -> None:
    host = f"127.0.0.1:{free_port()}"
    with pytest.raises(
        RemoteError, match=f"^{host} cannot be reached: Connection refused"
    ) as caught:
        Remote(host).send("GET", "/v2/")
    assert caught.value.status == 0


def test_silence(script: Start) -> None:
    def answer(asked: Asked) -> Answer:
        time.sleep(1)
        return OK

    server = script(answer)
    with pytest.raises(RemoteError, match=r"cannot be reached: .*[Tt]imed out"):
        Remote(server.host).send("GET", "/v2/", silence=0.1, attempts=1)


def test_an_answer_that_ends_too_early(script: Start) -> None:
    server = script(lambda asked: OK)

    class Short(Handler):
        def send_header(self, name: str, value: str) -> None:
            super().send_header(name, "100" if name == "Content-Length" else value)

        def handle_one_request(self) -> None:
            super().handle_one_request()
            self.close_connection = True

    server.RequestHandlerClass = Short
    with Remote(server.host).send("GET", "/v2/", stream=True) as reply:
        pieces = reply.pieces()
        assert next(pieces) == b"ok"
        with pytest.raises(RemoteError, match=f"^{server.host} broke off"):
            next(pieces)
    with pytest.raises(RemoteError, match=f"^{server.host} broke off"):
        Remote(server.host).send("GET", "/v2/")
    assert len(server.asked) == 1 + remote.ATTEMPTS


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"errors": [{"code": "DENIED", "message": "No."}]}', "400: DENIED: No."),
        (b'{"details": "incorrect username"}', "400: incorrect username."),
        (b'{"error": "invalid_grant", "error_description": "old"}', "400: invalid_grant: old."),
        (
            b"<Error><Code>AccessDenied</Code><Message>Expired</Message></Error>",
            "400: AccessDenied: Expired.",
        ),
        (b"<html>", "400."),
        (b"[]", "400."),
        (b"", "400."),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_servers_say(script: Start, body: bytes, sentence: str, stream: bool) -> None:
    server = script(lambda asked: (400, {}, body))
    with pytest.raises(RemoteError) as caught:
        Remote(server.host).send("GET", "/v2/", stream=stream).check(200)
    assert caught.value.sentence == f"{server.host} answered {sentence}"
    assert caught.value.status == 400


def test_what_servers_say_moves_no_cursor(script: Start) -> None:
    said = json.dumps({"errors": [{"code": "DENIED", "message": "no\x1b[2J\rpush: done"}]})
    server = script(lambda asked: (403, {}, said.encode()))
    with pytest.raises(RemoteError) as caught:
        Remote(server.host).send("GET", "/v2/").check(200)
    assert str(caught.value) == f"{server.host} answered 403: DENIED: no?[2J?push: done."


def test_something_else_than_json(script: Start) -> None:
    server = script(lambda asked: OK)
    with pytest.raises(RemoteError, match="something else than JSON"):
        Remote(server.host).send("GET", "/v2/").json()


def test_no_body_fills_the_memory(script: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BODY_LIMIT", 1 << 20)
    server = script(lambda asked: (200, {}, bytes((1 << 20) + 1)))
    with pytest.raises(RemoteError, match="more than 1 MiB"):
        Remote(server.host).send("GET", "/v2/")
    assert len(server.asked) == 1


def test_connections_are_used_again(script: Start) -> None:
    count = 0

    def answer(asked: Asked) -> Answer:
        return (307, {"Location": "/there"}, b"moved") if asked.path == "/here" else OK

    server = script(answer)
    accept = server.get_request

    def counted() -> Any:
        nonlocal count
        count += 1
        return accept()

    server.get_request = counted  # type: ignore[method-assign]
    asker = Remote(server.host)
    for _ in range(3):
        asker.send("GET", "/here")
        with asker.send("GET", "/here", stream=True) as reply:
            assert b"".join(reply.pieces()) == b"ok"
    assert count == 1


def test_close_breaks_off_what_comes(script: Start) -> None:
    server = script(lambda asked: OK)

    class Slow(Handler):
        def send_header(self, name: str, value: str) -> None:
            super().send_header(name, "1000" if name == "Content-Length" else value)

    server.RequestHandlerClass = Slow
    asker = Remote(server.host)
    began = time.monotonic()
    with closing(asker), asker.send("GET", "/v2/", stream=True) as reply:
        threading.Timer(0.3, asker.close).start()
        with pytest.raises(RemoteError):
            list(reply.pieces())
        with pytest.raises(RemoteError, match="Given up"):
            asker.send("GET", "/v2/")
    assert time.monotonic() - began < 5


def test_close_ends_pauses(script: Start) -> None:
    server = script(lambda asked: (503, {"Retry-After": "30"}, b""))
    asker = Remote(server.host)
    threading.Timer(0.3, asker.close).start()
    began = time.monotonic()
    with pytest.raises(RemoteError, match="Given up"):
        asker.send("GET", "/v2/")
    assert time.monotonic() - began < 5
