"""Rules that keep tags from being moved and deleted, of one repository or of an account's."""

from datetime import datetime
from typing import Annotated

import msgspec

from chalicelib.api.operations import Call, Needs, Operation, Page, PagingByNumber, page
from chalicelib.api.problems import Problem
from chalicelib.api.robots import owner_of_namespace
from chalicelib.api.texts import TagPattern
from chalicelib.http import NameUnknown
from chalicelib.metadata import immutable_tags as rows
from chalicelib.metadata import repositories
from chalicelib.metadata.grants import Place
from chalicelib.registry import immutable_tags


class NewImmutableTags(msgspec.Struct, forbid_unknown_fields=True):
    """Tags to be kept as they are: those that match ``pattern`` and none of ``exceptions``; ``*``
    stands for any characters."""

    pattern: TagPattern
    exceptions: Annotated[
        list[TagPattern], msgspec.Meta(max_length=immutable_tags.MOST_EXCEPTIONS)
    ] = []


class ImmutableTags(msgspec.Struct):
    """A rule that keeps tags as they are. ``created_by`` is a subject."""

    id: int
    pattern: str
    exceptions: list[str]
    created_by: str
    created_at: datetime


def create_account_immutable_tags(call: Call) -> ImmutableTags:
    """Keep tags of all of an account's repositories as they are."""
    return _create(call, *account_place(call))


def list_account_immutable_tags(call: Call) -> Page[ImmutableTags]:
    """The rules for all of an account's repositories."""
    return _listed(call, account_place(call)[0])


def delete_account_immutable_tags(call: Call) -> None:
    """Let tags of an account's repositories be moved and deleted again."""
    _remove(call, *account_place(call))


def create_repository_immutable_tags(call: Call) -> ImmutableTags:
    """Keep tags of a repository as they are."""
    return _create(call, *repository_place(call))


def list_repository_immutable_tags(call: Call) -> Page[ImmutableTags]:
    """A repository's own rules."""
    return _listed(call, repository_place(call)[0])


def delete_repository_immutable_tags(call: Call) -> None:
    """Let tags of a repository be moved and deleted again."""
    _remove(call, *repository_place(call))


def account_place(call: Call) -> tuple[Place, int]:
    """The namespace of the path's account, and the account's id."""
    account = owner_of_namespace(call)
    return Place(namespace=account), account


def repository_place(call: Call) -> tuple[Place, int | None]:
    """The path's repository, and the id of the account in whose namespace it lies."""
    found = repositories.find(call.context.database, call.params["repository"])
    if found is None:
        raise NameUnknown("There is no such repository, or it is not yours to know of.")
    return Place(repository=found.id), found.account


def _create(call: Call, place: Place, account: int | None) -> ImmutableTags:
    body = call.body
    rule = immutable_tags.create(
        call.context.database, place, account, body.pattern, body.exceptions, by=call.subject.id
    )
    return _shown(rule)


def _listed(call: Call, place: Place) -> Page[ImmutableTags]:
    query = call.query
    found = rows.listed(call.context.database, place, int(query.after or 0), query.limit + 1)
    return page([_shown(each) for each in found], query.limit, lambda each: each.id)


def _remove(call: Call, place: Place, account: int | None) -> None:
    text = call.params["rule"]
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0
    if not immutable_tags.remove(call.context.database, place, account, number, by=call.subject.id):
        raise Problem(404, "There is no such rule.")


def _shown(rule: rows.Rule) -> ImmutableTags:
    return ImmutableTags(**rule._asdict())


_OF_ACCOUNT = "/accounts/{account}/immutable-tags"
_OF_REPOSITORY = "/repositories/{repository}/-/immutable-tags"
OPERATIONS = (
    Operation("POST", _OF_ACCOUNT, create_account_immutable_tags, Needs.ACCOUNT_ADMIN,
              "Keep tags of all of an account's repositories from being moved and deleted",
              body=NewImmutableTags, answer=ImmutableTags, status=201, problems=(409,)),
    Operation("GET", _OF_ACCOUNT, list_account_immutable_tags, Needs.ACCOUNT_ADMIN,
              "Which tags of all of an account's repositories are neither moved nor deleted",
              query=PagingByNumber, answer=Page[ImmutableTags]),
    Operation("DELETE", f"{_OF_ACCOUNT}/{{rule}}", delete_account_immutable_tags,
              Needs.ACCOUNT_ADMIN,
              "Let tags of an account's repositories be moved and deleted again"),
    Operation("POST", _OF_REPOSITORY, create_repository_immutable_tags, Needs.REPOSITORY_ADMIN,
              "Keep tags of a repository from being moved and deleted",
              body=NewImmutableTags, answer=ImmutableTags, status=201, problems=(409,)),
    Operation("GET", _OF_REPOSITORY, list_repository_immutable_tags, Needs.REPOSITORY_ADMIN,
              "Which tags are neither moved nor deleted by rules of the repository itself",
              query=PagingByNumber, answer=Page[ImmutableTags]),
    Operation("DELETE", f"{_OF_REPOSITORY}/{{rule}}", delete_repository_immutable_tags,
              Needs.REPOSITORY_ADMIN, "Let tags of a repository be moved and deleted again"),
)  # fmt: skip
