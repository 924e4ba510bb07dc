"""Repositories: made, found, changed, renamed, deleted, and who may do what in one."""

from datetime import datetime
from typing import Annotated, Literal, cast

import msgspec

from chalicelib.api.grants import Grant, NewGrant, give, shown, take
from chalicelib.api.operations import Call, Needs, Operation, Page, Paging, page
from chalicelib.api.problems import Problem
from chalicelib.api.texts import RepositoryName
from chalicelib.http import NameUnknown
from chalicelib.identity import repositories
from chalicelib.metadata import grants as grant_rows
from chalicelib.metadata import repositories as rows
from chalicelib.metadata.grants import Place
from chalicelib.metadata.permissions import ROLES
from chalicelib.metadata.robots import Role

Description = Annotated[str, msgspec.Meta(max_length=1000)]
Visibility = Literal["public", "private"]


class NewRepository(msgspec.Struct, forbid_unknown_fields=True):
    """A repository to be made. Without ``visibility`` it is as its account has chosen."""

    name: RepositoryName
    visibility: Visibility | None = None
    description: Description = ""


class Changes(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be another; what is left out stays."""

    visibility: Visibility | None = None
    description: Description | None = None


class NewName(msgspec.Struct, forbid_unknown_fields=True):
    """What a repository is to be called, perhaps in another namespace."""

    name: RepositoryName


class Search(Paging):
    """A list's page; ``search`` is in the name or the description, ``account`` the namespace."""

    search: Annotated[str, msgspec.Meta(max_length=100)] = ""
    account: Annotated[str, msgspec.Meta(max_length=100)] = ""


class Repository(msgspec.Struct):
    """A repository; ``role`` is the caller's in it."""

    name: str
    visibility: Visibility
    description: str
    created_at: datetime
    role: Role


class RepositoryDetail(Repository):
    """All of a repository; ``size`` is that of its distinct blobs in bytes, ``pushed_at`` when a
    manifest last came, ``pulled_at`` when one last went."""

    tags: int
    size: int
    pushed_at: datetime | None
    pulls: int
    pulled_at: datetime | None


def create_repository(call: Call) -> RepositoryDetail:
    """Make an empty repository."""
    name = repositories.checked_name(call.body.name)
    _check_may_create(call, name)
    repositories.create(
        call.context.database,
        name,
        call.context.new_repository(call.subject),
        call.body.description,
        public=_public(call.body.visibility),
    )
    return _detail(call, name)


def list_repositories(call: Call) -> Page[Repository]:
    """The repositories that the caller may pull from."""
    return _listed(call, call.query.account, call.query.search)


def list_account_repositories(call: Call) -> Page[Repository]:
    """Those of one account that the caller may pull from."""
    return _listed(call, call.params["account"], "")


def show_repository(call: Call) -> RepositoryDetail:
    """A repository."""
    return _detail(call, call.params["repository"])


def change_repository(call: Call) -> RepositoryDetail:
    """Change who may pull from a repository, and its description."""
    name = call.params["repository"]
    repositories.change(
        call.context.database,
        name,
        public=_public(call.body.visibility),
        description=call.body.description,
        by=call.subject.id,
    )
    call.context.wake()
    return _detail(call, name)


def rename_repository(call: Call) -> None:
    """Give a repository another name, also in another namespace."""
    name = repositories.checked_name(call.body.name)
    _check_may_create(call, name)
    repositories.rename(call.context.database, call.params["repository"], name, by=call.subject.id)
    call.context.wake()


def delete_repository(call: Call) -> None:
    """Delete a repository and all that is in it."""
    repositories.delete(call.context.database, call.params["repository"], by=call.subject.id)
    call.context.wake()


def list_repository_grants(call: Call) -> Page[Grant]:
    """Who was granted what in a repository."""
    limit = call.query.limit
    place = Place(repository=_found(call).id)
    found = grant_rows.listed(call.context.database, place, call.query.after, limit + 1)
    return page([shown(each) for each in found], limit, lambda each: each.grantee)


def give_repository_grant(call: Call) -> Grant:
    """Give a user, a robot or a team a role in a repository."""
    found = _found(call)
    return give(call, Place(repository=found.id), found.account)


def take_repository_grant(call: Call) -> None:
    """Take a role in a repository away."""
    found = _found(call)
    take(call, Place(repository=found.id), found.account)


def _check_may_create(call: Call, name: str) -> None:
    if not call.access.may_create(call.subject, name):
        raise Problem(403, f"You may not make a repository called {name}.")


def _found(call: Call) -> rows.Owned:
    found = rows.find(call.context.database, call.params["repository"])
    if found is None:
        raise _unknown()
    return found


def _listed(call: Call, namespace: str, text: str) -> Page[Repository]:
    query = call.query
    found = rows.listed(
        call.context.database,
        call.subject.account,
        call.access.globs(call.subject),
        query.after,
        query.limit + 1,
        namespace=namespace,
        text=text,
    )
    items = [
        Repository(each.name, _visibility(each.public), each.description, each.created_at,
                   _role(each.role))
        for each in found
    ]  # fmt: skip
    return page(items, query.limit, lambda each: each.name)


def _detail(call: Call, name: str) -> RepositoryDetail:
    found = rows.detail(call.context.database, call.subject.account, name)
    if found is None:
        raise _unknown()
    return RepositoryDetail(
        name=found.name,
        visibility=_visibility(found.public),
        description=found.description,
        created_at=found.created_at,
        role=_role(found.role),
        tags=found.tags,
        size=found.size,
        pushed_at=found.pushed_at,
        pulls=found.pulls,
        pulled_at=found.pulled_at,
    )


def _unknown() -> NameUnknown:
    return NameUnknown("There is no such repository, or it is not yours to know of.")


def _role(rank: int) -> Role:
    return cast("Role", ROLES[rank])


def _public(visibility: Visibility | None) -> bool | None:
    return None if visibility is None else visibility == "public"


def _visibility(public: bool) -> Visibility:
    return "public" if public else "private"


_ALL = "/repositories"
_ONE = "/repositories/{repository}"
_GRANTS = f"{_ONE}/-/grants"
OPERATIONS = (
    Operation("POST", _ALL, create_repository, Needs.ACCOUNT, "Make a repository",
              body=NewRepository, answer=RepositoryDetail, status=201, problems=(409,)),
    Operation("GET", _ALL, list_repositories, Needs.NOTHING, "Find repositories",
              query=Search, answer=Page[Repository]),
    Operation("GET", "/accounts/{account}/repositories", list_account_repositories, Needs.NOTHING,
              "An account's repositories", query=Paging, answer=Page[Repository]),
    Operation("GET", _GRANTS, list_repository_grants, Needs.REPOSITORY_ADMIN,
              "Who was granted what in a repository", query=Paging, answer=Page[Grant]),
    Operation("PUT", f"{_GRANTS}/{{grantee}}", give_repository_grant, Needs.REPOSITORY_ADMIN,
              "Give somebody a role in a repository", body=NewGrant, answer=Grant),
    Operation("DELETE", f"{_GRANTS}/{{grantee}}", take_repository_grant, Needs.REPOSITORY_ADMIN,
              "Take a role in a repository away"),
    Operation("POST", f"{_ONE}/-/rename", rename_repository, Needs.REPOSITORY_ADMIN,
              "Give a repository another name", body=NewName, problems=(409,)),
    Operation("GET", _ONE, show_repository, Needs.REPOSITORY_READ, "A repository",
              answer=RepositoryDetail),
    Operation("PATCH", _ONE, change_repository, Needs.REPOSITORY_ADMIN, "Change a repository",
              body=Changes, answer=RepositoryDetail),
    Operation("DELETE", _ONE, delete_repository, Needs.REPOSITORY_ADMIN, "Delete a repository"),
)  # fmt: skip
