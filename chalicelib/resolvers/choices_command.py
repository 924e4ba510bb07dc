"""`openregistry resolver`: networks that people add, and to which of them images go."""

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from chalicelib.cli import CommandError, Commands, add, as_json, group, print_answer
from chalicelib.hosts import opened_context

if TYPE_CHECKING:
    from chalicelib.context import Context
    from chalicelib.metadata.grants import Place
    from chalicelib.metadata.resolvers import Added

_ACCESS_KEY, _SECRET_KEY = "FILEBASE_ACCESS_KEY", "FILEBASE_SECRET_KEY"
_LISTED = 1000


def register(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add these commands."""
    resolvers = group(commands, "resolver", "say on which networks images live too")
    parser = _owned(
        add(
            resolvers,
            "add",
            add_resolver,
            f"add a bucket of Filebase's; its keys are {_ACCESS_KEY} and {_SECRET_KEY} in the"
            " environment, or two lines of standard input",
        )
    )
    parser.add_argument("name", metavar="NAME", help="of an account it is called ACCOUNT/NAME")
    parser.add_argument("--bucket", required=True, help="a bucket that is on IPFS")
    parser.add_argument("--prefix", help="what its keys begin with")
    parser.add_argument("--endpoint", metavar="URL", help="of S3, where it is not Filebase's own")
    parser.add_argument(
        "--gateway", metavar="URL", help="at which everybody finds what is there; '' for none"
    )
    parser.add_argument("--rpc", metavar="URL", help="from which blocks are had; '' for none")
    _owned(add(resolvers, "list", list_resolvers, "list resolvers that can be chosen"))
    parser = add(resolvers, "keys", set_keys, "give a resolver other keys, given as to `add`")
    parser.add_argument("name", metavar="NAME")
    parser = add(
        resolvers,
        "remove",
        remove_resolver,
        "have nobody use a resolver, and take away what it has",
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "--forget",
        action="store_true",
        help="let what it has stay there, as where its keys are not valid any more",
    )
    parser = add(resolvers, "check", check_resolver, "try a resolver")
    parser.add_argument("name", metavar="NAME")

    parser = _placed(add(resolvers, "choose", choose, "choose where images go"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="a resolver, like ipfs")
    parser.add_argument("--none", action="store_true", help="have images stay here alone")
    parser.add_argument(
        "--insist",
        default="",
        metavar="SENTENCE",
        help="what to write to have private images go there too; another sentence is told which",
    )
    _placed(add(resolvers, "chosen", show_choice, "show where images go"))
    _placed(
        add(resolvers, "unchoose", unchoose, "choose nothing here, so that what is above it holds")
    )


def add_resolver(options: argparse.Namespace) -> int:
    """Add a resolver."""
    from chalicelib.identity.users import OPERATOR
    from chalicelib.resolvers import added

    parts = ("bucket", "prefix", "endpoint", "gateway", "rpc")
    address = {part: getattr(options, part) for part in parts}
    address = {part: value for part, value in address.items() if value is not None}
    keys = _keys()
    with opened_context() as context:
        owner = _owner(context, options)
        made = added.add(context, owner, options.name, address, *keys, by=OPERATOR)
    print_answer(options, _shown(made), f"{made.name} can be chosen")
    return 0


def list_resolvers(options: argparse.Namespace) -> int:
    """List resolvers."""
    from chalicelib.metadata import resolvers

    with opened_context() as context:
        owner = _owner(context, options)
        found = resolvers.listed(context.database, None, "", _LISTED)
        if owner is not None:
            found += resolvers.listed(context.database, owner, "", _LISTED)
        own = sorted(context.resolvers.own)
    answer = [{"name": name, "kind": "setting"} for name in own] + [_shown(each) for each in found]
    lines = [f"{name}  of the settings" for name in own]
    lines += [f"{each.name}  {each.kind}  {each.address['bucket']}{_state(each)}" for each in found]
    return _print(options, answer, "\n".join(lines))


def set_keys(options: argparse.Namespace) -> int:
    """Give a resolver other keys."""
    from chalicelib.identity.users import OPERATOR
    from chalicelib.resolvers import added

    keys = _keys()
    with opened_context() as context:
        found = _found(context, options.name)
        if not added.set_keys(context, found.account, found.name, *keys, by=OPERATOR):
            raise _absent(options.name)
    print_answer(
        options, {"name": found.name, "changed": True},
        f"{found.name} is used with these keys within seconds",
    )  # fmt: skip
    return 0


def remove_resolver(options: argparse.Namespace) -> int:
    """Remove a resolver."""
    from chalicelib.identity.users import OPERATOR
    from chalicelib.metadata import resolvers
    from chalicelib.resolvers import added

    with opened_context() as context:
        found = _found(context, options.name)
        added.remove(context, found.account, found.name, forget=options.forget, by=OPERATOR)
        left = resolvers.find(context.database, found.name)
        if left is not None and not left.copies:
            resolvers.end_removed(context.database)
    copies = left.copies if left else 0
    sentence = f"{found.name} is gone"
    if copies:
        sentence = f"{found.name} goes once what it has is taken away: {copies} copies"
    print_answer(options, {"name": found.name, "removed": True, "copies": copies}, sentence)
    return 0


def check_resolver(options: argparse.Namespace) -> int:
    """Try a resolver."""
    from chalicelib.resolvers import added

    with opened_context() as context:
        if options.name not in context.resolvers.own:
            _found(context, options.name)
        error = added.check(context, options.name)
    answer = {"name": options.name, "ready": not error, "error": error}
    print_answer(options, answer, f"{options.name}: {error or 'ready'}")
    return 1 if error else 0


def choose(options: argparse.Namespace) -> int:
    """Choose where images go."""
    from chalicelib.identity.users import OPERATOR
    from chalicelib.resolvers import choices

    if options.none == bool(options.names):
        raise CommandError("name resolvers, or say --none")
    with opened_context() as context:
        place = _place(context, options)
        made = choices.put(context, place, options.names, options.insist, by=OPERATOR)
    answer = {"resolvers": made.resolvers, "insisted": made.insisted}
    if not made.resolvers:
        sentence = "images stay here alone"
    elif made.insisted:
        sentence = f"all images go to {', '.join(made.resolvers)}, private ones too"
    else:
        sentence = (
            f"public images go to {', '.join(made.resolvers)}, and private ones whose layers are"
            " encrypted"
        )
    print_answer(options, answer, sentence)
    return 0


def show_choice(options: argparse.Namespace) -> int:
    """Show where images go."""
    from chalicelib.metadata import resolver_choices
    from chalicelib.metadata.resolver_choices import ALL

    names, insisted = list[str](), False
    chosen_for: str | None = None
    with opened_context() as context:
        place = _place(context, options)
        database = context.database
        if place.repository is not None:
            holding = resolver_choices.holding(database, place.repository)
            if holding is not None:
                names, insisted, _, chosen_for = holding
        else:
            for each in (place, ALL):
                choice = resolver_choices.find(database, each)
                if choice is not None and chosen_for is None:
                    names, insisted = choice.resolvers, choice.insisted
                    chosen_for = "all" if each == ALL else "account"
    answer = {"resolvers": names, "insisted": insisted, "chosen_for": chosen_for}
    if chosen_for is None:
        return _print(options, answer, "nothing was chosen: images stay here alone")
    where = {"repository": "this repository", "account": "the account", "all": "all"}[chosen_for]
    networks = ", ".join(names) or "none"
    sentence = f"{networks}, chosen for {where}" + (", private images too" if insisted else "")
    return _print(options, answer, sentence)


def unchoose(options: argparse.Namespace) -> int:
    """Choose nothing for a place itself."""
    from chalicelib.identity.users import OPERATOR
    from chalicelib.resolvers import choices

    with opened_context() as context:
        if not choices.remove(context, _place(context, options), by=OPERATOR):
            raise CommandError("nothing was chosen here")
    print_answer(options, {"chosen": False}, "nothing is chosen here any more")
    return 0


def _owned(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The same command, about resolvers of one account or for all."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--account", metavar="NAME", help="for the repositories of an account")
    where.add_argument("--all", action="store_true", help="for all repositories")
    return parser


def _placed(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The same command, about a repository, an account or all."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--repository", metavar="NAME", help="for one repository")
    where.add_argument("--account", metavar="NAME", help="for the repositories of an account")
    where.add_argument("--all", action="store_true", help="for all repositories")
    return parser


def _keys() -> tuple[str, str]:
    """The access key and the secret key. They are no arguments, which everybody on the machine
    would see."""
    found = os.environ.get(_ACCESS_KEY), os.environ.get(_SECRET_KEY)
    if found[0] and found[1]:
        return found[0], found[1]
    if sys.stdin.isatty():
        from getpass import getpass

        return getpass("Access key: "), getpass("Secret key: ")
    access_key, secret_key = sys.stdin.readline().strip(), sys.stdin.readline().strip()
    if not secret_key:
        raise CommandError(
            f"the keys are missing: set {_ACCESS_KEY} and {_SECRET_KEY}, or write both to standard"
            " input, a line each"
        )
    return access_key, secret_key


def _owner(context: "Context", options: argparse.Namespace) -> int | None:
    from chalicelib.metadata import accounts

    if options.all:
        return None
    account = accounts.by_name(context.database, options.account)
    if account is None or account.kind == "robot":
        raise CommandError(f"there is no user and no organisation {options.account}")
    return account.id


def _place(context: "Context", options: argparse.Namespace) -> "Place":
    from chalicelib.metadata import repositories
    from chalicelib.metadata.grants import Place

    if options.repository is None:
        return Place(namespace=_owner(context, options))
    repository = repositories.find(context.database, options.repository)
    if repository is None:
        raise CommandError(f"there is no repository {options.repository}")
    return Place(repository=repository.id)


def _found(context: "Context", name: str) -> "Added":
    from chalicelib.metadata import resolvers

    found = resolvers.find(context.database, name)
    if found is None:
        raise _absent(name)
    return found


def _absent(name: str) -> CommandError:
    return CommandError(f"there is no resolver {name} that was added")


def _state(resolver: "Added") -> str:
    if resolver.removed_at is None:
        return ""
    return f"  removed; {resolver.copies} copies are taken away"


def _shown(resolver: "Added") -> dict[str, Any]:
    found = resolver._asdict()
    del found["account"]
    return found


def _print(options: argparse.Namespace, answer: Any, sentence: str) -> int:
    if options.json or sentence:
        print(as_json(answer) if options.json else sentence)
    return 0
