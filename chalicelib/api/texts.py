"""Kinds of text that several operations take: their sizes, and what the API's description tells of
their form. The rooms that they are for check that form, with sentences of their own."""

from typing import Annotated

import msgspec

from chalicelib.identity import scopes, users
from chalicelib.registry import immutable_tags, names

_COMPONENT = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"


def _scope(kind: str) -> str:
    action = f"({'|'.join(scopes.ACTIONS[kind])}|\\*)"
    return rf"{kind}:[a-z0-9._/*+-]{{1,255}}:{action}(,{action})*"


def _like(pattern: str) -> dict[str, str]:
    return {"pattern": f"^{pattern}$"}


AccountName = Annotated[
    str,
    msgspec.Meta(min_length=1, max_length=users.LONGEST_NAME, extra_json_schema=_like(_COMPONENT)),
]
"""What a user, an organisation or a team is called, and the last part of a robot's name."""
RepositoryName = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=names.LONGEST_NAME,
        extra_json_schema=_like(f"{_COMPONENT}(/{_COMPONENT})*"),
    ),
]
Email = Annotated[
    str, msgspec.Meta(min_length=3, max_length=254, extra_json_schema={"format": "idn-email"})
]
"""An address for mail (RFC 6531)."""
Scope = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=400,
        extra_json_schema=_like(f"({_scope('repository')}|{_scope('account')})"),
    ),
]
RepositoryScope = Annotated[
    str, msgspec.Meta(min_length=1, max_length=400, extra_json_schema=_like(_scope("repository")))
]
TagPattern = Annotated[
    str,
    msgspec.Meta(min_length=1, max_length=128, extra_json_schema=_like(immutable_tags.PATTERN)),
]
"""Tags; ``*`` stands for any characters."""
Digest = Annotated[
    str,
    msgspec.Meta(
        max_length=200, extra_json_schema=_like("(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})")
    ),
]
