"""MAIL_URL and MAIL_FROM: what they may say, and what is said about wrong ones."""

import subprocess
import sys
from pathlib import Path

import pytest

from chalicelib.mail import Mailbox, open_mailer
from chalicelib.mail.folder import FolderMailer
from chalicelib.mail.ses import SESMailer
from chalicelib.mail.smtp import SMTPMailer
from chalicelib.settings import Settings, SettingsError

SENDER = Mailbox("OpenRegistry", "registry@localhost")


def test_the_default_is_a_folder_of_the_data(tmp_path: Path) -> None:
    mailer = open_mailer(Settings(data_dir=tmp_path / "a folder"))
    assert mailer == FolderMailer(SENDER, tmp_path / "a folder" / "mail")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "host", "port", "tls", "user", "password"),
    [
        ("smtp://mail", "mail", 587, False, "", ""),
        ("smtp://127.0.0.1:25/", "127.0.0.1", 25, False, "", ""),
        ("smtps://mail.example.org", "mail.example.org", 465, True, "", ""),
        ("smtps://[::1]:4650", "::1", 4650, True, "", ""),
        ("smtp://a:b@mail:2525", "mail", 2525, False, "a", "b"),
        ("smtp://a%40b.org:p%3A%2F%40%C3%A4%25+@mail", "mail", 587, False, "a@b.org", "p:/@ä%+"),
        ("smtp://a@b.org:c@mail", "mail", 587, False, "a@b.org", "c"),
    ],
)
def test_smtp(url: str, host: str, port: int, tls: bool, user: str, password: str) -> None:
    mailer = open_mailer(Settings(mail_url=url))
    assert mailer == SMTPMailer(SENDER, host, port, tls, user, password)


@pytest.mark.parametrize(
    ("url", "region", "endpoint"),
    [
        ("ses://", "", ""),
        ("ses://?region=eu-west-1", "eu-west-1", ""),
        ("ses:///?endpoint=http://127.0.0.1:4566", "", "http://127.0.0.1:4566"),
    ],
)
def test_ses(url: str, region: str, endpoint: str) -> None:
    assert open_mailer(Settings(mail_url=url)) == SESMailer(SENDER, region, endpoint)


@pytest.mark.parametrize("url", ["file:///a%20b/", "file://localhost/a%20b"])
def test_a_folder(url: str) -> None:
    assert open_mailer(Settings(mail_url=url)) == FolderMailer(SENDER, Path("/a b"))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mailto:zoe@example.org", "must begin with smtp://"),
        ("smtp://", "must name a server"),
        ("smtp://user:secret@", "must name a server"),
        ("smtp://a b", "must name a server"),
        ("smtp://user:secret@mail:port", "is no URL"),
        ("smtp://user:secret@mail:70000", "is no URL"),
        ("smtp://user:sec/ret@mail", "is no URL"),
        ("smtp://user:1/secret@mail", "has more after its server"),
        ("smtp://user:1?secret@mail", "has more after its server"),
        ("smtp://user:sec[ret@mail", "is no URL"),
        ("smtp://user:sec\u2100ret@mail", "is no URL"),
        ("smtp://user:sec#ret@mail", "is no URL"),
        ("smtp://user:1#secret@mail", "has a # in it"),
        ("smtp://user:secret%ff@mail", "not percent-encoded UTF-8"),
        ("smtp://user:secret%00@mail", "has a NUL"),
        ("smtp://user@mail", "both a user and a password"),
        ("smtp://:secret@mail", "both a user and a password"),
        ("ses://key:secret@", "credentials come from AWS's"),
        ("ses://eu-west-1", "must be like ses://"),
        ("ses://?regoin=eu-west-1", "unknown parameter 'regoin'"),
        ("ses://?region=eu-west-1&region=eu-west-2", "gives region more than once"),
        ("ses://?region=Europe", "a region that cannot be one"),
        ("ses://?endpoint=localhost", "has as endpoint what is no URL"),
        ("file://mail/folder", "a folder by its whole path"),
        ("file:///", "a folder by its whole path"),
        ("file:///mail?mode=0600", "has parameters"),
    ],
)
def test_wrong_urls(url: str, words: str) -> None:
    with pytest.raises(SettingsError) as raised:
        open_mailer(Settings(mail_url=url))
    assert raised.value.name == "OPENREGISTRY_MAIL_URL"
    assert words in raised.value.sentence
    assert "sec" not in raised.value.sentence


@pytest.mark.parametrize(
    ("text", "name", "address"),
    [
        ("registry@example.org", "", "registry@example.org"),
        ("<registry@example.org>", "", "registry@example.org"),
        (" Régistre <registry@example.org> ", "Régistre", "registry@example.org"),
        ('"Doe, \\"Zoe\\"" <zoe@example.org>', 'Doe, "Zoe"', "zoe@example.org"),
        ("Doe, Zoe <zoe@example.org>", "Doe, Zoe", "zoe@example.org"),
    ],
)
def test_senders(text: str, name: str, address: str) -> None:
    mailer = open_mailer(Settings(mail_from=text))
    assert isinstance(mailer, FolderMailer)
    assert mailer.sender == Mailbox(name, address)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("OpenRegistry", "must be an ASCII address"),
        ("a@example.org, b@example.org", "must be an ASCII address"),
        ("A <a@example.org>, B <b@example.org>", "must be an ASCII address"),
        ("zoë@example.org", "must be an ASCII address"),
        ("A\r\nBcc: x@example.org <a@example.org>", "a line break"),
        ("x" * 60 + " <a@example.org>", "no longer than 72 characters"),
    ],
)
def test_wrong_senders(text: str, words: str) -> None:
    with pytest.raises(SettingsError) as raised:
        open_mailer(Settings(mail_from=text))
    assert raised.value.name == "OPENREGISTRY_MAIL_FROM"
    assert words in raised.value.sentence


def test_opening_loads_no_more_than_it_must() -> None:
    script = (
        "import sys; from chalicelib.mail import open_mailer;"
        " from chalicelib.settings import Settings;"
        " assert 'email' not in sys.modules and 'smtplib' not in sys.modules;"
        " open_mailer(Settings(mail_url='ses://')); print('botocore' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
