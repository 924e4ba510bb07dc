"""A registry with accounts of every kind, and the ways in which they ask it for something."""

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chalicelib.context import Context
from chalicelib.hosts import build_context
from chalicelib.identity import Subject, access_tokens, organisations, passwords, scopes, users
from chalicelib.identity.access import Accounts
from chalicelib.metadata import accounts, grants
from chalicelib.metadata.grants import Place
from chalicelib.settings import Settings
from tests.client import Answer, Body, Client, CoreClient
from tests.servers import Postgres

PASSWORD = "a password: with ünusual characters"
HASH = passwords.hashed(PASSWORD)
EVERYTHING = "repository:*:*"


@dataclass
class Realm:
    """alice has the namespace alice, and the robot alice+ci. The organisation corp is carol's; dave
    is a member, erin too and in the team corp:devs. bob has nothing to do with any of them. root is
    an administrator, una has not verified her email."""

    context: Context
    ids: dict[str, int] = field(default_factory=dict)

    @property
    def access(self) -> Accounts:
        """The policy."""
        assert isinstance(self.context.access, Accounts)
        return self.context.access

    @property
    def client(self) -> CoreClient:
        """Nobody's client."""
        return CoreClient(self.context)

    def add_user(self, name: str, *, verified: bool = True, administrator: bool = False) -> None:
        """One more user, whose password is ``PASSWORD``."""
        database = self.context.database
        self.ids[name] = users.create(
            database,
            name,
            f"{name}@example.org",
            None,
            by="operator",
            email_verified=verified,
            administrator=administrator,
        )
        accounts.set_password(database, self.ids[name], HASH)

    def add_robot(self, owner: str, name: str) -> None:
        """One more robot."""
        database, owner_id = self.context.database, self.ids[owner]
        robot = accounts.add(database, "robot", f"{owner}+{name}", owner_id=owner_id)
        assert robot is not None
        self.ids[f"{owner}+{name}"] = robot

    def grant(self, to: str, role: str, *, repository: str = "", namespace: str = "") -> Place:
        """Give somebody a role."""
        place = self.place(repository) if repository else Place(namespace=self.ids[namespace])
        found = grants.grantee(self.context.database, to)
        assert found is not None
        grants.put(self.context.database, place, found, role)
        return place

    def place(self, repository: str) -> Place:
        """Where a repository's grants are."""
        rows = self.run("SELECT id FROM repositories WHERE name = :name", name=repository)
        return Place(repository=rows[0][0])

    def token(self, account: str, *texts: str, seconds: int | None = None) -> access_tokens.Created:
        """An access token."""
        return access_tokens.create(
            self.context.database,
            self.access.keys,
            self.ids[account],
            "",
            scopes.parse(texts or [EVERYTHING]),
            seconds=seconds,
        )

    def by(self, name: str, password: str = PASSWORD, client: Client | None = None) -> "Basic":
        """A client that sends a name and a password, or a robot's token."""
        if "+" in name and password == PASSWORD:
            password = self.token(name).token
        return Basic(client or self.client, name, password)

    def run(self, sql: str, **parameters: Any) -> list[list[Any]]:
        """The rows of a statement."""
        return self.context.database.run(sql, **parameters)

    def actions(self, account: str, repository: str) -> list[str]:
        """What an account may do by itself."""
        return self.access.actions(Subject(self.ids.get(account)), repository)

    @contextmanager
    def another_host(self, **changes: Any) -> Iterator["Realm"]:
        """The same registry as another process runs it."""
        context = build_context(self.context.settings)
        yield Realm(context, self.ids)
        context.database.close()


@contextmanager
def realm(postgres: Postgres, directory: Path, **settings: str) -> Iterator[Realm]:
    """Such a registry."""
    with postgres.migrated_database() as url:
        context = build_context(
            Settings.from_environment(
                {
                    "OPENREGISTRY_ACCESS": "accounts",
                    "OPENREGISTRY_DATABASE_URL": url,
                    "OPENREGISTRY_DATA_DIR": str(directory),
                    "OPENREGISTRY_SECRET_KEY": "a secret for the tests alone",
                    **{f"OPENREGISTRY_{name}": value for name, value in settings.items()},
                }
            )
        )
        found = Realm(context)
        for name in ("alice", "bob", "carol", "dave", "erin"):
            found.add_user(name)
        found.add_user("root", administrator=True)
        found.add_user("una", verified=False)
        found.add_robot("alice", "ci")
        database, ids = context.database, found.ids
        ids["corp"] = organisations.create(database, "corp", ids["carol"], by="operator")
        for name in ("dave", "erin"):
            organisations.add_member(database, ids["corp"], ids[name], "member", by="operator")
        team = organisations.create_team(database, ids["corp"], "devs", by="operator")
        organisations.add_to_team(database, ids["corp"], team.id, ids["erin"], by="operator")
        yield found
        database.close()


def basic(name: str, password: str) -> str:
    """The Authorization field of Basic authentication."""
    return "Basic " + b64encode(f"{name}:{password}".encode()).decode()


class Basic:
    """Sends a name and a password with each request."""

    def __init__(self, client: Client, name: str, password: str) -> None:
        self.client = client
        self.authorization = basic(name, password)

    def request(
        self, method: str, target: str, body: Body = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        fields = {"Authorization": self.authorization, **(headers or {})}
        return self.client.request(method, target, body, fields)

    def api(self, method: str, path: str, body: Any = None) -> Answer:
        """Call the API."""
        data = b"" if body is None else json.dumps(body).encode()
        fields = {} if body is None else {"Content-Type": "application/json"}
        return self.request(method, f"/api/v1{path}", data, fields)


class ByToken:
    """Does what clients of registries do: takes the challenge of a 401 to the token server, and
    comes back with the token. As nobody, or with an Authorization field for the token server."""

    def __init__(self, client: Client, authorization: str = "", *scopes: str) -> None:
        self.client = client
        self.authorization = authorization
        self.scopes = scopes
        """What it asks a token for beside what the challenge names."""

    def request(
        self, method: str, target: str, body: Body = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        answer = self.client.request(method, target, body, headers)
        if answer.status != 401:
            return answer
        granted = self.ask(challenged(answer).get("scope", ""))
        if granted.status != 200:
            return granted
        bearer = {"Authorization": f"Bearer {granted.json['token']}"}
        return self.client.request(method, target, body, {**(headers or {}), **bearer})

    def ask(self, *asked: str) -> Answer:
        """What the token server answers."""
        wanted = (*asked, *self.scopes)
        query = "&".join(["service=openregistry", *(f"scope={each}" for each in wanted)])
        fields = {"Authorization": self.authorization} if self.authorization else {}
        return self.client.request("GET", f"/token?{query}", headers=fields)


def challenged(answer: Answer) -> dict[str, str]:
    """What the only challenge of an answer says."""
    [challenge] = [value for name, value in answer.fields if name == "WWW-Authenticate"]
    assert challenge.startswith("Bearer ")
    return dict(re.findall(r'(\w+)="([^"]*)"', challenge))
