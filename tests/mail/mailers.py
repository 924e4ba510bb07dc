"""Every way to send mail, each with a look into what arrived; and the ways in which it fails."""

import contextlib
import datetime as dt
import ipaddress
import itertools
import json
import os
import socket
import ssl
import urllib.request
from asyncio import sleep
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from email import message_from_bytes, message_from_string
from email.header import decode_header, make_header
from email.policy import default
from email.utils import parseaddr
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import boto3
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from chalicelib.mail import Mailer, open_mailer
from chalicelib.mail.ses import SESMailer
from chalicelib.mail.smtp import SMTPMailer
from chalicelib.settings import Settings
from tests.servers import BIN, Server, answers, free_port, stopping

NAME, ADDRESS = "Régistre, der „Öffentliche“", "registry@example.org"
FROM = f'"{NAME}" <{ADDRESS}>'
REFUSED = "refused@example.org"
USER, PASSWORD = "zoë@example.org", "pä:ss/w@rd?#[%41"
TIMEOUT = 0.5


class Received(NamedTuple):
    """What a reader has of a message."""

    name: str
    sender: str
    to: str
    subject: str
    text: str


def read(data: bytes) -> Received:
    """What a mail program shows of a message's bytes."""
    mail = message_from_bytes(data, policy=default)
    # Python reads raw UTF-8 in a header (RFC 6532) from text alone.
    head = message_from_string(data.decode(), policy=default)
    [sender], [to] = head["From"].addresses, head["To"].addresses
    text = mail.get_content().replace("\r\n", "\n")
    return Received(sender.display_name, sender.addr_spec, to.addr_spec, head["Subject"], text)


@dataclass(frozen=True)
class Post:
    """A mailer, what arrived by it, and mailers of its kind that fail: each with the words that
    its error must hold."""

    mailer: Mailer
    received: Callable[[], list[Received]]
    failing: Mapping[str, tuple[Mailer, str]]


# SMTP


@dataclass
class Inbox:
    """What aiosmtpd asks about a message."""

    ways: tuple[str, ...] = ("PLAIN", "LOGIN")
    envelopes: list[Envelope] = field(default_factory=list)
    greetings: list[str] = field(default_factory=list)
    logins: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)
    data_reply: str = "250 OK"
    silent_at: str = ""

    async def handle_RCPT(  # noqa: N802
        self, server: Any, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address == REFUSED:
            return f"550 5.1.1 <{address}>: nobody of that name"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(  # noqa: N802
        self, server: Any, session: Session, envelope: Envelope
    ) -> str:
        if self.silent_at == "DATA":
            await sleep(60)
        if self.data_reply.startswith("250"):
            self.envelopes.append(envelope)
            self.greetings.append(session.host_name or "")
            self.encrypted.append(session.ssl is not None)
        return self.data_reply

    async def handle_QUIT(  # noqa: N802
        self, server: Any, session: Session, envelope: Envelope
    ) -> str:
        if self.silent_at == "QUIT":
            await sleep(60)
        return "221 Bye"

    def authenticate(
        self, server: Any, session: Session, envelope: Envelope, mechanism: str, login: Any
    ) -> AuthResult:
        assert isinstance(login, LoginPassword)
        self.logins.append((mechanism, login.login, login.password))
        if (login.login.decode(), login.password.decode()) == (USER, PASSWORD):
            return AuthResult(success=True)
        # As unkind a server as there may be: it repeats the password.
        reply = f"535 5.7.8 wrong password: {login.password.decode()}"
        return AuthResult(success=False, handled=False, message=reply)

    def received(self) -> list[Received]:
        """The messages, with their envelopes checked against their headers."""
        messages = []
        for envelope in self.envelopes:
            message = read(self.data(envelope))
            assert (envelope.mail_from, envelope.rcpt_tos) == (message.sender, [message.to])
            messages.append(message)
        return messages

    @staticmethod
    def data(envelope: Envelope) -> bytes:
        """A message as it arrived."""
        assert isinstance(envelope.content, bytes)
        return envelope.content


@contextlib.contextmanager
def mail_server(
    inbox: Inbox,
    certificate: Path | None = None,
    *,
    tls: bool = False,
    utf8: bool = True,
    password: bool = True,
) -> Iterator[int]:
    """Run aiosmtpd in a thread of its own and give its port. With a certificate it wants STARTTLS,
    or with ``tls`` TLS from the first byte on, and unless told otherwise a user and a
    password."""
    context = None
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
    unknown = [way for way in ("PLAIN", "LOGIN") if way not in inbox.ways]
    controller = Controller(
        inbox,
        hostname="127.0.0.1",
        port=free_port(),
        ssl_context=context if tls else None,
        tls_context=None if tls else context,
        server_hostname="mail.example.org",
        enable_SMTPUTF8=utf8,
        require_starttls=context is not None and not tls,
        auth_required=context is not None and password,
        auth_require_tls=not tls,  # aiosmtpd knows of TLS by STARTTLS alone
        auth_exclude_mechanism=unknown,
        authenticator=inbox.authenticate,
    )
    controller.start()
    try:
        yield controller.port
    finally:
        controller.stop()


def make_certificate(path: Path, host: str = "127.0.0.1") -> Path:
    """A certificate for an address of this machine that signs itself, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.example.org")])
    now = dt.datetime.now(dt.UTC)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(alternative, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    path.write_bytes(
        certificate.public_bytes(pem)
        + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
    """A port where connections are taken, and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def smtp(port: int, scheme: str = "smtp", user: str = "", password: str = "") -> SMTPMailer:
    """A mailer for a server of this machine, which is given little time."""
    account = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user else ""
    url = f"{scheme}://{account}127.0.0.1:{port}"
    mailer = open_mailer(Settings(mail_url=url, mail_from=FROM))
    assert isinstance(mailer, SMTPMailer)
    return replace(mailer, timeout=TIMEOUT)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mail server's."""
    return make_certificate(tmp_path_factory.mktemp("tls") / "server.pem")


@pytest.fixture
def trust(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust the mail server's certificate, as an operator with an authority of his own does."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))


def _smtp_post(inbox: Inbox, silent: int, server: int, scheme: str, *account: str) -> Post:
    failing: dict[str, tuple[Mailer, str]] = {
        "refused recipient": (smtp(server, scheme, *account), "refused the recipient: 550 5.1.1"),
        "down": (smtp(free_port(), scheme, *account), "cannot be reached: Connection refused"),
        "silent": (smtp(silent, scheme, *account), "did not answer within 0.5 s"),
    }
    if account:
        wrong = smtp(server, scheme, USER, PASSWORD + "x")
        failing["wrong password"] = (wrong, "refused the user and the password: 535 5.7.8")
    return Post(smtp(server, scheme, *account), inbox.received, failing)


@pytest.fixture
def post_by_smtp() -> Iterator[Post]:
    """By a server that asks for nothing."""
    inbox = Inbox()
    with mail_server(inbox) as server, silent_server() as silent:
        yield _smtp_post(inbox, silent, server, "smtp")


@pytest.fixture
def post_by_starttls(certificate: Path, trust: None) -> Iterator[Post]:
    """By a server that asks for STARTTLS and a password."""
    inbox = Inbox()
    with mail_server(inbox, certificate) as server, silent_server() as silent:
        yield _smtp_post(inbox, silent, server, "smtp", USER, PASSWORD)
    assert all(inbox.encrypted)


@pytest.fixture
def post_by_smtps(certificate: Path, trust: None) -> Iterator[Post]:
    """By a server that speaks TLS alone, and asks for a password."""
    inbox = Inbox()
    with mail_server(inbox, certificate, tls=True) as server, silent_server() as silent:
        yield _smtp_post(inbox, silent, server, "smtps", USER, PASSWORD)


# A folder


@pytest.fixture
def post_by_folder(tmp_path: Path) -> Post:
    """Into a folder that is not there yet."""
    folder = tmp_path / "some data" / "mail"
    mailer = open_mailer(Settings(mail_url=folder.as_uri(), mail_from=FROM))
    file = tmp_path / "file"
    file.touch()
    down = open_mailer(Settings(mail_url=(file / "mail").as_uri(), mail_from=FROM))

    def received() -> list[Received]:
        return [read(path.read_bytes()) for path in sorted(folder.glob("*.eml"))]

    return Post(mailer, received, {"down": (down, f"to {file / 'mail'}: {file} is no folder")})


# SES


class SES(Server):
    """ministack's SES, which verifies who asks. An access key of twelve digits is the account of
    that number."""

    name = "ministack"
    region = "eu-west-1"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._accounts = itertools.count(100_000_000_000)

    def command(self) -> list[str]:
        return [str(BIN / "ministack")]

    def environment(self) -> Mapping[str, str]:
        return {
            "AUTH": "true",
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(self.port),
            "SFTP_ENABLED": "0",
            "IOT_MTLS_ENABLED": "0",
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }

    def ready(self) -> bool:
        return answers(f"{self.endpoint}/_ministack/health")

    def new_account(self, *, sandbox: bool = False) -> str:
        """An account that may send as ADDRESS; out of the sandbox, to anybody."""
        account = str(next(self._accounts))
        client = boto3.client(
            "sesv2",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=account,
            aws_secret_access_key="secret",
        )
        client.create_email_identity(EmailIdentity=ADDRESS)
        client.put_account_details(
            MailType="TRANSACTIONAL",
            WebsiteURL="https://example.org",
            ProductionAccessEnabled=not sandbox,
        )
        return account

    def received(self, account: str) -> list[Received]:
        """What an account sent."""
        url = f"{self.endpoint}/_ministack/ses/messages?account={account}"
        with urllib.request.urlopen(url, timeout=10) as response:
            messages = json.load(response)["messages"].get(account, [])
        return [_read_ses(message) for message in messages]


def _read_ses(message: Any) -> Received:
    name, sender = parseaddr(message["Source"])
    [to] = message["To"]
    name = str(make_header(decode_header(name)))
    return Received(name, sender, to, message["Subject"], message["BodyText"])


@pytest.fixture(scope="session")
def ses_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SES]:
    """SES, on this machine."""
    server = SES(tmp_path_factory.mktemp("ses"))
    with stopping(server):
        yield server.start()


def ses(account: str, endpoint: str, timeout: float = TIMEOUT) -> SESMailer:
    """A mailer for a SES of this machine that keeps to an account: boto3 looks for credentials
    when it is first used."""
    url = f"ses://?region={SES.region}&endpoint={quote(endpoint, safe='')}"
    mailer = open_mailer(Settings(mail_url=url, mail_from=FROM))
    assert isinstance(mailer, SESMailer)
    mailer = replace(mailer, timeout=timeout)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", account)
        environment.setenv("AWS_SECRET_ACCESS_KEY", PASSWORD)
        assert mailer._client
    return mailer


@pytest.fixture
def post_by_ses(ses_server: SES) -> Iterator[Post]:
    """By SES."""
    account = ses_server.new_account()
    sandbox = ses_server.new_account(sandbox=True)
    endpoint = ses_server.endpoint
    with silent_server() as silent:
        yield Post(
            # ministack takes its time for its first message.
            ses(account, endpoint, timeout=10),
            lambda: ses_server.received(account),
            {
                "refused recipient": (ses(sandbox, endpoint), "400 MessageRejected: Email address"),
                "down": (
                    ses(account, f"http://127.0.0.1:{free_port()}"),
                    "out of reach: EndpointConnectionError",
                ),
                "silent": (
                    ses(account, f"http://127.0.0.1:{silent}"),
                    "out of reach: ReadTimeoutError",
                ),
                "wrong password": (
                    ses("AKIAIOSFODNN7EXAMPLE", endpoint),
                    "403 UnrecognizedClientException",
                ),
            },
        )


WAYS = ("smtp", "starttls", "smtps", "folder", "ses")
FAILURES = [
    (way, failure)
    for way in WAYS
    for failure in ("refused recipient", "down", "silent", "wrong password")
    # A folder refuses and asks nobody; a server that asks for no password refuses none.
    if (way != "folder" or failure == "down") and (way, failure) != ("smtp", "wrong password")
]


@pytest.fixture(params=WAYS)
def post(request: pytest.FixtureRequest) -> Post:
    """Each way in turn."""
    made: Post = request.getfixturevalue(f"post_by_{request.param}")
    return made
