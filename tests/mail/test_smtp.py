"""SMTP alone: encryption, logging in, envelopes, and servers with ideas of their own."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.policy import default
from pathlib import Path

import pytest

from chalicelib.mail import MailError, Message
from tests.mail.mailers import (
    PASSWORD,
    REFUSED,
    USER,
    Inbox,
    mail_server,
    make_certificate,
    smtp,
)

pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
HELLO = Message("zoe@example.org", "Hello", "Hello\n")


@contextmanager
def scripted_server(*replies: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A server that says this, one reply to each line, and hangs up: its port, and the lines."""
    lines: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as file:
                for reply in replies:
                    connection.sendall(reply + b"\r\n")
                    lines.append(file.readline())

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1], lines
        thread.join(10)


def test_the_header_is_complete() -> None:
    inbox = Inbox()
    with mail_server(inbox) as port:
        smtp(port).send(HELLO)
        smtp(port).send(HELLO)
    mails = [message_from_bytes(inbox.data(each), policy=default) for each in inbox.envelopes]
    ids = {mail["Message-ID"] for mail in mails}
    assert len(ids) == 2
    assert all(each.startswith("<") and each.endswith("@example.org>") for each in ids)
    date = mails[0]["Date"].datetime
    assert abs(date - datetime.now(UTC)) < timedelta(seconds=30)
    assert mails[0]["Auto-Submitted"] == "auto-generated"
    assert mails[0].get_content_type() == "text/plain"
    assert mails[0].get_content_charset() == "utf-8"
    assert inbox.greetings == ["example.org", "example.org"]


@pytest.mark.parametrize("way", ["PLAIN", "LOGIN"])
def test_logs_in_after_starttls(way: str, certificate: Path, trust: None) -> None:
    inbox = Inbox(ways=(way,))
    with mail_server(inbox, certificate) as port:
        smtp(port, "smtp", USER, PASSWORD).send(HELLO)
    assert inbox.logins == [(way, USER.encode(), PASSWORD.encode())]
    assert inbox.encrypted == [True]


@pytest.mark.parametrize("way", ["PLAIN", "LOGIN"])
def test_a_refused_password_is_not_tried_again(way: str, certificate: Path, trust: None) -> None:
    """Not the other way either: some servers lock out whoever fails too often."""
    inbox = Inbox(ways=(way,))
    with (
        mail_server(inbox, certificate) as port,
        pytest.raises(MailError, match=r"refused the user and the password: 535 5\.7\.8\.$"),
    ):
        smtp(port, "smtp", USER, "wrong").send(HELLO)
    assert inbox.logins == [(way, USER.encode(), b"wrong")]


def test_no_known_way_to_log_in(certificate: Path, trust: None) -> None:
    inbox = Inbox(ways=())
    with (
        mail_server(inbox, certificate) as port,
        pytest.raises(MailError, match="offers neither AUTH PLAIN nor AUTH LOGIN"),
    ):
        smtp(port, "smtp", USER, PASSWORD).send(HELLO)


def test_no_password_without_encryption() -> None:
    """Whether the server offers no STARTTLS, or somebody in between took the offer away."""
    with (
        scripted_server(b"220 hello", b"250-hello\r\n250 AUTH PLAIN LOGIN") as (port, lines),
        pytest.raises(MailError, match="offers no STARTTLS, and no password is sent"),
    ):
        smtp(port, "smtp", USER, PASSWORD).send(HELLO)
    assert lines == [b"ehlo example.org\r\n", b"quit\r\n"]


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_no_password_for_a_stranger(scheme: str, certificate: Path) -> None:
    inbox = Inbox()
    with (
        mail_server(inbox, certificate, tls=scheme == "smtps") as port,
        pytest.raises(MailError, match="certificate that is not trusted: self-signed"),
    ):
        smtp(port, scheme, USER, PASSWORD).send(HELLO)
    assert inbox.logins == []


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_no_password_for_another_host(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_certificate(tmp_path / "other.pem", host="127.0.0.2")
    monkeypatch.setenv("SSL_CERT_FILE", str(other))
    inbox = Inbox()
    with (
        mail_server(inbox, other, tls=scheme == "smtps") as port,
        pytest.raises(MailError, match="not trusted: IP address mismatch"),
    ):
        smtp(port, scheme, USER, PASSWORD).send(HELLO)
    assert inbox.logins == []


def test_a_relay_without_a_password_is_encrypted_where_it_can_be(certificate: Path) -> None:
    """Its certificate, which nobody here trusts, is not looked at."""
    inbox = Inbox()
    with mail_server(inbox, certificate, password=False) as port:
        smtp(port).send(HELLO)
    assert inbox.encrypted == [True]


def test_smtps_to_a_server_that_speaks_no_tls() -> None:
    with mail_server(Inbox()) as port, pytest.raises(MailError, match="does not speak TLS here"):
        smtp(port, "smtps").send(HELLO)


def test_a_server_that_falls_silent_in_the_middle() -> None:
    inbox = Inbox(silent_at="DATA")
    with mail_server(inbox) as port, pytest.raises(MailError, match=r"not answer within 0\.5 s"):
        smtp(port).send(HELLO)


def test_what_was_accepted_was_sent_however_the_server_says_goodbye() -> None:
    inbox = Inbox(silent_at="QUIT")
    with mail_server(inbox) as port:
        smtp(port).send(HELLO)
    assert len(inbox.received()) == 1


def test_a_refused_message() -> None:
    inbox = Inbox(data_reply="554 5.7.1 looks like\tspam to <zoe@example.org>, or to us\x1b[1m.")
    with (
        mail_server(inbox) as port,
        pytest.raises(MailError) as raised,
    ):
        smtp(port).send(HELLO)
    assert str(raised.value) == (
        f"The mail server 127.0.0.1:{port} refused the message:"
        " 554 5.7.1 looks like spam to <…>, or to us[1m."
    )


@pytest.mark.parametrize(
    ("replies", "words"),
    [
        ([b"554 no mail from there"], "turned the registry away: 554 no mail from there."),
        ([b"220 hi", b"502 what", b"502 what"], "turned the registry away: 502 what."),
        ([b"220 hi", b"250 hi", b"553 5.1.8 not you"], "the sender, MAIL_FROM: 553 5.1.8 not you."),
        ([b"220 hi", b"250 hi", b"250 ok", b"451 later"], "refused the recipient: 451 later."),
        ([b"220 hi", b"250 hi", b"250 ok", b"421 bye"], "refused the recipient: 421 bye."),
        ([b"220 hi", b"250 hi"], "closed the connection."),
        ([b"HTTP/1.1 400 Bad Request"], "turned the registry away: -1"),
        ([b"220 hi", b"250-hi\r\n250 STARTTLS", b"454 not now"], "away: 454 not now."),
        ([b"220 hi", b"250-hi\r\n250 STARTTLS", b"220 go", b"?"], "does not speak TLS here"),
    ],
)
def test_servers_that_refuse_and_break(replies: list[bytes], words: str) -> None:
    with scripted_server(*replies) as (port, _), pytest.raises(MailError) as raised:
        smtp(port).send(HELLO)
    assert words in str(raised.value)


def test_a_host_that_is_none() -> None:
    with pytest.raises(MailError, match=r"server nowhere\.invalid:25 cannot be reached: "):
        replace(smtp(25), host="nowhere.invalid").send(HELLO)


def test_a_refused_recipient_is_not_the_end() -> None:
    inbox = Inbox()
    with mail_server(inbox) as port:
        mailer = smtp(port)
        with pytest.raises(MailError, match=r"recipient: 550 5\.1\.1 <…>: nobody of that name\.$"):
            mailer.send(Message(REFUSED, "Hello", "Hello\n"))
        mailer.send(HELLO)
    assert [received.to for received in inbox.received()] == ["zoe@example.org"]


def test_addresses_beyond_ascii_where_the_server_takes_them() -> None:
    message = Message("zoë@bücher.example", "Grüße", "Grüße\n")
    inbox = Inbox()
    with mail_server(inbox) as port:
        smtp(port).send(message)
    [received] = inbox.received()
    assert (received.to, received.subject, received.text) == (
        message.to,
        message.subject,
        message.text,
    )
    inbox = Inbox()
    with (
        mail_server(inbox, utf8=False) as port,
        pytest.raises(MailError, match="takes ASCII addresses alone"),
    ):
        smtp(port).send(message)
    assert inbox.envelopes == []
