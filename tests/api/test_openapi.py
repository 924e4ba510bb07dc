"""That the API's description is true: Schemathesis makes requests of it, good ones and bad ones,
and looks whether the answers are those that it tells of."""

import re
import subprocess
from base64 import b64encode, urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import urlsplit

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from chalicelib.api import operations
from chalicelib.api.openapi import document
from chalicelib.api.operations import PREFIX, Needs, Operation
from chalicelib.metadata import one_time
from tests.accounts import add_user
from tests.api.conftest import PASSWORD, World, basic
from tests.client import HTTPClient
from tests.servers import BIN, Postgres, Registry, stopping

OPERATIONS = operations.table()
SCHEMATHESIS = BIN / "schemathesis"
HERE = Path(__file__).parent
LEFT_OUT = (
    *("describe", "change_password", "change_email", "delete_account"),
    *("check_resolver_of_account", "check_resolver_for_all"),
)
"""Operations that Schemathesis does not try: the description itself, and what schemathesis.toml
says."""
RESOLVER_KEYS = {"access_key": "AN-ACCESS-KEY", "secret_key": "A-SECRET-KEY"}


@contextmanager
def populated(directory: Path, postgres: Postgres) -> Iterator[Registry]:
    """A registry in which there is something of each kind: acme is root's."""
    settings = {
        "OPENREGISTRY_ACCESS": "accounts",
        "OPENREGISTRY_DATABASE_URL": postgres.new_database(),
    }
    registry = Registry(Path(mkdtemp(prefix="api-", dir=directory)), settings)
    with stopping(registry):
        registry.start()
        for name in ("alice", "bob", "root"):
            add_user(registry.settings, name, PASSWORD, administrator=name == "root")
        client = HTTPClient(registry.host)

        def call(by: str, method: str, path: str, body: Any = None) -> None:
            fields = {"Authorization": basic(by, PASSWORD), "Content-Type": "application/json"}
            answer = client.request(method, PREFIX + path, dumps(body).encode(), fields)
            assert answer.status < 300, answer

        populate(call)
        yield registry


@pytest.fixture
def own(directory: Path, postgres: Postgres) -> Iterator[Registry]:
    with populated(directory, postgres) as registry:
        yield registry


def populate(call: Callable[..., Any]) -> None:
    """Make something of each kind."""
    call("root", "POST", "/organisations", {"name": "acme"})
    call("root", "POST", "/organisations/acme/teams", {"name": "devs"})
    call("root", "POST", "/accounts/acme/robots", {"name": "ci", "role": "write"})
    token = {"name": "a token", "scopes": ["repository:*:pull,push", "account:*:read"]}
    for by, account, repository in (("root", "acme", "acme/app"), ("alice", "alice", "alice/app")):
        made = {"name": repository, "visibility": "public", "description": "something"}
        call(by, "POST", "/repositories", made)
        call(by, "PUT", f"/repositories/{repository}/-/grants/bob", {"role": "read"})
        call(by, "PUT", f"/accounts/{account}/grants/bob", {"role": "write"})
        call(by, "POST", f"/accounts/{by}/tokens", token)
        for place in (f"/accounts/{account}", f"/repositories/{repository}/-"):
            webhook = {"url": "https://hooks.example.org", "events": ["push"]}
            call(by, "POST", f"{place}/webhooks", webhook)
            call(by, "POST", f"{place}/triggers", {"starts": "retention"})
    resolver = {"name": "filebase", "address": {"bucket": "images"}, **RESOLVER_KEYS}
    for place, named in (("/accounts/acme", "acme/filebase"), ("/admin", "filebase")):
        call("root", "POST", f"{place}/resolvers", resolver)
        call("root", "PUT", f"{place}/resolver-choice", {"resolvers": [named]})
    call("root", "POST", "/accounts/acme+ci/tokens", token)
    call("root", "POST", "/organisations/acme/invitations", {"email": "alice@example.org"})
    call("root", "POST", "/admin/invitations", {"email": "erin@example.org"})


def schemathesis(registry: Registry, who: str, *options: str) -> None:
    """Let Schemathesis make requests, in an order that is the same each time, as somebody who may
    be nobody."""
    # By its name, since passkeys are for no addresses.
    url = f"http://localhost:{urlsplit(registry.url).port}"
    done = subprocess.run(
        [
            SCHEMATHESIS, "--no-color", "--config-file", HERE / "schemathesis.toml",
            "run", f"{url}{PREFIX}/openapi.json",
            "--seed", "1", "--generation-database", "none", "--warnings", "off",
            "--continue-on-failure", "--no-shrink",
            # How many of the paths that it makes up are none says nothing of the API.
            "--suppress-health-check", "filter_too_much",
            *(("--header", f"Authorization: {basic(who, PASSWORD)}") if who else ()), *options,
        ],
        cwd=registry.directory, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Tested: {len(OPERATIONS) - len(LEFT_OUT)}\n" in done.stdout, done.stdout


@pytest.mark.long
@pytest.mark.timeout(1200)  # several thousand requests
@pytest.mark.parametrize("who", ["root", "alice", ""])
def test_the_api_is_as_described(own: Registry, who: str) -> None:
    schemathesis(own, who, "--max-examples", "25")


def test_the_description_is_openapi() -> None:
    OpenAPIV31SpecValidator(document("a-cookie")).validate()


def test_names_of_operations_are_unique() -> None:
    described = document("a-cookie")["paths"]
    names = Counter(each["operationId"] for path in described.values() for each in path.values())
    assert set(names.values()) == {1}, names
    assert sum(names.values()) == len(OPERATIONS)
    # Paths that differ in the names of their parts alone are the same one (section 4.8.8.1).
    assert len({re.sub("{.*?}", "{}", path) for path in described}) == len(described)


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.id)
def test_operations_are_described(row: Operation) -> None:
    described = document("a-cookie")["paths"][PREFIX + row.path][row.method.lower()]
    assert described["summary"]
    parts = {each["name"]: each for each in described["parameters"] if each["in"] == "path"}
    assert set(parts) == set(re.findall(r"{(\w+)}", row.path))
    assert all(each["required"] and each["description"] for each in parts.values())
    statuses = {int(status) for status in described["responses"]}
    assert {*row.problems, 401, 429, 503} <= statuses
    for status, response in described["responses"].items():
        assert response["description"]
        if int(status) >= 400:
            assert set(response["content"]) == {"application/problem+json"}
    without = {} in described["security"]
    assert without == (row.needs in (Needs.NOTHING, Needs.REPOSITORY_READ))
    tokens = {"token": []} in described["security"]
    assert tokens == (row.needs not in (Needs.PERSON, Needs.ADMINISTRATOR))


def test_no_answer_tells_a_secret(world: World) -> None:
    """Every list and detail, to whom may see it, about accounts, tokens, sessions, passkeys and
    invitations that are there."""
    told: list[bytes] = []

    def call(by: str, method: str, path: str, body: Any = None) -> None:
        answer = world.call(method, path, body, by=by)
        assert answer.status < 300, answer
        if path.endswith("/tokens"):
            told.append(answer.json["token"].encode())
        if path.endswith(("/webhooks", "/triggers")):
            told.append(answer.json["secret"].encode())

    populate(call)
    database, root = world.context.database, world.ids["root"]
    cookie = world.call("POST", "/session", {"name": "root", "password": PASSWORD})
    told.append(cookie.headers["Set-Cookie"].partition(";")[0].partition("=")[2].encode())
    told.append(one_time.put(database, "reset password", 600, root).encode())
    hashes = [
        *database.run("SELECT password_hash FROM accounts WHERE password_hash IS NOT NULL"),
        *database.run("SELECT hash FROM access_tokens"),
        *database.run("SELECT hash FROM sessions"),
        *database.run("SELECT hash FROM one_time_secrets"),
        *database.run("SELECT secret_hash FROM invitations"),
    ]
    assert len(hashes) >= 9
    secrets = [*told, PASSWORD.encode(), *(key.encode() for key in RESOLVER_KEYS.values())]
    for [value] in hashes:
        data = value.encode() if isinstance(value, str) else value
        secrets += [data, data.hex().encode(), b64encode(data).rstrip(b"="),
                    urlsafe_b64encode(data).rstrip(b"=")]  # fmt: skip
    [[token]] = database.run("SELECT CAST(id AS text) FROM access_tokens WHERE account_id = :id",
                             id=root)  # fmt: skip
    shown = Counter[int]()
    for account, repository in (("acme", "acme/app"), ("root", "acme/app"), ("acme+ci", "a/b")):
        parts = dict.fromkeys(_parts(), token)
        parts |= {"account": account, "repository": repository, "team": "devs", "provider": "x"}
        parts["resolver"] = "filebase"
        for row in OPERATIONS:
            if row.method == "GET":
                answer = world.call("GET", row.path.format(**parts), by="root")
                shown[answer.status] += 1
                for secret in secrets:
                    assert secret not in answer.body, (row.path, secret)
    assert shown[200] > 40, shown


def _parts() -> set[str]:
    return {name for row in OPERATIONS for name in re.findall(r"{(\w+)}", row.path)}
