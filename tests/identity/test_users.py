"""Users in the database, and what the command line does with them."""

import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from chalicelib.identity import users
from chalicelib.identity.users import Refused
from chalicelib.metadata import accounts
from chalicelib.metadata.database import Database
from tests.api.conftest import basic
from tests.client import HTTPClient
from tests.mail.mailers import read
from tests.servers import OPENREGISTRY, Postgres, Registry

PASSWORD = "correct:horse ünd battery"


@pytest.fixture
def database(postgres: Postgres) -> Iterator[Database]:
    with postgres.migrated_database() as url, closing(Database(url)) as database:
        yield database


def create(database: Database, name: str, email: str, *, verified: bool = True) -> int:
    return users.create(database, name, email, PASSWORD, by="", email_verified=verified)


@pytest.mark.parametrize(
    "name", ["a", "a.b", "a_b", "a__b", "a-b", "a---b", "0", "x" * 64, "2fast"]
)
def test_names(name: str) -> None:
    assert users.checked_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "A", "é", "a/b", "a+b", "-a", "a-", ".a", "a..b", "a___b", "a b", "a\n", "x" * 65, "а"],
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(Refused) as refused:
        users.checked_name(name)
    assert refused.value.field == "name"


@pytest.mark.parametrize(
    "email",
    [
        "", "a", "@", "a@", "@b", "a b@c", "a@b c", "a@b\n", "a@b,c@d", "a@b\r\nBcc: c@d", "<a@b>",
        "a@-b", "a@b..c", '"a"@b', "a@[127.0.0.1]", "a@b\u2028", "x" * 65 + "@example.org",
        "a@" + "b" * 64, "a@" + ".".join(["b" * 60] * 5),
    ],
)  # fmt: skip
def test_emails_that_are_none(email: str) -> None:
    with pytest.raises(Refused) as refused:
        users.checked_email(email)
    assert refused.value.field == "email"


def test_an_email_is_whose_it_is_verified_to_be(database: Database) -> None:
    claims = [create(database, f"u{n}", "x@example.org", verified=False) for n in range(2)]
    assert accounts.by_email(database, "X@example.org").id == claims[-1]  # type: ignore[union-attr]
    assert accounts.secret(database, "x@example.org") is None
    owner = create(database, "owner", "X@Example.org")
    with pytest.raises(Refused, match="belongs to an account already"):
        create(database, "another", "x@example.org")
    create(database, "late", "x@example.org", verified=False)
    assert accounts.by_email(database, "x@example.org").id == owner  # type: ignore[union-attr]
    assert accounts.secret(database, "x@example.org").account_id == owner  # type: ignore[union-attr]


def test_a_name_is_had_once_by_many_at_once(database: Database) -> None:
    def attempt(number: int) -> str:
        try:
            create(database, "carol", f"{number}@example.org")
        except Refused as error:
            return str(error)
        return "made"

    with ThreadPoolExecutor(4) as pool:
        made = sorted(pool.map(attempt, range(4)))
    assert made == ["This name is taken."] * 3 + ["made"]


def test_names_of_the_deleted_are_not_had_again(database: Database) -> None:
    account = create(database, "carol", "carol@example.org")
    robot = accounts.add(database, "robot", "carol+ci", owner_id=account)
    users.delete(database, account, by="")
    assert robot is not None
    for number in (account, robot):
        assert accounts.by_id(database, number) is None
    with pytest.raises(Refused, match="taken"):
        create(database, "carol", "new@example.org")
    assert create(database, "carol2", "carol@example.org")
    with pytest.raises(Refused, match="no such account"):
        users.delete(database, account, by="")


def test_two_administrators_do_not_delete_themselves_at_once(database: Database) -> None:
    made = [
        users.create(
            database, f"a{n}", f"{n}@example.org", PASSWORD, by="", email_verified=True,
            administrator=True,
        )
        for n in range(2)
    ]  # fmt: skip

    def attempt(account: int) -> bool:
        try:
            users.delete(database, account, by="")
        except Refused:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(attempt, made)) == [False, True]
    assert accounts.has_administrator(database)


def test_the_first_administrator_of_many_hosts(database: Database) -> None:
    def attempt(number: int) -> int | None:
        return users.create_first_administrator(
            database, "admin", "admin@example.org", PASSWORD, secret=None
        )

    with ThreadPoolExecutor(4) as pool:
        made = [each for each in pool.map(attempt, range(4)) if each is not None]
    assert len(made) == 1
    assert accounts.by_name(database, "admin").administrator  # type: ignore[union-attr]


# The registry itself.


def test_serve_prints_a_link_until_there_is_an_administrator(
    serve: Callable[..., Registry],
) -> None:
    server = serve(OPENREGISTRY_ACCESS="accounts")

    def secrets() -> list[str]:
        return [
            line.strip().rpartition("#first=")[2]
            for line in server.output().splitlines()
            if "#first=" in line
        ]

    server.restart()
    first, second = secrets()
    port = server.host.rpartition(":")[2]
    assert f"    http://localhost:{port}/account#first={second}\n" in server.output()
    assert f"    docker login -u NAME localhost:{port}\n" in server.output()
    assert f"    docker push localhost:{port}/NAME/hello\n" in server.output()
    client = HTTPClient(server.host)
    body = {"secret": first, "name": "ada", "email": "ada@example.org", "password": PASSWORD}
    headers = {"Content-Type": "application/json"}

    def post(secret: str) -> int:
        data = json.dumps({**body, "secret": secret}).encode()
        return client.request("POST", "/api/v1/first-administrator", data, headers).status

    assert [post(first), post(second)] == [201, 409]
    credentials = {"Authorization": basic("ada", PASSWORD)}
    assert client.request("GET", "/api/v1/admin/accounts", b"", credentials).status == 200
    assert client.request("GET", "/account").body.startswith(b"<!doctype html>")
    server.restart()
    assert len(secrets()) == 2


def test_serve_makes_the_administrator_that_the_settings_say(
    serve: Callable[..., Registry],
) -> None:
    server = serve(
        OPENREGISTRY_ACCESS="accounts",
        OPENREGISTRY_ADMIN_NAME="ada",
        OPENREGISTRY_ADMIN_EMAIL="ada@example.org",
        OPENREGISTRY_ADMIN_PASSWORD=PASSWORD,
    )
    server.restart()
    port = server.host.rpartition(":")[2]
    output = server.output()
    assert f"    docker push localhost:{port}/ada/hello\n" in output
    assert "#first=" not in output
    assert PASSWORD not in output
    credentials = {"Authorization": basic("ada", PASSWORD)}
    answer = HTTPClient(server.host).request("GET", "/api/v1/session", b"", credentials)
    assert (answer.json["administrator"], answer.json["email_verified"]) == (True, True)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"ADMIN_PASSWORD": PASSWORD}, "ADMIN_EMAIL"),
        ({"ADMIN_PASSWORD": "short", "ADMIN_EMAIL": "a@example.org"}, "ADMIN_PASSWORD"),
        (
            {"ADMIN_PASSWORD": PASSWORD, "ADMIN_EMAIL": "a@example.org", "ADMIN_NAME": "A"},
            "ADMIN_NAME",
        ),
    ],
)
def test_an_administrator_that_cannot_be_made(
    serve: Callable[..., Registry], settings: dict[str, str], name: str
) -> None:
    with pytest.raises(RuntimeError, match=f"openregistry: OPENREGISTRY_{name}: cannot be used: "):
        serve(
            OPENREGISTRY_ACCESS="accounts",
            **{f"OPENREGISTRY_{key}": value for key, value in settings.items()},
        )


def test_an_invitation_from_the_command_line(serve: Callable[..., Registry]) -> None:
    server = serve(OPENREGISTRY_ACCESS="accounts")

    def run(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [OPENREGISTRY, "user", "invite", *arguments],
            env={**server.settings, **{f"OPENREGISTRY_{k}": v for k, v in settings.items()}},
            capture_output=True,
            text=True,
            timeout=60,
        )

    done = run("carol@example.org", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["email"] == "carol@example.org"
    [file] = (server.data_dir / "mail").glob("*.eml")
    mail = read(file.read_bytes())
    assert mail.to == "carol@example.org"
    port = server.host.rpartition(":")[2]
    assert f"http://localhost:{port}/account#invitation=" in mail.text
    assert mail.text.split("#invitation=")[1].split()[0] not in done.stdout
    assert "closed" in run("x@example.org", SIGN_UP="closed").stderr
    assert "no address" in run("x").stderr


def test_administrators_are_made_and_unmade(database: Database) -> None:
    ada = create(database, "ada", "ada@example.org")
    ben = create(database, "ben", "ben@example.org")
    users.set_administrator(database, ada, administrator=True, by="operator")
    with pytest.raises(users.Refused, match="only administrator"):
        users.set_administrator(database, ada, administrator=False, by="operator")
    users.set_administrator(database, ben, administrator=True, by="operator")
    users.set_administrator(database, ada, administrator=False, by="operator")
    found = [accounts.by_id(database, each) for each in (ada, ben)]
    assert [each.administrator for each in found if each] == [False, True]
