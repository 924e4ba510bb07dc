"""Resolvers: networks on which images live too. An account adds its own, an administrator those for
all; and each repository, account and the registry chooses to which its images go."""

from collections.abc import Callable
from datetime import datetime
from functools import wraps
from typing import Annotated, Any, Literal

import msgspec

from chalicelib.api.operations import Call, Needs, Operation, Page, Paging, page
from chalicelib.api.problems import Problem
from chalicelib.api.robots import owner_of_namespace
from chalicelib.http import NameUnknown
from chalicelib.metadata import repositories, resolver_choices
from chalicelib.metadata import resolvers as rows
from chalicelib.metadata.grants import Place
from chalicelib.metadata.resolver_choices import ALL
from chalicelib.resolvers import added, choices

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Key = Annotated[str, msgspec.Meta(min_length=1, max_length=256, pattern="^[!-~]+$")]
Url = Annotated[str, msgspec.Meta(max_length=300)]


class NewAddress(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A bucket of Filebase's that is on IPFS, and what its keys begin with. The servers are
    Filebase's own unless the registry's settings allow others; ``gateway`` and ``rpc`` may be ""
    for none."""

    bucket: Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
    prefix: Annotated[str, msgspec.Meta(max_length=200)] | None = None
    endpoint: Url | None = None
    gateway: Url | None = None
    rpc: Url | None = None


class ResolverKeys(msgspec.Struct, forbid_unknown_fields=True):
    """Keys of the bucket's owner, which are never shown again."""

    access_key: Key
    secret_key: Key


class NewResolver(ResolverKeys, forbid_unknown_fields=True):
    """A resolver: its name among those of the account, where it puts what it gets, and its keys."""

    name: Name
    address: NewAddress
    kind: Literal["filebase"] = "filebase"


class Resolver(msgspec.Struct):
    """A resolver. ``name`` is what choices call it: ACCOUNT/NAME, or NAME alone where it is for
    all. Once it was removed nobody can choose it, and ``copies`` are left there, which are taken
    away."""

    name: str
    kind: str
    address: dict[str, str]
    created_at: datetime
    removed_at: datetime | None
    copies: int


class Removing(msgspec.Struct):
    """With ``forget`` what is there stays there, and the registry knows of it no more: for keys
    that are not valid any more."""

    forget: bool = False


class Check(msgspec.Struct):
    """Whether a resolver can be used now; ``error`` says why not, "" where it can."""

    ready: bool
    error: str


class NewChoice(msgspec.Struct, forbid_unknown_fields=True):
    """The names of resolvers, none to have images stay here alone. ``insistence`` is the sentence
    to write to have private images go there too: anyone can fetch these layers."""

    resolvers: Annotated[
        list[Annotated[str, msgspec.Meta(max_length=400)]], msgspec.Meta(max_length=choices.MOST)
    ]
    insistence: Annotated[str, msgspec.Meta(max_length=100)] = ""


class Choice(msgspec.Struct):
    """Where images go. ``chosen_for`` says for what that was chosen: the ``repository``, its
    ``account`` or ``all``; None where nothing was chosen. ``insisted``: private ones too."""

    resolvers: list[str]
    insisted: bool
    chosen_for: str | None


def add_resolver(call: Call) -> Resolver:
    """Add a resolver."""
    body: NewResolver = call.body
    made = added.add(
        call.context, _owner(call), body.name, msgspec.to_builtins(body.address), body.access_key,
        body.secret_key, by=call.subject.id,
    )  # fmt: skip
    return _shown(made)


def list_resolvers(call: Call) -> Page[Resolver]:
    """The resolvers there are."""
    limit = call.query.limit
    found = rows.listed(call.context.database, _owner(call), call.query.after, limit + 1)
    return page([_shown(each) for each in found], limit, lambda each: each.name)


def show_resolver(call: Call) -> Resolver:
    """A resolver."""
    return _shown(_found(call))


def set_resolver_keys(call: Call) -> None:
    """Use other keys."""
    body: ResolverKeys = call.body
    name, by = _found(call).name, call.subject.id
    if not added.set_keys(
        call.context, _owner(call), name, body.access_key, body.secret_key, by=by
    ):
        raise _absent()


def remove_resolver(call: Call) -> None:
    """Let nobody use a resolver any more."""
    name, forget = _found(call).name, call.query.forget
    if not added.remove(call.context, _owner(call), name, forget=forget, by=call.subject.id):
        raise _absent()


def check_resolver(call: Call) -> Check:
    """Try a resolver."""
    error = added.check(call.context, _found(call).name)
    return Check(not error, error)


def show_choice(call: Call) -> Choice:
    """Where images go."""
    place, database = _place(call), call.context.database
    if place.repository is not None:
        holding = resolver_choices.holding(database, place.repository)
        if holding is None:
            raise _no_repository()
        return Choice(holding.resolvers, holding.insisted, holding.chosen_for)
    for chosen_for, each in (("account", place), ("all", ALL)):
        found = resolver_choices.find(database, each)
        if found is not None:
            return Choice(found.resolvers, found.insisted, "all" if place == ALL else chosen_for)
    return Choice([], insisted=False, chosen_for=None)


def choose(call: Call) -> Choice:
    """Choose where images go."""
    body: NewChoice = call.body
    choices.put(call.context, _place(call), body.resolvers, body.insistence, by=call.subject.id)
    return show_choice(call)


def unchoose(call: Call) -> None:
    """Choose nothing here."""
    if not choices.remove(call.context, _place(call), by=call.subject.id):
        raise Problem(404, "Nothing was chosen here.")


def _owner(call: Call) -> int | None:
    """Whose the path's resolvers are, None where they are for all."""
    return owner_of_namespace(call) if "account" in call.params else None


def _found(call: Call) -> rows.Added:
    owner = _owner(call)
    name = added.full_name(call.context, owner, call.params["resolver"])
    found = rows.find(call.context.database, name)
    if found is None or found.account != owner:
        raise _absent()
    return found


def _place(call: Call) -> Place:
    """What the path is about."""
    name = call.params.get("repository")
    if name is None:
        owner = _owner(call)
        return ALL if owner is None else Place(namespace=owner)
    found = repositories.find(call.context.database, name)
    if found is None:
        raise _no_repository()
    return Place(repository=found.id)


def _shown(resolver: rows.Added) -> Resolver:
    return Resolver(
        name=resolver.name,
        kind=resolver.kind,
        address=resolver.address,
        created_at=resolver.created_at,
        removed_at=resolver.removed_at,
        copies=resolver.copies,
    )


def _absent() -> Problem:
    return Problem(404, "There is no such resolver.")


def _no_repository() -> NameUnknown:
    return NameUnknown("There is no such repository, or it is not yours to know of.")


def _named(function: Callable[[Call], Any], noun: str) -> Callable[[Call], Any]:
    """The same function by a name of its own, for programs made from the description."""

    @wraps(function)
    def named(call: Call) -> Any:
        return function(call)

    named.__name__ = f"{function.__name__}_{noun}"
    return named


def _resolvers(prefix: str, noun: str, needs: Needs) -> list[Operation]:
    """The same of an account and for all."""

    def row(method: str, path: str, function: Callable[[Call], Any], summary: str,
            **options: Any) -> Operation:  # fmt: skip
        path = f"{prefix}/resolvers{path}"
        return Operation(
            method, path, _named(function, noun), needs, f"{summary} ({noun})", **options
        )

    one = "/{resolver}"
    return [
        row("POST", "", add_resolver, "Add a resolver", body=NewResolver, answer=Resolver,
            status=201, problems=(409,)),
        row("GET", "", list_resolvers, "The resolvers that were added", query=Paging,
            answer=Page[Resolver]),
        row("GET", one, show_resolver, "A resolver", answer=Resolver, problems=(404,)),
        row("PUT", f"{one}/keys", set_resolver_keys, "Give a resolver other keys",
            body=ResolverKeys, problems=(404,)),
        row("DELETE", one, remove_resolver, "Remove a resolver, and what it has",
            query=Removing, problems=(404,)),
        row("POST", f"{one}/check", check_resolver, "Try a resolver", answer=Check,
            problems=(404,)),
    ]  # fmt: skip


def _choices(prefix: str, noun: str, needs: Needs) -> list[Operation]:
    """The same of a repository, an account and for all."""
    path = f"{prefix}/resolver-choice"
    return [
        Operation("GET", path, _named(show_choice, f"of_{noun}"), needs,
                  f"To which networks images go ({noun})", answer=Choice),
        Operation("PUT", path, _named(choose, f"for_{noun}"), needs,
                  f"Choose to which networks images go ({noun})", body=NewChoice, answer=Choice),
        Operation("DELETE", path, _named(unchoose, f"for_{noun}"), needs,
                  f"Choose nothing here: what was chosen above holds ({noun})", problems=(404,)),
    ]  # fmt: skip


_ACCOUNT, _ADMIN = "/accounts/{account}", "/admin"
OPERATIONS = (
    *_resolvers(_ACCOUNT, "of_account", Needs.ACCOUNT_ADMIN),
    *_resolvers(_ADMIN, "for_all", Needs.ADMINISTRATOR),
    *_choices("/repositories/{repository}/-", "repository", Needs.REPOSITORY_ADMIN),
    *_choices(_ACCOUNT, "account", Needs.ACCOUNT_ADMIN),
    *_choices(_ADMIN, "all", Needs.ADMINISTRATOR),
)
