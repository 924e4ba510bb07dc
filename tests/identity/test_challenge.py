"""The challenge of a 401: what it asks for, and when a wider token would help."""

import pytest

from chalicelib.http import Headers, Request, Unauthorized
from chalicelib.identity import Permission, Subject
from chalicelib.identity.access import add_challenge, check_claims
from chalicelib.settings import Settings

REQUEST = Request("GET", "/v2/a/b/manifests/latest", headers=Headers({"Host": "r.example.org"}))


def challenge(error: Unauthorized) -> str:
    """The challenge that this error gets."""
    add_challenge(error, Settings(), REQUEST, Permission.PULL, "a/b")
    [(name, field)] = error.headers
    assert name == "WWW-Authenticate"
    return field


def test_a_narrow_token_is_told_of_a_wider_one() -> None:
    narrow = Subject(1, claims={"repository:a/c": frozenset({"pull"})})
    with pytest.raises(Unauthorized) as caught:
        check_claims(narrow, Permission.PULL, "a/b")
    assert challenge(caught.value) == (
        'Bearer realm="http://r.example.org/token",service="openregistry",'
        'scope="repository:a/b:pull",error="insufficient_scope"'
    )


def test_advice_is_no_word_of_scopes() -> None:
    error = Unauthorized("Nobody here is linked to it.", "link it to your account")
    assert "error=" not in challenge(error)
