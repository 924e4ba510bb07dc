"""What is asked of every mailer."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from chalicelib.mail import MailError, Message
from tests.mail.mailers import ADDRESS, FAILURES, NAME, PASSWORD, REFUSED, USER, Post, Received

pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")

TEXTS = {
    "plain": "Hello.\n",
    "letters": "Grüße, 世界, שלום, 👩‍👩‍👧.\n",
    "link": "Open https://registry.example.org/verify?token=" + "x" * 300 + "\n",
    "a long line": "word " * 1000 + "\n",
    "a long word": "x" * 5000 + "\n",
    "a long line of letters": "ü世" * 2000 + "\n",
    "dots": ".\n..\n...\n.hidden\n\n.\nQUIT\n",
    "From": "From here on\n>From there\n",
    "blanks": "  two before\ttab, one after \n\n\nthree empty ones before\n",
    "equals": "=3D =?utf-8?q?no?= 100=25\n",
    "much": "A line of some length, again and again.\n" * 5000,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_text_arrives_as_it_was_sent(post: Post, text: str) -> None:
    post.mailer.send(Message("zoe@example.org", "Hello", text))
    [received] = post.received()
    assert received == Received(NAME, ADDRESS, "zoe@example.org", "Hello", text)


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "Grüße aus der 世界 👋",
        "=?utf-8?q?not_encoded=3F?=".replace("?=", "? ="),
        "long " * 40 + "end",
        "länger " * 40 + "Ende",
        "Bcc: x@example.org, <y@example.org>",
    ],
)
def test_subjects_arrive_as_they_were_sent(post: Post, subject: str) -> None:
    post.mailer.send(Message("zoe@example.org", subject, "Hello\n"))
    [received] = post.received()
    assert received.subject == subject


def test_addresses_of_all_shapes(post: Post) -> None:
    addresses = ["o'neil+tag@sub.example.org", "x_y-z@example.org", "{a}@localhost"]
    for address in addresses:
        post.mailer.send(Message(address, "Hello", "Hello\n"))
    assert [received.to for received in post.received()] == addresses


def test_one_after_the_other_and_all_at_once(post: Post) -> None:
    def send(number: int) -> None:
        post.mailer.send(Message("zoe@example.org", f"Hello {number}", "Hello\n"))

    for number in range(5):
        send(number)
    assert [received.subject for received in post.received()] == [f"Hello {n}" for n in range(5)]
    with ThreadPoolExecutor(5) as threads:
        list(threads.map(send, range(5, 15)))
    subjects = {received.subject for received in post.received()}
    assert subjects == {f"Hello {n}" for n in range(15)}


@pytest.mark.parametrize(("way", "failure"), FAILURES, ids=[" ".join(each) for each in FAILURES])
def test_a_failure_says_why(way: str, failure: str, request: pytest.FixtureRequest) -> None:
    post: Post = request.getfixturevalue(f"post_by_{way}")
    mailer, words = post.failing[failure]
    to = REFUSED if failure == "refused recipient" else "zoe@example.org"
    began = time.monotonic()
    with pytest.raises(MailError) as raised:
        mailer.send(Message(to, "Hello", "Hello\n"))
    assert time.monotonic() - began < 5
    sentence = str(raised.value)
    assert words in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert PASSWORD not in sentence + repr(mailer)
    assert USER not in sentence
    assert to not in sentence
    assert post.received() == []
