"""Mail: one Protocol, three ways to send, and what a message may hold.

Text goes to one address at a time. ``tests/mail/test_mailers.py`` holds what is asked of every
way.
"""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from chalicelib.settings import Settings


class MailError(Exception):
    """A message could not be handed over. The text is a sentence for the log, which holds neither
    the password nor anybody's address."""


@dataclass(frozen=True, slots=True)
class Message:
    """Plain text for one address. Raises ``ValueError`` for an address or a subject that could
    become more than that in a message's header, and for text that cannot be sent."""

    to: str
    subject: str
    text: str

    def __post_init__(self) -> None:
        if not is_address(self.to):
            raise ValueError("The recipient is not an address.")
        if not _is_line(self.subject):
            raise ValueError("The subject has a line break or another control character in it.")
        if re.search("[\0\ud800-\udfff]", self.text):
            raise ValueError("The text holds a character that cannot be sent.")


class Mailer(Protocol):
    """A way to send mail. May be used from many threads at once, and opens nothing before its
    first use."""

    def send(self, message: Message) -> None:
        """Hand a message over to whoever delivers it. Raises ``MailError``; the message may have
        been sent nevertheless where the answer was lost."""


class Mailbox(NamedTuple):
    """Who sends: an ASCII address, and a name for people, which may be empty."""

    name: str
    address: str

    @property
    def domain(self) -> str:
        return self.address.rpartition("@")[2]


_ATOM = r'[^\s\x00-\x1f\x7f()<>@,;:\\".\[\]]+'
_LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
_ADDRESS = re.compile(rf"{_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})*")
_HOST = re.compile(r"[A-Za-z0-9_.-]+|[0-9A-Fa-f:.]+")
_LONGEST_FROM = 72  # fits on one line of the header: Python 3.11 forgets quotes when it folds


def is_address(text: str) -> bool:
    """Whether that is one address (RFC 5321, section 4.1.2, with the letters of RFC 6531), without
    a name, quotes or an IP address."""
    if len(text) > 254 or not _is_line(text) or not _ADDRESS.fullmatch(text):
        return False
    return len(text.encode()) <= 254 and len(text.partition("@")[0].encode()) <= 64


def open_mailer(settings: "Settings") -> Mailer:
    """The mailer that MAIL_URL names: ``smtp://user:password@host:587``, ``smtps://…``,
    ``ses://?region=…&endpoint=…`` or ``file:///folder``; without one, DATA_DIR/mail. Opens nothing.
    Raises ``SettingsError``."""
    from chalicelib.settings import SettingsError

    try:
        sender = _sender(settings.mail_from)
    except ValueError as error:
        raise SettingsError("OPENREGISTRY_MAIL_FROM", f"{settings.mail_from!r} {error}") from None
    try:
        return _open(settings.mail_url or (settings.data_dir / "mail").as_uri(), sender)
    except ValueError as error:
        raise SettingsError("OPENREGISTRY_MAIL_URL", str(error)) from None


def _open(text: str, sender: Mailbox) -> Mailer:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        # What Python says there repeats a part of the URL, which may be a part of the password.
        raise ValueError(
            "is no URL; in a user and a password write / ? # @ : [ ] % as %2F %3F %23 %40 %3A %5B"
            " %5D %25"
        ) from None
    if url.fragment:
        raise ValueError("has a # in it, which must be written %23")
    if url.scheme in ("smtp", "smtps"):
        from chalicelib.mail.smtp import SMTPMailer

        host, user, password = _server(url)
        tls = url.scheme == "smtps"
        return SMTPMailer(sender, host, port or (465 if tls else 587), tls, user, password)
    if url.scheme == "ses":
        from chalicelib.mail.ses import SESMailer

        if url.netloc or url.path.strip("/"):
            raise ValueError("must be like ses://?region=eu-west-1; credentials come from AWS's")
        parameters = _parameters(url.query)
        return SESMailer(sender, parameters.get("region", ""), parameters.get("endpoint", ""))
    if url.scheme == "file":
        from chalicelib.mail.folder import FolderMailer

        if url.netloc not in ("", "localhost") or not url.path.rstrip("/").startswith("/"):
            raise ValueError("must name a folder by its whole path, like file:///var/lib/mail")
        if url.query:
            raise ValueError("has parameters, which only ses:// takes")
        return FolderMailer(sender, Path(unquote(url.path)))
    raise ValueError("must begin with smtp://, smtps://, ses:// or file://")


def _server(url: SplitResult) -> tuple[str, str, str]:
    """Host, user and password of an SMTP server; the last two may be empty."""
    if not url.hostname or not _HOST.fullmatch(url.hostname):
        raise ValueError("must name a server, like smtp://user:password@mail.example.org:587")
    if url.path.strip("/") or url.query:
        raise ValueError("has more after its server; write / as %2F and ? as %3F in a password")
    try:
        user = unquote(url.username or "", errors="strict")
        password = unquote(url.password or "", errors="strict")
    except UnicodeDecodeError:
        raise ValueError("has a user or a password that is not percent-encoded UTF-8") from None
    if bool(user) != bool(password):
        raise ValueError("must have both a user and a password, or neither")
    if "\0" in user + password:
        raise ValueError("has a NUL in its user or its password")
    return url.hostname, user, password


def _parameters(query: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for name, values in parse_qs(query, keep_blank_values=True).items():
        if name not in ("region", "endpoint"):
            raise ValueError(f"has an unknown parameter {name!r}; known are region and endpoint")
        if len(values) > 1:
            raise ValueError(f"gives {name} more than once")
        parameters[name] = values[0].strip()
    if not re.fullmatch(r"[a-z0-9-]*", parameters.get("region", "")):
        raise ValueError("has a region that cannot be one")
    if not re.fullmatch(r"(https?://[^/?#@\s]+/?)?", parameters.get("endpoint", "")):
        raise ValueError("has as endpoint what is no URL like https://email.example.org")
    return parameters


def _sender(text: str) -> Mailbox:
    match = re.fullmatch(r"([^<>]*)<([^<>]*)>", text.strip())
    name, address = match.groups() if match else ("", text)
    name, address = name.strip(), address.strip()
    if len(name) > 1 and name[0] == name[-1] == '"':
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    if not is_address(address) or not address.isascii():
        raise ValueError("must be an ASCII address, like OpenRegistry <registry@example.org>")
    if not _is_line(name):
        raise ValueError("has a line break or another control character in its name")
    if len(name) + len(address) > _LONGEST_FROM - len('"" <>'):
        raise ValueError(f"must be no longer than {_LONGEST_FROM} characters")
    return Mailbox(name, address)


def _is_line(text: str) -> bool:
    """Whether nothing in it can end a line, for any program on the way, or cannot be encoded."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text)
