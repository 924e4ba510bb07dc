"""Any text comes back from the bytes of a message, and none becomes a field of its header."""

from email import message_from_bytes, message_from_string
from email.policy import default

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chalicelib.mail import Mailbox, Message
from chalicelib.mail.mime import compose

FIELDS = {
    "Date",
    "Message-ID",
    "From",
    "To",
    "Subject",
    "Auto-Submitted",
    "Content-Type",
    "Content-Transfer-Encoding",
    "MIME-Version",
}
LINE = st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])


def words(text: str) -> str:
    """What a reader sees of a field: blanks may have become others."""
    return " ".join(text.split())


def lines(text: str) -> list[str]:
    """Lines as the wire knows them, without empty ones at the end."""
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split("\n")


@settings(deadline=None)
@given(
    to=st.sampled_from(["zoe@example.org", "zoë@bücher.example", "{|}~'!#$%&*+/=?^_`@a.example"]),
    subject=st.text(LINE, max_size=300),
    name=st.text(LINE, max_size=40),
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3000),
    eight_bit=st.booleans(),
)
def test_any_message(to: str, subject: str, name: str, text: str, eight_bit: bool) -> None:
    sender = Mailbox(name.strip(), "registry@example.org")
    data = compose(Message(to, subject, text), sender, eight_bit=eight_bit)
    assert all(len(line) <= 998 for line in data.split(b"\r\n"))
    assert not set(b"\r\n\0") & set(data.replace(b"\r\n", b""))
    assert data.isascii() or eight_bit or not to.isascii()
    head = message_from_string(data.decode(), policy=default)
    assert sorted(head.keys()) == sorted(FIELDS)
    [box] = head["To"].addresses
    assert (box.display_name, box.addr_spec) == ("", to)
    [box] = head["From"].addresses
    # Python puts a blank where it folds within a word.
    assert "".join(box.display_name.split()) == "".join(sender.name.split())
    assert box.addr_spec == sender.address
    assert words(head["Subject"]) == words(subject)
    body = message_from_bytes(data, policy=default)
    assert lines(body.get_content()) == lines(text)


@pytest.mark.parametrize(
    "letter", ["\r", "\n", "\r\nBcc: x@example.org", "\0", "\x0b", "\x85", "\u2028"]
)
def test_what_ends_a_line_is_refused(letter: str) -> None:
    for field in ("to", "subject"):
        texts = {"to": "zoe@example.org", "subject": "Hello", "text": "Hello\r\n"}
        texts[field] += letter
        with pytest.raises(ValueError, match=r"The (recipient|subject)"):
            Message(**texts)


@pytest.mark.parametrize(
    "to",
    [
        "",
        "zoe",
        "@example.org",
        "zoe@",
        "a@example.org,b@example.org",
        "a@example.org b@example.org",
        "Zoe <zoe@example.org>",
        "<zoe@example.org>",
        '"a b"@example.org',
        "zoe@[127.0.0.1]",
        "zoe@-example.org",
        "zoe@example..org",
        ".zoe@example.org",
        "zoe(note)@example.org",
        "zoe@exa mple.org",
        "zoe\xa0@example.org",
        "\ud800@example.org",
        "x" * 65 + "@example.org",
        "ü" * 33 + "@example.org",
        "zoe@" + ".".join(["x" * 60] * 5),
    ],
)
def test_what_is_no_address_is_refused(to: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        Message(to, "Hello", "Hello")


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_text_that_cannot_be_sent_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="text holds"):
        Message("zoe@example.org", "Hello", text)


def test_links_stay_whole() -> None:
    link = "https://registry.example.org/reset?token=" + "x" * 300
    message = Message("zoe@example.org", "Hello", f"Open {link}\n")
    for eight_bit in (False, True):
        assert link.encode() in compose(message, Mailbox("", "r@example.org"), eight_bit=eight_bit)
