"""People whom another service knows: what it says of them, and its refusals."""

from typing import NamedTuple

from chalicelib.http import Unauthorized


class Person(NamedTuple):
    """Somebody at an issuer. ``subject`` is the issuer's own, lasting id, and with the issuer the
    key to find an account by: names and emails change hands. ``name`` is what the person is
    called there, "" where the issuer does not say, and ``email`` one that the issuer has verified,
    or ""."""

    issuer: str
    subject: str
    name: str
    email: str


class SignInRefused(Unauthorized):
    """The issuer, or what it says, does not prove who this is: the person may begin anew."""
