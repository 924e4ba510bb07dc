"""Organisations for tests: alice owns them, bob is a member, and carol has nothing to do with
them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from chalicelib.hosts import build_context
from chalicelib.identity import (
    Subject,
    access_tokens,
    invitations,
    organisations,
    robots,
    scopes,
    users,
)
from chalicelib.identity.access import Accounts
from chalicelib.metadata import audit
from tests.api.conftest import PASSWORD, World, basic
from tests.client import Answer, Body, CoreClient


@dataclass(frozen=True)
class Acme:
    """An organisation with a team `devs`, a robot `ci`, and an open invitation to erin's email."""

    world: World
    name: str
    id: int
    team: int
    robot: int
    invitation: int
    secret: str

    @property
    def path(self) -> str:
        """Where its operations are."""
        return f"/organisations/{self.name}"


def add_user(world: World, name: str, *, verified: bool = True, email: str = "") -> int:
    """One more user."""
    return users.create(
        world.context.database,
        name,
        email or f"{name}@example.org",
        PASSWORD,
        by="operator",
        email_verified=verified,
    )


def add_organisation(world: World, name: str) -> Acme:
    """An organisation."""
    database = world.context.database
    alice, bob = world.ids["alice"], world.ids["bob"]
    acme = organisations.create(database, name, alice, by="operator")
    organisations.add_member(database, acme, bob, "member", by="operator")
    team = organisations.create_team(database, acme, "devs", by="operator")
    robot = robots.create(database, acme, name, "ci", None, by="operator")
    invitation, message = invitations.invite(
        database,
        "https://registry.example.org",
        acme,
        f"erin+{name}@example.org",
        "member",
        invited_by=alice,
        by="operator",
    )
    return Acme(world, name, acme, team.id, robot, invitation.id, secret_in(message.text))


def secret_in(text: str) -> str:
    """The secret of the link in a mail."""
    return text.partition("#organisation=")[2].split()[0]


def access(world: World) -> Accounts:
    """The policy of a registry."""
    assert isinstance(world.context.access, Accounts)
    return world.context.access


def add_token(world: World, account: int, *texts: str) -> str:
    """An access token."""
    keys, may = access(world).keys, scopes.parse(texts)
    return access_tokens.create(world.context.database, keys, account, "", may).token


def call(world: World, token: str, method: str, path: str, body: Any = None) -> Answer:
    """Call the API with an access token."""
    return world.call(method, path, body, Authorization=f"Bearer {token}")


def actions(world: World, account: int, repository: str) -> list[str]:
    """What an account may do with a repository."""
    return access(world).actions(Subject(account), repository)


def events(world: World, account: int) -> list[tuple[str, str, dict[str, Any]]]:
    """What the audit log says about an account, the oldest first: event, subject and detail."""
    found = audit.page(world.context.database, 1000, account=account)
    return [(each.event, each.subject, each.detail) for each in reversed(found)]


def mails(world: World) -> list[EmailMessage]:
    """What was mailed, the oldest first."""
    world.context.afterwards.wait()
    folder = world.context.settings.data_dir / "mail"
    return [
        message_from_bytes(file.read_bytes(), policy=policy.default)
        for file in sorted(folder.glob("*.eml"))
    ]


class As:
    """A client that signs in with each request: by a user's password, or a token."""

    def __init__(self, client: CoreClient, name: str, token: str = PASSWORD) -> None:
        self._client = client
        self._field = basic(name, token)

    def request(
        self, method: str, target: str, body: Body = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        fields = {**(headers or {}), "Authorization": self._field}
        return self._client.request(method, target, body, fields)


@contextmanager
def another_host(world: World) -> Iterator[CoreClient]:
    """Another process of the same registry."""
    context = build_context(world.context.settings)
    yield CoreClient(context)
    context.database.close()
