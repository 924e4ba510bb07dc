"""Mail by an SMTP server (RFC 5321), for its submission service or a relay.

With ``smtps`` and with a password the server's certificate is verified, against the system's
authorities or those of SSL_CERT_FILE. Without either, STARTTLS is used where it is offered and the
certificate is not looked at (RFC 7435): whoever could forge it could as well remove the offer.
"""

import re
import smtplib
import ssl
from base64 import b64encode
from contextlib import suppress
from dataclasses import dataclass, field

from chalicelib.mail import Mailbox, MailError, Message
from chalicelib.mail.mime import compose


@dataclass(frozen=True)
class SMTPMailer:
    """``Mailer`` by a server. ``tls`` is TLS from the first byte on (RFC 8314); ``timeout`` is in
    seconds, and how long the server may be silent."""

    sender: Mailbox
    host: str
    port: int
    tls: bool
    user: str
    password: str = field(repr=False)
    timeout: float = 15

    def send(self, message: Message) -> None:
        data = compose(message, self.sender, eight_bit=False)
        options = () if message.to.isascii() else ("SMTPUTF8", "BODY=8BITMIME")
        try:
            session = self._connect()
            try:
                self._prepare(session)
                if options and not session.has_extn("smtputf8"):
                    raise self._error("takes ASCII addresses alone")
                session.sendmail(self.sender.address, [message.to], data, options)
            finally:
                # The message has been accepted or not: a goodbye that fails changes neither.
                with suppress(smtplib.SMTPException, OSError):
                    session.quit()
                session.close()
        except (smtplib.SMTPException, OSError) as error:
            raise self._error(self._reason(error)) from error

    def _connect(self) -> smtplib.SMTP:
        # By itself smtplib would look its own name up, for as long as the resolver takes.
        name = self.sender.domain
        if self.tls:
            context = ssl.create_default_context()
            return smtplib.SMTP_SSL(
                self.host, self.port, name, timeout=self.timeout, context=context
            )
        return smtplib.SMTP(self.host, self.port, name, self.timeout)

    def _prepare(self, session: smtplib.SMTP) -> None:
        session.ehlo_or_helo_if_needed()
        if not self.tls:
            if session.has_extn("starttls"):
                context = ssl.create_default_context()
                if not self.password:
                    context.check_hostname = False
                    context.verify_mode = ssl.CERT_NONE
                session.starttls(context=context)
                session.ehlo_or_helo_if_needed()
            elif self.password:
                raise self._error("offers no STARTTLS, and no password is sent without it")
        if self.password:
            self._log_in(session)

    def _log_in(self, session: smtplib.SMTP) -> None:
        """By PLAIN (RFC 4616), else by LOGIN. smtplib's own takes ASCII alone."""
        ways = session.esmtp_features.get("auth", "").upper().split()
        if "PLAIN" in ways:
            code, reply = session.docmd(
                "AUTH", "PLAIN " + _encoded(f"\0{self.user}\0{self.password}")
            )
        elif "LOGIN" in ways:
            code, reply = session.docmd("AUTH", "LOGIN " + _encoded(self.user))
            if code == 334:
                code, reply = session.docmd(_encoded(self.password))
        else:
            raise self._error("offers neither AUTH PLAIN nor AUTH LOGIN")
        if code != 235:
            # Some servers repeat what they were sent: of their text the status alone is kept.
            status = re.match(rb"[245]\.\d{1,3}\.\d{1,3}\b", reply)
            detail = f"{code} {status[0].decode()}" if status else str(code)
            raise self._error(f"refused the user and the password: {detail}")

    def _error(self, reason: str) -> MailError:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return MailError(f"The mail server {host}:{self.port} {reason}.")

    def _reason(self, error: smtplib.SMTPException | OSError) -> str:
        if isinstance(error, TimeoutError) or isinstance(error.__context__, TimeoutError):
            return f"did not answer within {self.timeout:g} s"
        match error:
            case smtplib.SMTPRecipientsRefused(recipients=refused):
                [(code, reply)] = refused.values()
                return f"refused the recipient: {_said(code, reply)}"
            case smtplib.SMTPSenderRefused(smtp_code=code, smtp_error=reply):
                return f"refused the sender, MAIL_FROM: {_said(code, reply)}"
            case smtplib.SMTPDataError(smtp_code=code, smtp_error=reply):
                return f"refused the message: {_said(code, reply)}"
            case smtplib.SMTPResponseException(smtp_code=code, smtp_error=reply):
                return f"turned the registry away: {_said(code, reply)}"
            case smtplib.SMTPServerDisconnected():
                return "closed the connection"
            case ssl.SSLCertVerificationError():
                return f"has a certificate that is not trusted: {error.verify_message}"
            case ssl.SSLError():
                return f"does not speak TLS here: {error.reason}"
            case OSError(strerror=str(strerror)):
                return f"cannot be reached: {strerror}"
        return f"does not speak SMTP as it should: {type(error).__name__}"


def _encoded(text: str) -> str:
    return b64encode(text.encode()).decode()


def _said(code: int, reply: bytes | str) -> str:
    """A server's reply as one line, without addresses."""
    text = reply.decode(errors="replace") if isinstance(reply, bytes) else reply
    text = re.sub(r"[^\s<>]+@[^\s<>]+", "…", " ".join(text.split()))
    text = "".join(letter for letter in text if letter.isprintable())
    return f"{code} {text[:200].rstrip('.')}"
