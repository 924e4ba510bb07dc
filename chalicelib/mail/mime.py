"""Messages as bytes (RFC 5322 with MIME)."""

from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import make_msgid

from chalicelib.mail import Mailbox, Message

_LONGEST_LINE = 998
"""RFC 5322, section 2.1.1. Lines of text are left whole up to here, so that the links in them can
be copied from a file."""


def compose(message: Message, sender: Mailbox, *, eight_bit: bool) -> bytes:
    """A message from ``sender``, its lines ended by CR LF. With ``eight_bit`` the text is UTF-8 as
    it is where its lines allow that; else every byte is ASCII, unless the address is not (RFC
    6532)."""
    policy = SMTP.clone(
        utf8=not message.to.isascii(),
        cte_type="8bit" if eight_bit or not message.to.isascii() else "7bit",
    )
    mail = EmailMessage(policy.clone(max_line_length=_LONGEST_LINE))
    mail["Date"] = datetime.now(UTC)
    mail["Message-ID"] = make_msgid(domain=sender.domain)
    mail["From"] = Address(sender.name, addr_spec=sender.address)
    mail["To"] = Address("", *message.to.rsplit("@", 1))
    mail["Subject"] = message.subject
    # So that no holiday note answers it (RFC 3834, section 5).
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(message.text, charset="utf-8")
    return mail.as_bytes(policy=policy)
