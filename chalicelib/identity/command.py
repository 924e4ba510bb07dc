"""`openregistry user`, `org`, `robot`, `token`, `trust`, `repo` and `audit`: what an operator does
without a browser.

They work on the database, beside a registry that runs or without one.
"""

import argparse
import json
import sys
from datetime import datetime

from chalicelib.cli import CommandError, Commands, add, as_json, group, print_answer, whole
from chalicelib.hosts import opened_database
from chalicelib.identity.users import OPERATOR
from chalicelib.metadata.database import Database
from chalicelib.settings import Settings


def register(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add this room's commands."""
    users = group(commands, "user", "manage users")
    parser = add(users, "add", add_user, "make a user, whose email counts as verified")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--email", required=True)
    parser.add_argument(
        "--password-stdin",
        action="store_true",
        help="read the password from standard input, less one newline at the end",
    )
    parser.add_argument("--admin", action="store_true", help="an administrator of the registry")
    parser = add(users, "list", list_users, "list users, organisations and robots")
    parser = add(
        users, "password", set_password, "give a user another password, from standard input"
    )
    parser.add_argument("name", metavar="NAME")
    parser = add(users, "suspend", suspend_user, "let an account do nothing any more")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--undo", action="store_true", help="let it again")
    parser = add(users, "invite", invite_user, "send somebody an invitation to make an account")
    parser.add_argument("email", metavar="EMAIL")
    parser = add(users, "admin", set_administrator, "let a user administer the registry")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--undo", action="store_true", help="no longer")
    parser = add(
        users, "delete", delete_user, "delete an account for ever; nobody gets its name again"
    )
    parser.add_argument("name", metavar="NAME")

    organisations = group(commands, "org", "manage organisations")
    parser = add(organisations, "add", add_organisation, "make an organisation")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--owner", metavar="USER", help="a user who owns it")

    parser = add(organisations, "member", set_member, "make a user a member, or take one out")
    parser.add_argument("organisation", metavar="ORGANISATION")
    parser.add_argument("user", metavar="USER")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--role", choices=("member", "owner"), default="member")
    what.add_argument("--remove", action="store_true", help="take the user out")

    robots = group(commands, "robot", "manage robots: accounts of machines")
    parser = add(robots, "add", add_robot, "make a robot of a user or an organisation")
    parser.add_argument("name", metavar="OWNER+NAME")
    parser.add_argument(
        "--role",
        choices=("read", "write", "maintain", "admin"),
        help="what it may do in all of its owner's namespace; without it nothing yet",
    )

    tokens = group(commands, "token", "manage access tokens")
    parser = add(tokens, "create", create_token, "make an access token, and print it this once")
    parser.add_argument("--user", required=True, metavar="NAME", help="a user or a robot")
    parser.add_argument(
        "--scope",
        required=True,
        action="append",
        help="repository:GLOB:ACTIONS, like repository:alice/*:pull,push; may be repeated",
    )
    parser.add_argument("--name", default="", help="what it is for")
    parser.add_argument("--expires", metavar="TIME", help="like 90d; without it never")
    parser = add(tokens, "list", list_tokens, "list a user's access tokens")
    parser.add_argument("--user", required=True, metavar="NAME")
    parser = add(tokens, "revoke", revoke_token, "revoke an access token, at once")
    parser.add_argument("id", metavar="ID")

    rules = group(commands, "trust", "manage trust rules: whose workloads need no secret")
    parser = add(rules, "add", add_trust_rule, "trust workloads of others")
    parser.add_argument("account", metavar="ACCOUNT", help="for which they push and pull")
    parser.add_argument(
        "--issuer", required=True, metavar="URL|DOMAIN", help="who issues their tokens"
    )
    parser.add_argument(
        "--claim",
        required=True,
        action="append",
        metavar="NAME=GLOB",
        help="what a token claims, like repository=acme/*; may be repeated",
    )
    parser.add_argument(
        "--scope",
        required=True,
        action="append",
        help="repository:GLOB:ACTIONS, like repository:acme/*:pull,push; may be repeated",
    )
    parser.add_argument("--audience", help="whom a token is made out to; without it PUBLIC_URL")
    parser = add(rules, "list", list_trust_rules, "list an account's trust rules")
    parser.add_argument("account", metavar="ACCOUNT")
    parser = add(rules, "remove", remove_trust_rule, "trust workloads no longer, at once")
    parser.add_argument("account", metavar="ACCOUNT")
    parser.add_argument("id", metavar="ID")

    repositories = group(commands, "repo", "manage repositories")
    add(repositories, "list", list_repositories, "list all repositories")
    parser = add(repositories, "pulls", show_pulls, "show how often a repository was pulled")
    parser.add_argument("name", metavar="NAME")
    parser = add(repositories, "rename", rename_repository, "give a repository another name")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("to", metavar="NEW-NAME", help="the former name leads there from now on")
    parser = add(repositories, "delete", delete_repository, "delete a repository and all in it")
    parser.add_argument("name", metavar="NAME")
    parser = add(repositories, "visibility", set_visibility, "say who may pull from a repository")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("visibility", choices=("public", "private"))

    parser = add(commands, "audit", show_audit, "show the audit log, the newest events first")
    parser.add_argument("--account", metavar="NAME", help="what concerns this account")
    parser.add_argument("--limit", type=whole(1, 1_000_000), default=100, help="how many (100)")


def add_user(options: argparse.Namespace) -> int:
    """Make a user."""
    from chalicelib.identity import users

    password = _password() if options.password_stdin else None
    with opened_database() as database:
        account = users.create(
            database,
            options.name,
            options.email,
            password,
            by=OPERATOR,
            email_verified=True,
            administrator=options.admin,
        )
    told = f"{options.name} is there"
    if password is None:
        told += f", without a password: openregistry user password {options.name} takes one"
    print_answer(options, {"id": account, "name": options.name}, told)
    return 0


def list_users(options: argparse.Namespace) -> int:
    """List accounts."""
    from chalicelib.metadata import accounts

    with opened_database() as database:
        found = accounts.listed(database)
    if options.json:
        keys = ("id", "kind", "name", "email", "administrator", "suspended")
        print(json.dumps([{key: getattr(each, key) for key in keys} for each in found]))
    else:
        for each in found:
            marks = [each.kind, *(["administrator"] if each.administrator else [])]
            marks += ["suspended"] if each.suspended else []
            print(f"{each.name:32} {each.email or '-':32} {', '.join(marks)}")
    return 0


def set_password(options: argparse.Namespace) -> int:
    """Give a user another password."""
    from chalicelib.identity import users

    password = _password()
    with opened_database() as database:
        account = _account(database, options.name)
        users.change_password(database, account, password, by=OPERATOR)
    print_answer(
        options, {"id": account, "name": options.name}, f"{options.name} has another password"
    )
    return 0


def suspend_user(options: argparse.Namespace) -> int:
    """Suspend an account, or let it again."""
    from chalicelib.identity import users

    with opened_database() as database:
        account = _account(database, options.name)
        users.suspend(database, account, suspended=not options.undo, by=OPERATOR)
    done = "may act again" if options.undo else "is suspended"
    print_answer(options, {"id": account, "suspended": not options.undo}, f"{options.name} {done}")
    return 0


def invite_user(options: argparse.Namespace) -> int:
    """Invite somebody to the registry."""
    from chalicelib.identity import emails
    from chalicelib.mail import MailError, open_mailer

    settings = Settings.from_environment()
    with opened_database(settings) as database:
        if settings.sign_up == "closed":
            raise CommandError("OPENREGISTRY_SIGN_UP is closed: openregistry user add")
        try:
            mailer = open_mailer(settings)
            invitation = emails.send_invitation(
                database, settings, mailer, options.email, invited_by=None, by=OPERATOR
            )
        except MailError as error:
            raise CommandError(f"the mail could not be sent: {error}") from error
    print_answer(
        options, {"id": invitation.id, "email": invitation.email}, f"{options.email} is invited"
    )
    return 0


def set_administrator(options: argparse.Namespace) -> int:
    """Let a user administer the registry, or no longer."""
    from chalicelib.identity import users

    with opened_database() as database:
        account = _account(database, options.name)
        users.set_administrator(database, account, administrator=not options.undo, by=OPERATOR)
    done = "is no administrator any more" if options.undo else "is an administrator"
    print_answer(
        options, {"id": account, "administrator": not options.undo}, f"{options.name} {done}"
    )
    return 0


def delete_user(options: argparse.Namespace) -> int:
    """Delete an account."""
    from chalicelib.identity import users

    with opened_database() as database:
        account = _account(database, options.name)
        users.delete(database, account, by=OPERATOR)
    print_answer(options, {"id": account}, f"{options.name} is deleted")
    return 0


def add_organisation(options: argparse.Namespace) -> int:
    """Make an organisation."""
    from chalicelib.identity import organisations

    with opened_database() as database:
        owner = _account(database, options.owner, "user") if options.owner else None
        account = organisations.create(database, options.name, owner, by=OPERATOR)
    print_answer(options, {"id": account, "name": options.name}, f"{options.name} is there")
    return 0


def set_member(options: argparse.Namespace) -> int:
    """Make a user a member or an owner of an organisation, or take one out."""
    from chalicelib.identity import organisations

    with opened_database() as database:
        organisation = _account(database, options.organisation, "organisation")
        user = _account(database, options.user, "user")
        if options.remove:
            if not organisations.remove_member(database, organisation, user, by=OPERATOR):
                raise CommandError(f"{options.user} is no member of {options.organisation}")
        elif not organisations.change_role(database, organisation, user, options.role, by=OPERATOR):
            organisations.add_member(database, organisation, user, options.role, by=OPERATOR)
    role = None if options.remove else options.role
    is_what = "no longer a member" if options.remove else f"{role} now"
    answer = {"organisation": organisation, "user": user, "role": role}
    print_answer(options, answer, f"{options.user} is {is_what}")
    return 0


def add_robot(options: argparse.Namespace) -> int:
    """Make a robot."""
    from chalicelib.identity import robots

    owner, plus, name = options.name.partition("+")
    if not plus:
        raise CommandError(f"{options.name!r} is no robot's name: write OWNER+NAME")
    with opened_database() as database:
        owner_id = _account(database, owner)
        robot = robots.create(database, owner_id, owner, name, options.role, by=OPERATOR)
    print_answer(options, {"id": robot, "name": options.name}, f"{options.name} is there")
    return 0


def create_token(options: argparse.Namespace) -> int:
    """Make an access token."""
    from chalicelib.identity import access_tokens, scopes
    from chalicelib.identity.keys import Keys
    from chalicelib.settings import parse_seconds, secret_key

    try:
        wanted = scopes.parse(options.scope)
        seconds = parse_seconds(options.expires) if options.expires else None
    except ValueError as error:
        raise CommandError(str(error)) from None
    if not wanted:
        raise CommandError("a token without a scope is good for nothing")
    settings = Settings.from_environment()
    with opened_database(settings) as database:
        keys = Keys(secret_key(settings), settings.old_secret_key)
        account = _account(database, options.user, "user", "robot")
        created = access_tokens.make(
            database, keys, account, options.name, wanted, by=OPERATOR, seconds=seconds
        )
    print_answer(options, created._asdict(), created.token)
    return 0


def list_tokens(options: argparse.Namespace) -> int:
    """List access tokens."""
    from chalicelib.metadata import access_tokens

    with opened_database() as database:
        found = access_tokens.listed(database, _account(database, options.user), "", 10_000)
    if options.json:
        print(as_json([row._asdict() for row in found]))
    else:
        for row in found:
            state = "revoked" if row.revoked_at else f"expires {row.expires_at or 'never'}"
            print(f"{row.id}  {row.name or '-':20} {' '.join(row.scopes)}  {state}")
    return 0


def revoke_token(options: argparse.Namespace) -> int:
    """Revoke an access token."""
    import uuid

    from chalicelib.identity import access_tokens

    try:
        token_id = str(uuid.UUID(options.id))
    except ValueError:
        raise CommandError(f"{options.id!r} is not the id of a token") from None
    with opened_database() as database:
        if not access_tokens.revoke(database, token_id, by=OPERATOR):
            raise CommandError(f"there is no token {token_id} that still holds")
    print_answer(options, {"id": token_id, "revoked": True}, f"{token_id} is revoked")
    return 0


def add_trust_rule(options: argparse.Namespace) -> int:
    """Make a trust rule."""
    from chalicelib.identity import trust
    from chalicelib.outbound import Outbound

    claims = dict(each.partition("=")[::2] for each in options.claim)
    settings = Settings.from_environment()
    with opened_database(settings) as database:
        audience = options.audience or settings.public_url
        if not audience:
            raise CommandError("say --audience, or set OPENREGISTRY_PUBLIC_URL")
        rule = trust.create(
            database,
            Outbound(settings.private_issuers),
            _account(database, options.account),
            options.issuer,
            audience,
            claims,
            options.scope,
            by=OPERATOR,
        )
    answer = {"id": rule.id, "audience": audience}
    print_answer(options, answer, f"{rule.id} trusts tokens for the audience {audience}")
    return 0


def list_trust_rules(options: argparse.Namespace) -> int:
    """List trust rules."""
    from chalicelib.metadata import trust

    with opened_database() as database:
        found = trust.listed(database, _account(database, options.account), "", 10_000)
    if options.json:
        print(as_json([rule._asdict() for rule in found]))
    else:
        for rule in found:
            claims = " ".join(f"{name}={glob}" for name, glob in rule.claims.items())
            print(f"{rule.id}  {rule.issuer}  {claims}  {' '.join(rule.scopes)}")
    return 0


def remove_trust_rule(options: argparse.Namespace) -> int:
    """Remove a trust rule."""
    from chalicelib.identity import trust
    from chalicelib.metadata import trust as rows

    with opened_database() as database:
        rule = rows.find(database, _account(database, options.account), options.id)
        if rule is None or not trust.remove(database, rule, by=OPERATOR):
            raise CommandError(f"{options.account} has no trust rule {options.id!r}")
    print_answer(options, {"id": rule.id, "removed": True}, f"{rule.id} is removed")
    return 0


def list_repositories(options: argparse.Namespace) -> int:
    """List repositories."""
    from chalicelib.metadata import repositories

    with opened_database() as database:
        found = repositories.everything(database)
    shown = [(name, "public" if public else "private") for name, public in found]
    if options.json:
        print(json.dumps([{"name": name, "visibility": each} for name, each in shown]))
    else:
        for name, visibility in shown:
            print(f"{visibility:8} {name}")
    return 0


def show_pulls(options: argparse.Namespace) -> int:
    """Show pulls of a repository and of its tags."""
    from chalicelib import digests
    from chalicelib.metadata import pulls

    tags: list[pulls.Counted] = []
    with opened_database() as database:
        total = pulls.of_repository(database, options.name)
        if total is None:
            raise CommandError(f"there is no repository {options.name}")
        while more := pulls.of_tags(database, options.name, tags[-1].tag if tags else "", 1000):
            tags += more
    if options.json:
        shown = [each._asdict() | {"digest": digests.unpack(each.digest)} for each in tags]
        answer = {"name": options.name, **total._asdict(), "tags": shown}
        print(as_json(answer))
        return 0
    print(f"{total.pulls:10}  {_moment(total.pulled_at)}  {options.name}")
    for each in tags:
        print(f"{each.pulls:10}  {_moment(each.pulled_at)}  {options.name}:{each.tag}")
    return 0


def _moment(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}" if at else f"{'never':19}"


def rename_repository(options: argparse.Namespace) -> int:
    """Give a repository another name."""
    from chalicelib.identity import repositories

    with opened_database() as database:
        repositories.rename(database, options.name, options.to, by=OPERATOR)
    answer = {"name": options.to, "former_name": options.name}
    print_answer(options, answer, f"{options.name} is called {options.to} now")
    return 0


def delete_repository(options: argparse.Namespace) -> int:
    """Delete a repository."""
    from chalicelib.identity import repositories

    with opened_database() as database:
        repositories.delete(database, options.name, by=OPERATOR)
    print_answer(options, {"name": options.name, "deleted": True}, f"{options.name} is deleted")
    return 0


def set_visibility(options: argparse.Namespace) -> int:
    """Make a repository public or private."""
    from chalicelib.identity import repositories

    public = options.visibility == "public"
    with opened_database() as database:
        repositories.change(database, options.name, public=public, description=None, by=OPERATOR)
    answer = {"name": options.name, "visibility": options.visibility}
    print_answer(options, answer, f"{options.name} is {options.visibility}")
    return 0


def show_audit(options: argparse.Namespace) -> int:
    """Show the audit log."""
    from chalicelib.metadata import audit

    with opened_database() as database:
        account = _account(database, options.account) if options.account else None
        found = audit.page(database, options.limit, account=account)
    if options.json:
        print(as_json([entry._asdict() for entry in found]))
    else:
        for entry in found:
            detail = " ".join(f"{key}={json.dumps(value)}" for key, value in entry.detail.items())
            print(
                f"{entry.at:%Y-%m-%d %H:%M:%S}  {entry.event:24}"
                f" {entry.by or entry.subject or '-'}  {entry.name or ''}  {detail}"
            )
    return 0


def _account(database: Database, name: str, *kinds: str) -> int:
    """The id of an account, of one of these kinds where some are given."""
    from chalicelib.metadata import accounts

    account = accounts.by_name(database, name)
    if account is None or (kinds and account.kind not in kinds):
        raise CommandError(f"there is no {' or '.join(kinds) or 'account'} {name!r}")
    return account.id


def _password() -> str:
    """The password on standard input: bytes of UTF-8, less one newline."""
    try:
        text = sys.stdin.buffer.read(1 << 16).decode()
    except UnicodeDecodeError:
        raise CommandError("the password on standard input is not UTF-8") from None
    return (
        text.removesuffix("\n").removesuffix("\r")
        if text.endswith("\r\n")
        else text.removesuffix("\n")
    )
