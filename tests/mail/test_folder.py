"""The folder alone: who may read it, and what lies in it."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from chalicelib.mail import MailError, Message, open_mailer
from chalicelib.settings import Settings

HELLO = Message("zoe@example.org", "Hello", "Hello\n")


@pytest.fixture(autouse=True)
def generous_umask() -> Iterator[None]:
    """A process that keeps nothing to itself by its own doing."""
    former = os.umask(0)
    yield
    os.umask(former)


def test_it_is_for_its_owner_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    open_mailer(Settings(data_dir=data)).send(HELLO)
    assert data.stat().st_mode & 0o777 == 0o700
    assert (data / "mail").stat().st_mode & 0o777 == 0o700
    [file] = (data / "mail").iterdir()
    assert file.suffix == ".eml"
    assert file.stat().st_mode & 0o777 == 0o600


def test_names_sort_by_time(tmp_path: Path) -> None:
    mailer = open_mailer(Settings(data_dir=tmp_path))
    for number in range(30):
        mailer.send(Message("zoe@example.org", f"Hello {number}", "Hello\n"))
    files = sorted((tmp_path / "mail").iterdir())
    subjects = [file.read_text().partition("Subject: ")[2].splitlines()[0] for file in files]
    assert subjects == [f"Hello {number}" for number in range(30)]


def test_text_is_there_to_be_read_and_copied(tmp_path: Path) -> None:
    text = "Grüße! Open https://registry.example.org/?a=1&token=" + "x" * 200 + "\n"
    open_mailer(Settings(data_dir=tmp_path)).send(Message("zoë@example.org", "Grüße", text))
    [file] = (tmp_path / "mail").iterdir()
    assert text in file.read_text()


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    mailer = open_mailer(Settings(data_dir=tmp_path))
    mailer.send(HELLO)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(MailError, match=f"to {tmp_path / 'mail'}: File too large"):
            mailer.send(Message("zoe@example.org", "Hello", "Hello\n" * 10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(list((tmp_path / "mail").iterdir())) == 1
