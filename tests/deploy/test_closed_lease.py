"""A lease that was closed: Postgres, the IPFS node and the registry begin with empty disks, and
what was pushed is there, out of the bucket. Postgres runs as in infra/akash/postgres."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.accounts import command
from tests.client import HTTPClient, push_image
from tests.conftest import need
from tests.deploy.engines import Engine
from tests.deploy.test_backup import SecureS3, openregistry
from tests.hosts.wire import until
from tests.images import Image, make_image
from tests.servers import Kubo, Registry, Server, free_port, stopping

pytestmark = pytest.mark.long

START = Path(__file__).parents[2] / "infra/akash/postgres/start.sh"
PROGRAMS = Path("/usr/lib/postgresql/15/bin")
SECRET = "a secret that outlives leases"


class AkashPostgres(Server):
    """Postgres as the image has it, with a disk of its own."""

    name = "postgres"

    def __init__(self, directory: Path, s3: SecureS3) -> None:
        super().__init__(directory)
        directory.chmod(0o755)
        self.port = free_port()
        self.disk = directory / "disk"
        for folder in (self.disk, directory / "lock", directory / "sockets"):
            folder.mkdir(exist_ok=True)
            shutil.chown(folder, "postgres")
        self.variables = {
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "PGDATA": str(self.disk / "registry"),
            "PGHOST": str(directory / "sockets"),
            "PGPORT": str(self.port),
            "LISTEN_ADDRESSES": "127.0.0.1",
            "DATABASE_PASSWORD": "it's a password",
            "PGBACKREST_LOCK_PATH": str(directory / "lock"),
            "PGBACKREST_REPO1_CIPHER_PASS": "a passphrase",
            "PGBACKREST_REPO1_PATH": "/closed-lease",
            "PGBACKREST_REPO1_S3_BUCKET": s3.bucket,
            "PGBACKREST_REPO1_S3_ENDPOINT": f"localhost:{s3.https_port}",
            "PGBACKREST_REPO1_S3_KEY": s3.access_key,
            "PGBACKREST_REPO1_S3_KEY_SECRET": s3.secret_key,
            "PGBACKREST_REPO1_S3_REGION": s3.region,
            "PGBACKREST_REPO1_STORAGE_CA_FILE": str(s3.certificate),
        }

    def command(self) -> list[str]:
        return [str(START)]

    def environment(self) -> Mapping[str, str]:
        return self.variables

    @property
    def url(self) -> str:
        return f"postgresql://registry:it%27s%20a%20password@127.0.0.1:{self.port}/registry"

    def ready(self) -> bool:
        return self.ask("SELECT pg_is_in_recovery()") == "f"

    def ask(self, sql: str) -> str:
        """Ask as the registry does."""
        return self._psql(self.url, sql)

    def query(self, sql: str) -> str:
        """Ask as its superuser, who comes by the socket alone."""
        return self._psql("dbname=postgres user=postgres", sql)

    def _psql(self, target: str, sql: str) -> str:
        done = subprocess.run(
            ["psql", "-qAtX", target, "-c", sql], env=self.variables, capture_output=True, text=True
        )
        return done.stdout.strip()


@pytest.fixture(scope="module")
def s3(directory: Path) -> Iterator[SecureS3]:
    need("openssl", "openssl")
    server = SecureS3(directory / "bucket")
    with stopping(server):
        yield server.start()


@pytest.fixture
def lease(directory: Path, s3: SecureS3) -> Iterator[Callable[[str], AkashPostgres]]:
    """Start a Postgres with an empty disk."""
    need("pgbackrest", "pgbackrest")
    need(PROGRAMS / "postgres", "postgresql-15")
    if os.geteuid() != 0:
        pytest.skip("only root runs Postgres and pgBackRest as its user")
    started: list[AkashPostgres] = []

    def start(name: str) -> AkashPostgres:
        started.append(AkashPostgres(directory / name, s3))
        return started[-1].start()

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def image(engine: Engine) -> str:
    """Postgres's image, which Debian's packages make."""
    base = ("--build-arg", "BASE=base:bookworm")
    engine.run("build", "--network=host", *base, "--tag=postgres:test", START.parent, within=500)
    return "postgres:test"


@pytest.mark.timeout(600)
def test_the_image_comes_back_out_of_the_bucket(
    engine: Engine, image: str, directory: Path, s3: SecureS3
) -> None:
    """As Akash runs it: as root, with a volume that is empty."""
    postgres = AkashPostgres(directory / "image", s3)
    postgres.variables["PGBACKREST_REPO1_PATH"] = "/image"
    inside = {"PGBACKREST_REPO1_STORAGE_CA_FILE": "/bucket.pem", "PGPORT": str(postgres.port)}
    for name in ("DATABASE_PASSWORD", "LISTEN_ADDRESSES"):
        inside[name] = postgres.variables[name]
    inside = {**{k: v for k, v in postgres.variables.items() if "REPO1" in k}, **inside}
    words = [f"--env={name}={value}" for name, value in inside.items()]
    words += ["--network=host", f"--volume={s3.certificate}:/bucket.pem:ro", image]

    with engine.container("--volume=first:/var/lib/postgresql", *words) as container:
        until_true(postgres.ready)
        postgres.ask("CREATE TABLE a AS SELECT 1 AS b")
        until_true(lambda: "ended with status 0" in container.log())
        postgres.ask("INSERT INTO a VALUES (2)")
        # What has not been archived yet is, when it is told to end.
        engine.run("stop", "--time=60", container.name)
        assert "database system is shut down" in container.log()
        assert container.look()["State"]["ExitCode"] == 0
        engine.run("start", container.name)
        until_true(postgres.ready)
        assert postgres.ask("SELECT sum(b) FROM a") == "3"
        assert "restored" not in container.log()
    with engine.container("--volume=second:/var/lib/postgresql", *words) as container:
        until_true(postgres.ready)
        assert "restored from its backup" in container.log()
        assert postgres.ask("SELECT sum(b) FROM a") == "3"


def until_true(condition: Callable[[], bool]) -> None:
    for _ in until(60):
        if condition():
            break


def pulls(client: HTTPClient, tag: str, image: Image) -> None:
    """Every byte of it."""
    answer = client.request("GET", f"/v2/test/app/manifests/{tag}")
    assert (answer.status, answer.body) == (200, image.manifest.data)
    for blob in image.blobs:
        answer = client.request("GET", f"/v2/test/app/blobs/{blob.digest}")
        assert answer.status == 307, answer
        assert client.request("GET", answer.location).body == blob.data


def placed(settings: Mapping[str, str], node: Kubo, tags: int) -> None:
    """Wait until the node keeps so many tags and all that they name."""
    for _ in until(60):
        found = command(settings, "resolve", "status", "--repository", "test/app")["tags"]
        roots = {each["root_cid"] for each in found if each["root_cid"]}
        kept = node.run("pin", "ls", "--type=recursive", "--quiet", api=True).stdout.split()
        if len(roots) == tags and roots <= set(kept):
            break


def test_all_comes_back_out_of_the_bucket(
    lease: Callable[[str], AkashPostgres],
    s3: SecureS3,
    new_kubo: Callable[[], Kubo],
    serve: Callable[..., Registry],
) -> None:
    storage = s3.new_storage_url()

    def settings(postgres: AkashPostgres, node: Kubo) -> dict[str, str]:
        return {
            "OPENREGISTRY_DATABASE_URL": postgres.url,
            "OPENREGISTRY_STORAGE_URL": storage,
            "OPENREGISTRY_SECRET_KEY": SECRET,
            "OPENREGISTRY_IPFS_NODES": node.url,
            "OPENREGISTRY_NEW_REPOSITORIES": "public",
            **s3.environment(),
        }

    postgres, node = lease("first"), new_kubo()
    registry = serve(**settings(postgres, node))
    command(registry.settings, "resolver", "choose", "--all", "ipfs")
    first, second, third = (make_image((3000, 200_000), seed) for seed in ("a", "b", "c"))
    client = HTTPClient(registry.host)
    push_image(client, "test/app", first, "v1")
    for _ in until(60):
        if "backup (" in postgres.output():
            break
    assert "ended with status 0" in postgres.output(), postgres.story()
    # In the archived log alone.
    push_image(client, "test/app", second, "v2")
    placed(registry.settings, node, 2)
    segment = postgres.query("SELECT pg_walfile_name(pg_switch_wal())")
    for _ in until(60):
        if postgres.query("SELECT last_archived_wal FROM pg_stat_archiver") >= segment:
            break
    # In the minute that may be lost.
    push_image(client, "test/app", third, "v3")

    # The lease ends, without a word and with all its disks.
    for server in (registry, postgres, node):
        server.kill9()
        shutil.rmtree(server.directory)

    postgres, node = lease("second"), new_kubo()
    assert "restored from its backup" in postgres.output()
    registry = Registry(registry.directory, settings(postgres, node))
    assert "uploads under way" in openregistry(registry.settings, "backup", "settle")
    registry = serve(**settings(postgres, node))
    client = HTTPClient(registry.host)
    pulls(client, "v1", first)
    pulls(client, "v2", second)
    assert client.request("GET", "/v2/test/app/tags/list").json["tags"] == ["v1", "v2"]
    push_image(client, "test/app", third, "v3")
    pulls(client, "v3", third)

    # The node has lost its disk too.
    command(registry.settings, "resolve", "check", "--all")
    placed(registry.settings, node, 3)

    # A container that is made anew on the same disk restores nothing, and loses nothing.
    postgres.restart()
    assert postgres.output().count("restored from its backup") == 1
    pulls(client, "v3", third)


@pytest.mark.parametrize("wrong", ["S3_ENDPOINT", "S3_KEY_SECRET"])
def test_a_bucket_that_does_not_answer_makes_no_empty_database(
    directory: Path, s3: SecureS3, wrong: str
) -> None:
    need("pgbackrest", "pgbackrest")
    need(PROGRAMS / "postgres", "postgresql-15")
    if os.geteuid() != 0:
        pytest.skip("only root runs Postgres and pgBackRest as its user")
    postgres = AkashPostgres(directory / f"wrong-{wrong}", s3)
    postgres.variables[f"PGBACKREST_REPO1_{wrong}"] = f"localhost:{free_port()}"
    postgres.variables["PGBACKREST_IO_TIMEOUT"] = "1"
    with stopping(postgres), pytest.raises(RuntimeError, match="cannot be asked"):
        postgres.start()
    assert not (postgres.disk / "registry/PG_VERSION").exists()
