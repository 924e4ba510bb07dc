"""Upgrades: a database of each earlier schema, with something in it, goes forward and serves; and
the release before goes on writing while a newer one's schema is there."""

import base64
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.hosts import build_context
from chalicelib.identity import access_tokens, passwords, scopes
from chalicelib.identity.keys import Keys
from chalicelib.jobs.kinds import KINDS
from chalicelib.jobs.worker import Worker
from chalicelib.metadata.database import Transaction
from chalicelib.metadata.migrate import MIGRATIONS, current, migrate
from chalicelib.settings import Settings
from chalicelib.storage.filesystem import FileStore
from tests.client import CoreClient, push_image
from tests.images import Image, make_image
from tests.servers import Postgres

FILES = sorted(MIGRATIONS.glob("[0-9]*.sql"))
IDENTITY, JOBS = 2, 3
SECRET = "a secret for the tests alone"
PASSWORD = "correct horse battery"


def schema_of(directory: Path, number: int) -> Path:
    """The migrations up to one, as that release had them."""
    directory.mkdir()
    for file in FILES[:number]:
        (directory / file.name).write_bytes(file.read_bytes())
    return directory


@pytest.fixture
def empty(core_settings: Settings, postgres: Postgres, tmp_path: Path) -> Iterator[Context]:
    """The functions with accounts, over a database without tables and a folder."""
    settings = replace(
        core_settings,
        access="accounts",
        secret_key=SECRET,
        database_url=postgres.new_database(),
        storage_url=(tmp_path / "blobs").as_uri(),
    )
    with ExitStack() as stack:
        context = build_context(settings)
        stack.callback(context.database.close)
        yield context


def push_as_the_first_release(transaction: Transaction, store: FileStore, image: Image) -> None:
    """What a push writes, in the columns that the first schema had."""
    run = transaction.run
    [[repository]] = run("INSERT INTO repositories (name) VALUES ('alice/old') RETURNING id")
    for blob in image.blobs:
        digest, key = digests.pack(blob.digest), secrets.token_hex(16)
        store.path(key).parent.mkdir(parents=True, exist_ok=True)
        store.path(key).write_bytes(blob.data)
        run("INSERT INTO blobs (digest, size) VALUES (:d, :s)", d=digest, s=len(blob.data))
        run(
            "INSERT INTO blob_copies (digest, store, key) VALUES (:d, :store, :key)",
            d=digest, store=store.name, key=key,
        )  # fmt: skip
        run(
            "INSERT INTO repository_blobs (repository_id, digest) VALUES (:r, :d)",
            r=repository, d=digest,
        )  # fmt: skip
    manifest = digests.pack(image.manifest.digest)
    run(
        "INSERT INTO manifests (repository_id, digest, media_type, artifact_type, payload,"
        " annotations) VALUES (:r, :d, :type, '', :payload, '{}')",
        r=repository, d=manifest, type=image.manifest.media_type, payload=image.manifest.data,
    )  # fmt: skip
    for blob in image.blobs:
        run(
            "INSERT INTO manifest_references (repository_id, manifest, digest, is_manifest, blob)"
            " VALUES (:r, :m, :d, false, :d)",
            r=repository, m=manifest, d=digests.pack(blob.digest),
        )  # fmt: skip
    run("INSERT INTO tags VALUES (:r, 'v1', :d)", r=repository, d=manifest)
    run(
        "INSERT INTO tag_history (repository_id, name, digest, subject) VALUES (:r, 'v1', :d, '')",
        r=repository, d=manifest,
    )  # fmt: skip


def sign_up_as_the_second_release(transaction: Transaction, keys: Keys) -> str:
    """An account in the columns that the schema of accounts had; its access token."""
    [[account]] = transaction.run(
        "INSERT INTO accounts (kind, name, email, email_verified, password_hash)"
        " VALUES ('user', 'alice', 'alice@example.org', true, :hash) RETURNING id",
        hash=passwords.hashed(PASSWORD),
    )
    scope = scopes.parse(["repository:alice/*:pull,push,delete"])
    return access_tokens.create(transaction, keys, account, "old", scope).token


@pytest.mark.long
@pytest.mark.parametrize("number", range(1, len(FILES) + 1), ids=[file.stem for file in FILES])
def test_what_was_pushed_then_serves_now(empty: Context, tmp_path: Path, number: int) -> None:
    """For the newest schema, the statements are those of a release that does not know it."""
    url, database = empty.settings.database_url, empty.database
    migrate(url, schema_of(tmp_path / "migrations", number))
    image = make_image((500, 100_000), "old")
    store = empty.store
    assert isinstance(store, FileStore)
    database.transaction(partial(push_as_the_first_release, store=store, image=image))
    token = ""
    if number >= IDENTITY:
        token = database.transaction(partial(sign_up_as_the_second_release, keys=empty.keys))
    if number >= JOBS:
        database.run("INSERT INTO jobs (kind, data) VALUES ('collect', '{}')")

    assert migrate(url) == [file.name for file in FILES[number:]]
    assert current(database)
    if not token:
        token = database.transaction(partial(sign_up_as_the_second_release, keys=empty.keys))

    client = CoreClient(empty)
    basic = base64.b64encode(f"alice:{token}".encode()).decode()
    fields = {"Authorization": f"Basic {basic}"}
    pulled = client.request("GET", "/v2/alice/old/manifests/v1", headers=fields)
    assert (pulled.status, pulled.body) == (200, image.manifest.data)
    for blob in image.blobs:
        got = client.request("GET", f"/v2/alice/old/blobs/{blob.digest}", headers=fields)
        assert (got.status, got.body) == (200, blob.data)
    # By the password of then, for a token of now.
    basic = base64.b64encode(f"alice:{PASSWORD}".encode()).decode()
    granted = client.request(
        "GET", "/token?scope=repository:alice/old:pull,push,delete",
        headers={"Authorization": f"Basic {basic}"},
    )  # fmt: skip
    bearer = {"Authorization": f"Bearer {granted.json['token']}"}

    # It can be pushed to, what was is not lost by collection, and what is deleted goes.
    newer = make_image((700,), "new")
    push_image(Signed(client, bearer), "alice/old", newer, "v2")
    worker = Worker(empty, KINDS)
    worker.drain()
    assert database.run("SELECT count(*) FROM jobs WHERE dead_at IS NOT NULL") == [[0]]
    assert client.request("GET", "/v2/alice/old/manifests/v1", headers=fields).status == 200
    gone = client.request(
        "DELETE", f"/v2/alice/old/manifests/{image.manifest.digest}", headers=bearer
    )
    assert gone.status == 202
    tags = client.request("GET", "/v2/alice/old/tags/list", headers=fields)
    assert tags.json["tags"] == ["v2"]


class Signed(CoreClient):
    """A client whose requests bring the same fields."""

    def __init__(self, client: CoreClient, fields: dict[str, str]) -> None:
        super().__init__(client.context)
        self._fields = fields

    def request(self, method, target, body=b"", headers=None):  # type: ignore[no-untyped-def]
        return super().request(method, target, body, {**(headers or {}), **self._fields})


_TAKES_AWAY = re.compile(
    r"\b(?:DROP\s+(?:TABLE|COLUMN|TYPE|VIEW)|RENAME\b|SET\s+NOT\s+NULL|ALTER\s+COLUMN\s+\w+\s+TYPE"
    r"|TRUNCATE\s+(?!ON))",
    re.IGNORECASE,
)
_ADDS_A_DUTY = re.compile(
    r"\bADD\s+COLUMN\s+\S+\s+(?:(?!,|;|DEFAULT|GENERATED).)*NOT\s+NULL(?:(?!,|;).)*",
    re.IGNORECASE | re.DOTALL,
)


def statements(file: Path) -> str:
    """A migration without its comments."""
    return re.sub(r"--[^\n]*", "", file.read_text())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_nothing_is_taken_from_the_release_before(file: Path) -> None:
    """It still reads and writes what it knows, while a rolling restart goes on."""
    text = statements(file)
    assert _TAKES_AWAY.findall(text) == []
    for added in _ADDS_A_DUTY.findall(text):
        assert "DEFAULT" in added.upper() or "GENERATED" in added.upper(), added


def test_what_takes_away_is_seen(tmp_path: Path) -> None:
    for text in (
        "ALTER TABLE a DROP COLUMN b", "DROP TABLE a;", "ALTER TABLE a RENAME COLUMN b TO c",
        "ALTER TABLE a ALTER COLUMN b SET NOT NULL", "ALTER TABLE a ALTER COLUMN b TYPE text",
    ):  # fmt: skip
        assert _TAKES_AWAY.search(text), text
    assert _ADDS_A_DUTY.search("ALTER TABLE a ADD COLUMN b text NOT NULL;")
    assert not _TAKES_AWAY.search("CREATE TRIGGER x BEFORE DELETE OR TRUNCATE ON audit")
