"""The command line of accounts, as an operator types it: beside a registry and without one."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from chalicelib.context import Context
from chalicelib.hosts import build_context
from chalicelib.metadata.migrate import migrate
from chalicelib.settings import Settings
from tests.client import Client, CoreClient, HTTPClient, push_image
from tests.identity.realm import Basic
from tests.images import make_image
from tests.servers import OPENREGISTRY, Postgres, Registry, free_port, stopping

PASSWORD = "word: pass, für 分析"
EVERYTHING = ("--scope", "repository:*:*")


class Desk(NamedTuple):
    """Where an operator sits: the settings."""

    settings: dict[str, str]

    def run(self, *words: str | bytes, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        """Run a command."""
        others = {name: value for name, value in os.environ.items() if "OPENREGISTRY" not in name}
        return subprocess.run(
            [OPENREGISTRY, *words],
            env={**others, **self.settings},
            input=stdin,
            capture_output=True,
            timeout=60,
        )

    def say(self, *words: str | bytes, stdin: bytes = b"") -> str:
        """What a command says that works."""
        done = self.run(*words, stdin=stdin)
        assert (done.returncode, done.stderr) == (0, b""), done
        return done.stdout.decode()

    def json(self, *words: str | bytes, stdin: bytes = b"") -> Any:
        """What a command says as JSON."""
        return json.loads(self.say(*words, "--json", stdin=stdin))

    def refused(self, *words: str | bytes, stdin: bytes = b"", status: int = 1) -> str:
        """The one sentence of a command that does not work."""
        done = self.run(*words, stdin=stdin)
        assert (done.returncode, done.stdout) == (status, b""), done
        [line] = done.stderr.decode().splitlines()
        assert line.startswith("openregistry: ")
        return line.removeprefix("openregistry: ")

    def add_user(self, name: str, *options: str, password: str = PASSWORD) -> Any:
        """Make a user."""
        email = ("--email", f"{name}@example.org", "--password-stdin")
        return self.json("user", "add", name, *email, *options, stdin=password.encode())


@pytest.fixture(scope="module")
def desk(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    url = postgres.new_database()
    migrate(url)
    found = Desk(
        {
            "OPENREGISTRY_ACCESS": "accounts",
            "OPENREGISTRY_DATABASE_URL": url,
            "OPENREGISTRY_DATA_DIR": str(tmp_path_factory.mktemp("command")),
            "OPENREGISTRY_SECRET_KEY": "a secret for the tests alone",
        }
    )
    found.add_user("root", "--admin")
    return found


@pytest.fixture(scope="module")
def context(desk: Desk) -> Iterator[Context]:
    """The registry that is administered, as it runs beside."""
    context = build_context(Settings.from_environment(desk.settings))
    yield context
    context.database.close()


def pings(client: Client | Context, name: str, password: str) -> bool:
    """Whether somebody can log in."""
    client = CoreClient(client) if isinstance(client, Context) else client
    return Basic(client, name, password).request("GET", "/v2/").status == 200


def test_users(desk: Desk, context: Context) -> None:
    made = desk.add_user("uma", "--admin")
    assert made == {"id": made["id"], "name": "uma"}
    assert pings(context, "uma", PASSWORD)
    [found] = [each for each in desk.json("user", "list") if each["name"] == "uma"]
    assert found == {
        "id": made["id"], "kind": "user", "name": "uma", "email": "uma@example.org",
        "administrator": True, "suspended": False,
    }  # fmt: skip
    assert "uma" in desk.say("user", "list")

    other = desk.json("user", "password", "uma", stdin=b"another password\n")
    assert other["name"] == "uma"
    assert not pings(context, "uma", PASSWORD)
    assert pings(context, "uma", "another password")

    assert desk.json("user", "suspend", "uma") == {"id": made["id"], "suspended": True}
    assert not pings(context, "uma", "another password")
    assert "suspended" in desk.say("user", "list")
    assert desk.json("user", "suspend", "uma", "--undo")["suspended"] is False
    assert pings(context, "uma", "another password")

    assert desk.json("user", "delete", "uma") == {"id": made["id"]}
    assert not pings(context, "uma", "another password")
    assert "taken" in desk.refused("user", "add", "uma", "--email", "u@example.org")


def test_whoever_makes_a_user_without_a_password_is_told_how_to_give_one(
    desk: Desk, context: Context
) -> None:
    told = desk.say("user", "add", "wim", "--email", "wim@example.org")
    assert "openregistry user password wim" in told
    desk.say("user", "password", "wim", stdin=PASSWORD.encode())
    assert pings(context, "wim", PASSWORD)


@pytest.mark.parametrize(
    ("typed", "password"),
    [
        (b"plain password", "plain password"),
        (b"plain password\n", "plain password"),
        (b"plain password\r\n", "plain password"),
        (b"plain password\n\n", "plain password\n"),
        (b"  with spaces ", "  with spaces "),
        ("a:b:c für 分析\n".encode(), "a:b:c für 分析"),
    ],
)
def test_a_password_is_what_was_typed(
    desk: Desk, context: Context, typed: bytes, password: str
) -> None:
    """Less one newline."""
    if "pat" not in {each["name"] for each in desk.json("user", "list")}:
        desk.add_user("pat")
    desk.say("user", "password", "pat", stdin=typed)
    assert pings(context, "pat", password)
    if password.strip() != password:
        assert not pings(context, "pat", password.strip())


def test_tokens(desk: Desk, context: Context) -> None:
    desk.add_user("tom")
    words = ("token", "create", "--user", "tom", "--name", "ci", "--expires", "90d")
    scopes = ("--scope", "repository:tom/*:pull,push", "--scope", "repository:x:* account:tom:read")
    made = desk.json(*words, *scopes)
    assert set(made) == {"id", "token"}
    assert pings(context, "tom", made["token"])
    plain = desk.say(*words, *scopes).removesuffix("\n")
    assert pings(context, "tom", plain)
    listed = desk.json("token", "list", "--user", "tom")
    [found] = [each for each in listed if each["id"] == made["id"]]
    assert (found["name"], found["revoked_at"]) == ("ci", None)
    assert found["scopes"] == [
        "repository:tom/*:pull,push", "repository:x:pull,push,delete,admin", "account:tom:read",
    ]  # fmt: skip
    assert not {"hash", "token"} & set(found)
    assert made["id"] in desk.say("token", "list", "--user", "tom")
    assert desk.json("token", "revoke", made["id"]) == {"id": made["id"], "revoked": True}
    assert not pings(context, "tom", made["token"])
    assert "revoked" in desk.say("token", "list", "--user", "tom")
    assert "still holds" in desk.refused("token", "revoke", made["id"])


def test_organisations_and_robots(desk: Desk, context: Context) -> None:
    desk.add_user("olga")
    desk.add_user("otto")
    org = desk.json("org", "add", "oscorp", "--owner", "olga")
    assert org["name"] == "oscorp"
    olga, otto = (Basic(CoreClient(context), name, PASSWORD) for name in ("olga", "otto"))
    push_image(olga, "oscorp/app", make_image(), "1")
    target = "/v2/oscorp/app/manifests/1"
    assert otto.request("GET", target).status == 404
    assert desk.json("org", "member", "oscorp", "otto")["role"] == "member"
    assert otto.request("GET", target).status == 200
    desk.json("robot", "add", "oscorp+ci", "--role", "write")
    token = desk.json("token", "create", "--user", "oscorp+ci", *EVERYTHING)["token"]
    robot = Basic(CoreClient(context), "oscorp+ci", token)
    assert robot.request("POST", "/v2/oscorp/app/blobs/uploads/").status == 202
    assert robot.request("DELETE", target).status == 403
    assert "no user or robot" in desk.refused("token", "create", "--user", "oscorp", *EVERYTHING)


def test_repositories(desk: Desk, context: Context) -> None:
    desk.add_user("rob")
    rob = Basic(CoreClient(context), "rob", PASSWORD)
    push_image(rob, "rob/app", make_image(), "1")
    shown = {"name": "rob/app", "visibility": "private"}
    assert shown in desk.json("repo", "list")
    assert "private  rob/app\n" in desk.say("repo", "list")
    shown["visibility"] = "public"
    assert desk.json("repo", "visibility", "rob/app", "public") == shown
    assert shown in desk.json("repo", "list")
    renamed = desk.json("repo", "rename", "rob/app", "rob/new")
    assert renamed == {"name": "rob/new", "former_name": "rob/app"}
    assert rob.request("GET", "/v2/rob/new/manifests/1").status == 200
    assert rob.request("POST", "/v2/rob/app/blobs/uploads/").status == 403
    context.pulls.flush()
    pulled = desk.json("repo", "pulls", "rob/new")
    assert (pulled["name"], pulled["pulls"]) == ("rob/new", 1)
    assert [(each["tag"], each["pulls"]) for each in pulled["tags"]] == [("1", 1)]
    assert pulled["pulled_at"] == pulled["tags"][0]["pulled_at"]
    assert "  rob/new:1\n" in desk.say("repo", "pulls", "rob/new")
    assert "repositories in this namespace" in desk.refused("user", "delete", "rob")
    assert desk.json("repo", "delete", "rob/new") == {"name": "rob/new", "deleted": True}
    assert rob.request("GET", "/v2/rob/new/tags/list").status == 404
    assert desk.run("user", "delete", "rob").returncode == 0


def test_the_log(desk: Desk) -> None:
    user = desk.add_user("lou")
    [entry] = desk.json("audit", "--account", "lou", "--limit", "1")
    assert (entry["event"], entry["subject"]) == ("user.create", "operator")
    assert entry["account"] == user["id"]
    assert len(desk.json("audit")) > 1
    [line] = desk.say("audit", "--account", "lou").splitlines()
    assert "user.create" in line
    assert "operator" in line


TOKEN = "5b0c6a0e-7d35-4f86-8a3c-6f7d3f1c9b6e"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("user", "add", "Not-A-Name", "--email", "x@example.org"), "lower-case"),
        (("user", "add", "somebody", "--email", "nonsense"), "no address"),
        (("user", "password", "nobody"), "no account 'nobody'"),
        (("user", "suspend", "nobody"), "no account 'nobody'"),
        (("user", "delete", "nobody"), "no account 'nobody'"),
        (("org", "add", "x", "--owner", "nobody"), "no user 'nobody'"),
        (("org", "add", "x/y"), "lower-case"),
        (("org", "member", "nobody", "nobody"), "no organisation 'nobody'"),
        (("robot", "add", "nobody"), "OWNER+NAME"),
        (("robot", "add", "nobody+ci"), "no account 'nobody'"),
        (("token", "create", "--user", "nobody", *EVERYTHING), "no user or robot 'nobody'"),
        (("token", "create", "--user", "x", "--scope", "all"), "no scope"),
        (("token", "create", "--user", "x", "--scope", ""), "without a scope"),
        (("token", "create", "--user", "x", *EVERYTHING, "--expires", "soon"), "soon"),
        (("token", "list", "--user", "nobody"), "no account 'nobody'"),
        (("token", "revoke", TOKEN), "still holds"),
        (("token", "revoke", "x"), "not the id"),
        (("trust", "list", "nobody"), "no account 'nobody'"),
        (("repo", "visibility", "no/repo", "public"), "no repository no/repo"),
        (("repo", "pulls", "no/repo"), "no repository no/repo"),
        (("repo", "rename", "no/repo", "other"), "no repository no/repo"),
        (("repo", "rename", "no/repo", "Other"), "lower-case"),
        (("repo", "delete", "no/repo"), "no repository no/repo"),
        (("audit", "--account", "nobody"), "no account 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    desk: Desk, words: tuple[str, ...], sentence: str
) -> None:
    assert sentence in desk.refused(*words, stdin=b"a password of length")


def test_a_name_is_utf8(desk: Desk) -> None:
    assert "not UTF-8" in desk.refused("user", "delete", b"\xff", status=2)


def test_a_password_that_is_none(desk: Desk) -> None:
    words = ("user", "add", "eve", "--email", "eve@example.org", "--password-stdin")
    assert "UTF-8" in desk.refused(*words, stdin=b"\xff" * 20)
    assert desk.refused(*words, stdin=b"")
    assert "eve" not in desk.say("user", "list")


def test_what_is_taken(desk: Desk) -> None:
    desk.add_user("tina")
    email = ("--email", "tina@example.org")
    assert "name is taken" in desk.refused("user", "add", "tina", "--email", "t@example.org")
    assert "name is taken" in desk.refused("org", "add", "tina")
    assert "email belongs" in desk.refused("user", "add", "tina2", *email)


@pytest.mark.parametrize(
    "words",
    [
        ("user",), ("user", "add", "x"), ("user", "nonsense"), ("token", "create"),
        ("repo", "list", "x"),
        ("repo", "visibility", "x", "open"), ("audit", "--limit", "0"), ("audit", "--limit", "x"),
        ("token", "create", "--user", "x"), ("org", "member", "x"),
    ],
)  # fmt: skip
def test_usage(desk: Desk, words: tuple[str, ...]) -> None:
    done = desk.run(*words)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"usage: openregistry" in done.stderr
    assert desk.run(*words[:1], "--help").returncode == 0


def test_a_database_that_is_not_ready(desk: Desk, postgres: Postgres) -> None:
    def at(url: str) -> Desk:
        return Desk({**desk.settings, "OPENREGISTRY_DATABASE_URL": url})

    words = ("repo", "list")
    assert "openregistry migrate" in at(postgres.new_database()).refused(*words)
    silent = f"postgresql://postgres@127.0.0.1:{free_port()}/x"
    assert "does not answer" in at(silent).refused(*words)
    line = at("mysql://host/x").refused(*words, status=2)
    assert line.startswith("OPENREGISTRY_DATABASE_URL: ")


# The embedded database: beside a registry that runs it, and without one.


def test_beside_a_registry_of_its_own_database_and_without_one(directory: Path) -> None:
    home = directory / "command-embedded"
    registry = Registry(home, {"OPENREGISTRY_ACCESS": "accounts"})
    desk = Desk(registry.settings)
    with stopping(registry):
        # Before the registry has ever started.
        desk.add_user("ada", "--admin")
        assert not list(home.glob("*/postgres/postmaster.pid"))

        registry.start(120)
        client = HTTPClient(registry.host)
        assert pings(client, "ada", PASSWORD)
        desk.add_user("bea")
        assert pings(client, "bea", PASSWORD)
        made = desk.json("token", "create", "--user", "bea", *EVERYTHING)
        bea = Basic(client, "bea", made["token"])
        push_image(bea, "bea/app", make_image(), "1")
        desk.say("repo", "visibility", "bea/app", "public")
        desk.say("token", "revoke", made["id"])
        assert bea.request("POST", "/v2/bea/app/blobs/uploads/").status == 401
        assert registry.alive()
        assert client.request("GET", "/ready").status == 200

        registry.stop()
        assert desk.json("repo", "list") == [{"name": "bea/app", "visibility": "public"}]
        assert not list(home.glob("*/postgres/postmaster.pid"))
