"""`openregistry resolver`, as an operator types it."""

import io
import json
from typing import Any

import pytest

from chalicelib import cli
from chalicelib.context import Context
from chalicelib.identity import users
from chalicelib.metadata import resolvers
from chalicelib.resolvers import added
from chalicelib.resolvers.choices import INSISTENCE
from tests.client import CoreClient, push_image
from tests.images import make_image

ACCESS, SECRET = "THE-ACCESS-KEY", "THE-SECRET-KEY"


class Desk:
    """Where an operator types commands."""

    def __init__(
        self,
        context: Context,
        patch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.context, self.patch, self._capsys = context, patch, capsys
        settings = context.settings
        for name, value in (
            ("ACCESS", settings.access),
            ("DATABASE_URL", settings.database_url),
            ("DATA_DIR", str(settings.data_dir)),
            ("SECRET_KEY", settings.secret_key),
            ("STORAGE_URL", settings.storage_url),
            ("IPFS_NODES", "http://127.0.0.1:1"),
        ):
            patch.setenv(f"OPENREGISTRY_{name}", value)

    def type(self, *words: str, given: str = "") -> tuple[int, str]:
        """The exit status of a command, and what it said."""
        self.patch.setattr("sys.stdin", io.StringIO(given))
        status = cli.main(["resolver", *words])
        captured = self._capsys.readouterr()
        said = captured.out + captured.err
        assert SECRET not in said
        assert ACCESS not in said
        return status, said.strip()

    def json(self, *words: str, given: str = "") -> Any:
        status, said = self.type(*words, "--json", given=given)
        assert status == 0, said
        return json.loads(said)


@pytest.fixture
def desk(
    jobs_context: Context, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Desk:
    return Desk(jobs_context, monkeypatch, capsys)


def test_resolvers(desk: Desk) -> None:
    context = desk.context
    users.create(
        context.database, "acme", "a@example.org", None, by="operator", email_verified=True
    )
    keys = f"{ACCESS}\n{SECRET}\n"
    add = ("add", "mine", "--account", "acme", "--bucket", "images")
    status, said = desk.type(*add, given=f"{ACCESS}\n")
    assert (status, "the keys are missing" in said) == (1, True)
    made = desk.json(*add, "--prefix", "here", given=keys)
    assert made["name"] == "acme/mine"
    assert made["address"]["prefix"] == "here/"
    row = resolvers.sealed(context.database, "acme/mine")
    assert row is not None
    assert added.unsealed(context.keys, "acme/mine", row.keys) == (ACCESS, SECRET)
    status, said = desk.type(*add, given=keys)
    assert (status, "acme/mine already" in said) == (1, True)

    desk.patch.setenv("FILEBASE_ACCESS_KEY", ACCESS)
    desk.patch.setenv("FILEBASE_SECRET_KEY", SECRET)
    common = ("add", "common", "--all", "--bucket", "others")
    assert desk.type(*common) == (0, "common can be chosen")
    status, said = desk.type(
        "add", "inwards", "--all", "--bucket", "images", "--endpoint", "http://169.254.169.254"
    )
    assert (status, "one of Filebase's own servers" in said) == (1, True)
    names = [each["name"] for each in desk.json("list", "--account", "acme")]
    assert names == ["ipfs", "common", "acme/mine"]
    assert desk.type("list", "--all") == (0, "ipfs  of the settings\ncommon  filebase  others")

    desk.patch.setenv("FILEBASE_SECRET_KEY", "ANOTHER")
    assert desk.json("keys", "acme/mine") == {"name": "acme/mine", "changed": True}
    row = resolvers.sealed(context.database, "acme/mine")
    assert row is not None
    assert added.unsealed(context.keys, "acme/mine", row.keys) == (ACCESS, "ANOTHER")

    status, said = desk.type("check", "ipfs", "--json")
    assert (status, json.loads(said)["ready"]) == (1, False)
    assert "out of reach" in json.loads(said)["error"]
    for command in ("check", "keys", "remove"):
        status, said = desk.type(command, "acme/none")
        assert (status, "no resolver acme/none that was added" in said) == (1, True)
    assert desk.type("remove", "common") == (0, "common is gone")
    context.database.run(
        "INSERT INTO resolver_copies (digest, resolver, size) VALUES ('x', 'acme/mine', 1)"
    )
    gone = {"name": "acme/mine", "removed": True, "copies": 1}
    assert desk.json("remove", "acme/mine") == gone
    assert "1 copies are taken away" in desk.type("list", "--account", "acme")[1]
    assert desk.json("remove", "acme/mine", "--forget") == {**gone, "copies": 0}
    assert [each["name"] for each in desk.json("list", "--account", "acme")] == ["ipfs"]


def test_choices(desk: Desk) -> None:
    push_image(CoreClient(desk.context), "acme/app", make_image([10]), "v1")
    users.create(
        desk.context.database, "acme", "a@example.org", None, by="operator", email_verified=True
    )
    one, account, everything = ["--repository", "acme/app"], ["--account", "acme"], ["--all"]
    assert desk.type("chosen", *one) == (0, "nothing was chosen: images stay here alone")
    status, said = desk.type("choose", "ipfs", *everything)
    assert (status, said.startswith("public images go to ipfs")) == (0, True)
    assert desk.type("chosen", *one) == (0, "ipfs, chosen for all")
    status, said = desk.type("choose", "ipfs", *account, "--insist", "yes")
    assert (status, INSISTENCE in said) == (1, True)
    insisted = {"resolvers": ["ipfs"], "insisted": True}
    assert desk.json("choose", "ipfs", *account, "--insist", INSISTENCE) == insisted
    for place in (one, account):
        chosen = {**insisted, "chosen_for": "account"}
        assert desk.json("chosen", *place) == chosen
    assert desk.type("choose", "--none", *one) == (0, "images stay here alone")
    assert desk.type("chosen", *one) == (0, "none, chosen for this repository")
    for place in (one, account, everything):
        assert desk.json("unchoose", *place) == {"chosen": False}
        status, said = desk.type("unchoose", *place)
        assert (status, "nothing was chosen here" in said) == (1, True)
    for words in (["--none", "ipfs"], []):
        status, said = desk.type("choose", *words, *one)
        assert (status, "name resolvers, or say --none" in said) == (1, True)
    assert "no resolver bucket" in desk.type("choose", "bucket", *one)[1]
    for option in ("--repository", "--account"):
        assert "there is no" in desk.type("choose", "ipfs", option, "not/there")[1]
