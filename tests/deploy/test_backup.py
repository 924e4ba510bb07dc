"""The database lost, and had back: as it was at a moment of the past, by pgBackRest; and out of a
file, by `openregistry backup`."""

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from chalicelib.metadata.database import Database
from tests.accounts import add_user, command, create_token
from tests.client import HTTPClient, push_image
from tests.conftest import need
from tests.images import Image, make_image
from tests.servers import OPENREGISTRY, S3, Registry, Server, free_port, stopping, wait_until

pytestmark = pytest.mark.long

[PROGRAMS] = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:] or [Path("/usr/lib/postgresql")]
SECRET = "a secret for the tests alone"
PASSWORD = "correct horse battery"


class SecureS3(S3):
    """The same, by TLS too, without which pgBackRest speaks to no object storage."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.https_port = free_port()
        self.certificate, self.key = directory / "certificate.pem", directory / "key.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
             "-keyout", self.key, "-out", self.certificate],
            check=True, capture_output=True,
        )  # fmt: skip
        self.certificate.chmod(0o644)

    def command(self) -> list[str]:
        return [
            *super().command(),
            f"-s3.port.https={self.https_port}",
            f"-s3.cert.file={self.certificate}",
            f"-s3.key.file={self.key}",
        ]


class ArchivedPostgres(Server):
    """Debian's Postgres, with every segment of its log archived by pgBackRest into a bucket."""

    name = "postgres"
    stanza = "registry"

    def __init__(self, directory: Path, s3: SecureS3) -> None:
        super().__init__(directory)
        directory.chmod(0o755)
        self.data = directory / "data"
        self.port = free_port()
        self.configuration = directory / "pgbackrest.conf"
        places = {name: directory / name for name in ("log", "spool", "lock")}
        for place in (self.data, *places.values()):
            place.mkdir(mode=0o700)
            shutil.chown(place, "postgres")
        self.configuration.write_text(
            "[global]\n"
            "repo1-type=s3\n"
            "repo1-path=/backups\n"
            f"repo1-s3-bucket={s3.bucket}\n"
            f"repo1-s3-endpoint=localhost:{s3.https_port}\n"
            f"repo1-storage-ca-file={s3.certificate}\n"
            f"repo1-s3-region={s3.region}\n"
            f"repo1-s3-key={s3.access_key}\n"
            f"repo1-s3-key-secret={s3.secret_key}\n"
            "repo1-s3-uri-style=path\n"
            "repo1-retention-full=2\n"
            "start-fast=y\n"
            "archive-timeout=30\n"
            f"log-path={places['log']}\nspool-path={places['spool']}\nlock-path={places['lock']}\n"
            f"[{self.stanza}]\n"
            f"pg1-path={self.data}\npg1-port={self.port}\npg1-socket-path={directory}\n"
        )
        self.configuration.chmod(0o600)
        shutil.chown(self.configuration, "postgres")
        shutil.chown(directory, "postgres")
        self.run(PROGRAMS / "initdb", "-D", self.data, "-A", "trust", "-E", "UTF8", "--locale=C")
        archive = f"pgbackrest --config={self.configuration} --stanza={self.stanza} archive-push %p"
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write(
                f"archive_mode = on\narchive_command = '{archive}'\nwal_level = replica\n"
                f"listen_addresses = '127.0.0.1'\nport = {self.port}\n"
                f"unix_socket_directories = '{directory}'\nmax_connections = 50\n"
            )

    def command(self) -> list[str]:
        return [str(PROGRAMS / "postgres"), "-D", str(self.data)]

    def user(self) -> str | None:
        return "postgres"

    def ready(self) -> bool:
        done = subprocess.run(
            ["psql", "-qAtX", self.url, "-c", "SELECT pg_is_in_recovery()"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout.strip() == "f"

    @property
    def url(self) -> str:
        """Its only database."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def run(self, *words: str | Path) -> str:
        """Run a program as its user, in a folder that this may read; what it said."""
        owner = pwd.getpwnam("postgres")
        done = subprocess.run(
            list(words), user=owner.pw_uid, group=owner.pw_gid, extra_groups=[], cwd="/",
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def pgbackrest(self, *words: str) -> str:
        """Run pgBackRest."""
        return self.run(
            "/usr/bin/pgbackrest", f"--config={self.configuration}", f"--stanza={self.stanza}",
            *words,
        )  # fmt: skip


@pytest.fixture(scope="module")
def s3(directory: Path) -> Iterator[SecureS3]:
    need("openssl", "openssl")
    server = SecureS3(directory / "secure-s3")
    with stopping(server):
        yield server.start()


@pytest.fixture
def archived(directory: Path, s3: SecureS3) -> Iterator[ArchivedPostgres]:
    need("pgbackrest", "pgbackrest")
    need(PROGRAMS / "postgres", "postgresql")
    if os.geteuid() != 0:
        pytest.skip("only root runs Postgres and pgBackRest as its user")
    server = ArchivedPostgres(directory / "archived", s3)
    with stopping(server):
        yield server.start()


def pulled(client: HTTPClient, repository: str, tag: str, image: Image, s3: S3) -> bool:
    """Whether that tag is that image, every byte of it. Fails where it is in part."""
    answer = client.request("GET", f"/v2/{repository}/manifests/{tag}")
    if answer.status == 404:
        return False
    assert answer.status == 200, answer
    if answer.body != image.manifest.data:
        return False
    for blob in image.blobs:
        answer = client.request("GET", f"/v2/{repository}/blobs/{blob.digest}")
        assert answer.status == 307, answer
        content = client.request("GET", answer.location)
        assert (content.status, content.body) == (200, blob.data)
    return True


def run(settings: Mapping[str, str], *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command with a registry's settings."""
    others = {name: value for name, value in os.environ.items() if "OPENREGISTRY" not in name}
    return subprocess.run(
        [OPENREGISTRY, *words], env={**others, **settings}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


def openregistry(settings: Mapping[str, str], *words: str) -> str:
    """Run a command that has to work; what it printed."""
    done = run(settings, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextlib.contextmanager
def connected(url: str) -> Iterator[Database]:
    database = Database(url, pool=1)
    try:
        yield database
    finally:
        database.close()


def test_a_moment_before_the_disaster(
    archived: ArchivedPostgres, s3: SecureS3, serve: Callable[..., Registry]
) -> None:
    settings = {
        "OPENREGISTRY_DATABASE_URL": archived.url,
        "OPENREGISTRY_STORAGE_URL": s3.new_storage_url(),
        "OPENREGISTRY_SECRET_KEY": SECRET,
        **s3.environment(),
    }
    archived.pgbackrest("stanza-create")
    archived.pgbackrest("check")

    registry = serve(**settings)
    client = HTTPClient(registry.host)
    first, second, third = (make_image((3000, 200_000), seed) for seed in ("a", "b", "c"))
    push_image(client, "test/app", first, "v1")
    archived.pgbackrest("--type=full", "backup")
    time.sleep(1.1)  # the moment is to be after the backup, whose end is known to the second
    # After the backup: in the archived log alone.
    push_image(client, "test/app", second, "v2")
    lost = make_image((5000,), "lost")
    push_image(client, "test/lost", lost, "v1")
    with connected(archived.url) as database:
        [[moment]] = database.run("SELECT CAST(clock_timestamp() AS text)")
        # Two transactions later, or there is none after which recovery could end.
        database.run("SELECT pg_switch_wal()")
    time.sleep(1)
    push_image(client, "test/app", third, "v3")
    push_image(client, "test/app", third, "v1")
    # Collected since, by somebody who wants no grace.
    gone = client.request("DELETE", f"/v2/test/lost/manifests/{lost.manifest.digest}")
    assert gone.status == 202
    openregistry(registry.settings, "gc", "--grace", "0")
    openregistry(registry.settings, "gc", "--grace", "0")
    gone = client.request("DELETE", f"/v2/test/app/manifests/{second.manifest.digest}")
    assert gone.status == 202

    # The disaster, which reaches the archive too; and then the disk is lost.
    with connected(archived.url) as database:
        database.run("DROP TABLE manifests CASCADE")
        [[segment]] = database.run("SELECT pg_walfile_name(pg_switch_wal())")
    assert client.request("GET", "/v2/test/app/manifests/v1").status == 500
    wait_until(
        lambda: segment in archived.pgbackrest("info", "--output=json"), 60, lambda: "the archive"
    )
    registry.stop()
    archived.stop()
    shutil.rmtree(archived.data)
    archived.data.mkdir(mode=0o700)
    shutil.chown(archived.data, "postgres")

    began = time.monotonic()
    archived.pgbackrest("--type=time", f"--target={moment}", "--target-action=promote", "restore")
    archived.start()
    print(f"restored and recovered in {time.monotonic() - began:.1f} s")
    said = openregistry(registry.settings, "backup", "settle")
    assert "sweep --force" in said

    again = serve(**settings)
    client = HTTPClient(again.host)
    assert pulled(client, "test/app", "v1", first, s3)
    assert pulled(client, "test/app", "v2", second, s3)
    assert client.request("GET", "/v2/test/app/manifests/v3").status == 404
    assert client.request("GET", "/v2/test/app/tags/list").json["tags"] == ["v1", "v2"]
    # What is lost can be pushed again, though its objects are there and no row knows them.
    push_image(client, "test/app", third, "v3")
    assert pulled(client, "test/app", "v3", third, s3)
    # What was collected since is told, and can be pushed again once the rows say that it is gone.
    [layer] = [blob for blob in lost.blobs if blob.digest != lost.config.digest]
    path = f"/v2/test/lost/blobs/{layer.digest}"
    assert client.request("HEAD", path).status == 200
    assert client.request("GET", client.request("GET", path).location).status == 404
    found = run(again.settings, "fsck")
    assert found.returncode == 1
    assert layer.digest in found.stdout
    run(again.settings, "fsck", "--repair")
    assert client.request("HEAD", path).status == 404
    push_image(client, "test/lost", lost, "v1")
    assert pulled(client, "test/lost", "v1", lost, s3)
    # It is moved to another server by a file, with that server's own programs.
    file = archived.directory / "moved.dump"
    openregistry(again.settings, "backup", "create", str(file))
    with connected(archived.url) as database:
        database.run("CREATE DATABASE moved")
    url = archived.url.removesuffix("postgres") + "moved"
    nobody = {**settings, "OPENREGISTRY_DATABASE_URL": f"{url}-not"}
    assert "does not exist" in refused(nobody, "backup", "restore", str(file))
    openregistry({**settings, "OPENREGISTRY_DATABASE_URL": url}, "backup", "restore", str(file))
    with connected(archived.url) as one, connected(url) as other:
        count = "SELECT count(*), min(name), max(name) FROM tags"
        assert one.run(count) == other.run(count) == [[4, "v1", "v3"]]
    # The new timeline is backed up as the former was.
    archived.pgbackrest("check")
    archived.pgbackrest("--type=diff", "backup")
    backups = json.loads(archived.pgbackrest("info", "--output=json"))
    assert [each["type"] for each in backups[0]["backup"]] == ["full", "diff"]


@pytest.fixture
def embedded(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with accounts and a Postgres of its own."""
    home = directory / f"embedded-{time.monotonic_ns()}"
    server = Registry(home, {"OPENREGISTRY_ACCESS": "accounts"})
    with stopping(server):
        yield server.start()


def test_a_file_while_the_registry_goes_on(embedded: Registry, directory: Path) -> None:
    settings = embedded.settings
    add_user(settings, "root", PASSWORD, administrator=True)
    token = create_token(settings, "root", "repository:root/*:pull,push")
    assert token
    file = directory / "registry.dump"
    said = openregistry(settings, "backup", "create", str(file))
    assert str(embedded.data_dir / "secret-key") in said
    assert file.stat().st_mode & 0o777 == 0o600
    assert refused(settings, "backup", "create", str(file)) == f"{file} is there already"
    assert "is not empty" in refused(settings, "backup", "restore", str(file))

    # After the backup: a token is revoked, and an account is made.
    [held] = command(settings, "token", "list", "--user", "root")
    command(settings, "token", "revoke", held["id"])
    add_user(settings, "mallory", PASSWORD)
    embedded.stop()

    # On another machine, with the secret key.
    other = directory / "restored"
    other.mkdir()
    shutil.copy2(embedded.data_dir / "secret-key", other)
    moved = {**settings, "OPENREGISTRY_DATA_DIR": str(other)}
    cut = directory / "cut.dump"
    # pg_restore takes the first without a word.
    for damaged in (file.read_bytes()[:-1000], b"x" + file.read_bytes()[1:], b""):
        cut.write_bytes(damaged)
        assert "or not all of it" in refused(moved, "backup", "restore", str(cut))
    openregistry(moved, "backup", "restore", str(file))
    [held] = command(moved, "token", "list", "--user", "root")
    assert held["revoked_at"] is None, "it holds again: that is why the next command is there"
    assert "void: 1 access tokens" in openregistry(moved, "backup", "settle", "--revoke-tokens")
    [held] = command(moved, "token", "list", "--user", "root")
    assert held["revoked_at"] is not None


def refused(settings: Mapping[str, str], *words: str) -> str:
    """The sentence with which a command fails."""
    done = run(settings, *words)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stderr.strip().removeprefix("openregistry: ")
