"""Signatures of messages between servers (Standard Webhooks 1.0): ours, and others' to us.

Signed are the message's id, the time and the body, by HMAC-SHA256 with a secret that both sides
have. A message may bear several signatures, while a secret is exchanged for another.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping, Sequence

TOLERANCE = 5 * 60
"""Seconds by which a message's time may differ from ours."""
_PREFIX = "whsec_"
_VERSION = "v1"
_MOST = 16
"""Signatures of one message that are looked at."""
_ID = re.compile(r"[!-~]{1,256}")


class SignatureError(Exception):
    """A message is not to be believed. The text is a sentence for its sender."""


def new_secret() -> bytes:
    """A secret."""
    return secrets.token_bytes(32)


def shown(secret: bytes) -> str:
    """A secret as people copy it."""
    return _PREFIX + base64.b64encode(secret).decode()


def headers(
    keys: Sequence[bytes], message: str, body: bytes, now: float | None = None
) -> dict[str, str]:
    """The header fields of a message that is sent now, signed with each of these secrets."""
    timestamp = str(int(time.time() if now is None else now))
    return {
        "webhook-id": message,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(
            f"{_VERSION},{base64.b64encode(_signed(key, message, timestamp, body)).decode()}"
            for key in keys
        ),
    }


def verify(key: bytes, fields: Mapping[str, str], body: bytes) -> str:
    """The id of a message that was signed with this secret just now. Raises ``SignatureError``."""
    message = fields.get("webhook-id", "")
    timestamp = fields.get("webhook-timestamp", "")
    given = fields.get("webhook-signature", "")
    if not (message and timestamp and given):
        raise SignatureError("A message has webhook-id, webhook-timestamp and webhook-signature.")
    if not _ID.fullmatch(message):
        raise SignatureError("The webhook-id is longer than 256 characters, or holds others.")
    if not re.fullmatch("[0-9]{1,12}", timestamp):
        raise SignatureError("The webhook-timestamp is no number of seconds since 1970.")
    wanted = _signed(key, message, timestamp, body)
    if not any(hmac.compare_digest(wanted, each) for each in _read(given)):
        raise SignatureError("The message was not signed with this secret.")
    # Last: what a forger learns of our clock is what everybody knows.
    if abs(time.time() - int(timestamp)) > TOLERANCE:
        raise SignatureError("The webhook-timestamp is more than five minutes from our clock.")
    return message


def _signed(key: bytes, message: str, timestamp: str, body: bytes) -> bytes:
    return hmac.digest(key, f"{message}.{timestamp}.".encode() + body, hashlib.sha256)


def _read(given: str) -> list[bytes]:
    found = []
    for each in given.split(" ")[:_MOST]:
        version, comma, text = each.partition(",")
        if comma and version == _VERSION:
            try:
                found.append(base64.b64decode(text, validate=True))
            except (binascii.Error, ValueError):
                continue
    return found
