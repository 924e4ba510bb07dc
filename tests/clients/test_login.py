"""Clients log in to a registry with accounts, push, pull and log out. Without a login they pull
what is public, and nothing else."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.accounts import add_user, create_token, set_visibility
from tests.client import push_image
from tests.clients.programs import client
from tests.conftest import need
from tests.hosts.lambda_registry import LoggedIn
from tests.images import make_bytes, make_image, write_docker_archive, write_layout
from tests.servers import Postgres, Registry, run, stopping

PASSWORD = "difference : engine, für 分析"


@pytest.fixture(scope="module")
def guarded(directory: Path, postgres: Postgres) -> Iterator[Registry]:
    """A registry with accounts, and the repositories ada/public and ada/private with a tag 1."""
    settings = {
        "OPENREGISTRY_ACCESS": "accounts",
        "OPENREGISTRY_DATABASE_URL": postgres.new_database(),
    }
    server = Registry(directory / "login", settings)
    with stopping(server):
        server.start()
        add_user(server.settings, "ada", PASSWORD)
        owner = LoggedIn(server.host, "ada", PASSWORD)
        for name in ("public", "private"):
            push_image(owner, f"ada/{name}", make_image((1000,), name), "1")
        set_visibility(server.settings, "ada/public", "public")
        yield server


class Program(NamedTuple):
    """What a person does with a client. Each raises ``AssertionError`` with the client's words
    where it fails; ``push`` pushes an image that it makes, of which ``pull`` has nothing left."""

    login: Callable[[str, str], object]
    logout: Callable[[], object]
    push: Callable[[str], object]
    pull: Callable[[str], object]


Make = Callable[[str], Program]


@pytest.fixture
def program(name: str, guarded: Registry, request: pytest.FixtureRequest) -> Program:
    """The client of that name."""
    make: Make = request.getfixturevalue(name)
    return make(guarded.host)


@pytest.fixture
def docker_client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    docker = request.getfixturevalue("docker")

    def make(host: str) -> Program:
        def push(name: str) -> None:
            archive = write_docker_archive(tmp_path / "image.tar", make_image((1000,), name), name)
            docker.run("load", "--input", archive)
            docker.run("push", name)

        def pull(name: str) -> None:
            docker.run("image", "prune", "--all", "--force")
            docker.run("pull", name)

        return Program(
            lambda user, password: docker.run(
                "login", "--username", user, "--password", password, host
            ),
            lambda: docker.run("logout", host),
            push,
            pull,
        )

    yield make
    docker.run("image", "prune", "--all", "--force")


def containers(name: str, directory: Path, layouts: Path) -> Iterator[Make]:
    """podman or buildah, with a storage that is gone in the end."""
    need(name, name)
    home = Path(tempfile.mkdtemp(prefix="l-", dir=directory))
    storage = [f"--root={home / 'root'}", f"--runroot={home / 'run'}", "--storage-driver=vfs"]
    if name == "podman":
        storage += [f"--tmpdir={home / 'tmp'}", "--cgroup-manager=cgroupfs"]
        storage += ["--events-backend=none"]
    there = ("--tls-verify=false", "--authfile", home / "auth.json")
    (home / "auth.json").write_text("{}")

    def make(host: str) -> Program:
        def push(tag: str) -> None:
            shutil.rmtree(layouts / "layout", ignore_errors=True)
            layout = write_layout(layouts / "layout", [make_image((1000,), tag)])
            image = run(name, *storage, "pull", "--quiet", f"oci:{layout}:latest").stdout.split()
            run(name, *storage, "tag", image[-1], tag)
            run(name, *storage, "push", *there, tag)

        def pull(tag: str) -> None:
            run(name, *storage, "rmi", "--all", "--force")
            run(name, *storage, "pull", *there, tag)

        def login(user: str, password: str) -> None:
            run(name, "login", *there, "--username", user, "--password", password, host)

        return Program(
            login,
            lambda: run(name, "logout", "--authfile", home / "auth.json", host),
            push,
            pull,
        )

    yield make
    run(name, *storage, "rmi", "--all", "--force")


@pytest.fixture
def podman_client(directory: Path, tmp_path: Path) -> Iterator[Make]:
    yield from containers("podman", directory, tmp_path)


@pytest.fixture
def buildah_client(directory: Path, tmp_path: Path) -> Iterator[Make]:
    yield from containers("buildah", directory, tmp_path)


@pytest.fixture
def skopeo_client(tmp_path: Path) -> Make:
    need("skopeo", "skopeo")
    auth = ("--authfile", tmp_path / "auth.json")
    (tmp_path / "auth.json").write_text("{}")

    def make(host: str) -> Program:
        def push(name: str) -> None:
            shutil.rmtree(tmp_path / "layout", ignore_errors=True)
            layout = write_layout(tmp_path / "layout", [make_image((1000,), name)])
            source, target = f"oci:{layout}:latest", f"docker://{name}"
            run("skopeo", "copy", "--dest-tls-verify=false", *auth, source, target)

        def pull(name: str) -> None:
            target = tempfile.mkdtemp(dir=tmp_path)
            run("skopeo", "copy", "--src-tls-verify=false", *auth, f"docker://{name}",
                f"dir:{target}")  # fmt: skip

        def login(user: str, password: str) -> None:
            words = ("--username", user, "--password", password)
            run("skopeo", "login", "--tls-verify=false", *auth, *words, host)

        return Program(
            login,
            lambda: run("skopeo", "logout", *auth, host),
            push,
            pull,
        )

    return make


@pytest.fixture
def crane_client(tmp_path: Path) -> Make:
    crane = client("crane", tmp_path)

    def make(host: str) -> Program:
        def login(user: str, password: str) -> None:
            # It only writes the password down.
            crane("auth", "login", host, "-u", user, "-p", password)
            crane("catalog", host)

        return Program(
            login,
            lambda: crane("auth", "logout", host),
            lambda name: crane("push", _layout(tmp_path, name), name),
            lambda name: crane("pull", "--format=oci", name, tempfile.mkdtemp(dir=tmp_path)),
        )

    return make


@pytest.fixture
def oras_client(tmp_path: Path) -> Make:
    oras = client("oras", tmp_path)

    def make(host: str) -> Program:
        def push(name: str) -> None:
            (tmp_path / "file").write_bytes(make_bytes(1000, name))
            oras("push", "--plain-http", name, "file:application/vnd.example.data")

        return Program(
            lambda user, password: oras("login", "--plain-http", "-u", user, "-p", password, host),
            lambda: oras("logout", host),
            push,
            lambda name: oras("pull", "--plain-http", f"--output={tempfile.mkdtemp()}", name),
        )

    return make


@pytest.fixture
def regctl_client(tmp_path: Path) -> Make:
    regctl = client("regctl", tmp_path)

    def make(host: str) -> Program:
        regctl("registry", "set", "--tls=disabled", "--skip-check", host)

        def pull(name: str) -> None:
            regctl("image", "copy", name, f"ocidir://{tempfile.mkdtemp(dir=tmp_path)}:1")

        return Program(
            lambda user, password: regctl("registry", "login", "-u", user, "-p", password, host),
            lambda: regctl("registry", "logout", host),
            lambda name: regctl(
                "image", "copy", f"ocidir://{_layout(tmp_path, name)}:latest", name
            ),
            pull,
        )

    return make


@pytest.fixture
def helm_client(tmp_path: Path) -> Make:
    helm = client("helm", tmp_path)

    def make(host: str) -> Program:
        def push(name: str) -> None:
            charts, _, chart = name.rpartition(":")[0].rpartition("/")
            helm("create", chart)
            helm("package", chart, "--version=1.0.0")
            helm("push", f"{chart}-1.0.0.tgz", f"oci://{charts}", "--plain-http")

        def pull(name: str) -> None:
            to = f"--destination={tempfile.mkdtemp(dir=tmp_path)}"
            chart = name.removesuffix(":1")
            helm("pull", f"oci://{chart}", "--version=1.0.0", "--plain-http", to)

        login = ("registry", "login", "--plain-http", "--username")
        return Program(
            lambda user, password: helm(*login, user, "--password", password, host),
            lambda: helm("registry", "logout", host),
            push,
            pull,
        )

    return make


def _layout(directory: Path, name: str) -> Path:
    return write_layout(Path(tempfile.mkdtemp(dir=directory)) / "it", [make_image((1000,), name)])


def long(*names: str) -> list[object]:
    """Names of clients that are built first."""
    return [pytest.param(name, marks=pytest.mark.long) for name in names]


NAMES = ["docker_client", "podman_client", "buildah_client", "skopeo_client",
         *long("crane_client", "oras_client", "regctl_client")]  # fmt: skip
REFUSED = "(?i)unauthorized|authentication required|invalid username/password|denied|401"


@pytest.mark.parametrize("kind", ["password", "token"])
@pytest.mark.parametrize("name", [*NAMES, *long("helm_client")])
def test_login_push_pull_logout(name: str, kind: str, program: Program, guarded: Registry) -> None:
    """With a person's own password, and with an access token in its place."""
    user = f"{name.removesuffix('_client')}-{kind}"  # whoever is wrong often has to wait
    add_user(guarded.settings, user, PASSWORD)
    image = f"{guarded.host}/{user}/image:1"
    password = PASSWORD
    if kind == "token":
        password = create_token(guarded.settings, user, f"repository:{user}/*:pull,push")
    with pytest.raises(AssertionError, match=REFUSED):
        program.push(image)
    with pytest.raises(AssertionError, match=REFUSED):
        program.login(user, "difference")
    program.login(user, password)
    try:
        program.push(image)
        program.pull(image)
        with pytest.raises(AssertionError, match=REFUSED):
            program.push(f"{guarded.host}/ada/public:2")
    finally:
        program.logout()
    with pytest.raises(AssertionError, match=REFUSED):
        program.pull(image)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_login(name: str, program: Program, guarded: Registry) -> None:
    """What is private is refused just as what is not there."""
    program.pull(f"{guarded.host}/ada/public:1")
    for repository in ("private", "absent"):
        with pytest.raises(AssertionError, match=REFUSED):
            program.pull(f"{guarded.host}/ada/{repository}:1")
    with pytest.raises(AssertionError, match=REFUSED):
        program.push(f"{guarded.host}/ada/public:2")
