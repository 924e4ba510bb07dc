"""The commands in README.md, CONTRIBUTING.md and docs/ are run, page by page, as they stand.

Blocks marked `sh` are run in order by one shell after the other, in a copy of the working tree. A
block that starts what stays, as `make run` does, is marked `sh background`: what follows waits
until the registry serves. A block that cannot be run here is marked `sh skip: REASON`. Port 5000
is replaced by a free one, and so is that of a proxy.
"""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from textwrap import dedent

import pytest

from chalicelib.settings import Settings
from tests.conftest import need
from tests.servers import DOCKER, S3, DockerEngine, Kubo, answers, free_port, wait_until

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEST = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)`")
FENCE = re.compile(r"^( *)```(\w*) *([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
PROGRAMS = ("buildah", "curl", "openssl", "podman", "skopeo")
"""Programs that are not on every machine, each in the Debian package of its name."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    line: int
    language: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"line {self.line}:\n{self.text}"

    @property
    def skipped(self) -> bool:
        """Whether the page says that it cannot be run."""
        return self.mark.startswith("skip: ")


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page of Markdown."""
    return [
        Block(page.count("\n", 0, match.start()) + 2, match[2], match[3].strip(), dedent(match[4]))
        for match in FENCE.finditer(page)
    ]


class Shell:
    """Runs blocks, each with the directory and the variables that the one before left."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._state = directory / "state"
        self._state.write_text(f"cd '{directory / 'checkout'}'\n")
        self._environment = environment
        self._background: list[subprocess.Popen[bytes]] = []
        self._log = directory / "background.log"

    def run(self, block: Block) -> None:
        """Run a block; the test fails with the first command that does."""
        script = (
            f". '{self._state}'\nset -e\n{block.text}\n"
            f"{{ export -p; echo cd \"'$PWD'\"; }} > '{self._state}'"
        )
        done = subprocess.run(
            ["sh", "-c", script],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{self.output()}"

    def start(self, block: Block, path: str) -> None:
        """Start a block that stays, and wait until there is an answer at HOST:PORT/PATH."""
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                ["sh", "-c", f". '{self._state}'\n{block.text}"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._background.append(process)
        wait_until(
            lambda: any(answers(f"{scheme}://{path}") for scheme in ("http", "https")),
            60,
            lambda: f"the registry to serve:\n{block}\n{self.output()}",
            lambda: process.poll() is None,
        )

    def output(self) -> str:
        """What the blocks that stay have written."""
        return self._log.read_text() if self._log.exists() else ""

    def close(self) -> None:
        """End what stays."""
        for process in self._background:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def copy_of_the_working_tree(directory: Path) -> None:
    """Copy what git knows or would add, set up with the packages of the tests' own environment."""
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, directory / name)
    venv = directory / ".venv"
    venv.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (venv / name).symlink_to(Path(sys.prefix) / name)
    for stamp in (".installed", ".installed-tests", ".installed-lint"):
        (venv / stamp).touch()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables that keep what a page's commands leave behind within the test."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "docker").symlink_to(DOCKER)
    storage = tmp_path / "storage.conf"
    storage.write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/images"\nrunroot = "{tmp_path}/run"\n'
    )
    return {
        "HOME": str(tmp_path),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "CONTAINERS_STORAGE_CONF": str(storage),
    }


@pytest.fixture
def shell(tmp_path: Path, environment: dict[str, str]) -> Iterator[Shell]:
    copy_of_the_working_tree(tmp_path / "checkout")
    with closing(Shell(tmp_path, environment)) as shell:
        yield shell


LONG = {"accounts.md", "big-layers.md", "ipfs.md", "jobs.md", "lambda.md"}
"""Pages whose commands take long: there are many; layers are large; a node of IPFS is among the
programs that are built; pip makes a package of all that the functions import."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.long] if page.name in LONG else []) for page in PAGES],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_commands(
    page: Path,
    shell: Shell,
    environment: dict[str, str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    port = free_port()
    text = page.read_text().replace(":5000", f":{port}")
    if page.name == "ipfs.md":
        node: Kubo = request.getfixturevalue("new_kubo")()
        text = text.replace("http://127.0.0.1:5001", node.url)
        text = text.replace("http://127.0.0.1:8080", node.gateway)
        environment |= node.environment()
        (tmp_path / "programs" / "ipfs").symlink_to(node.program)
    proxy = free_port()
    if page.name == "big-layers.md":
        s3: S3 = request.getfixturevalue("s3_server")
        text = text.replace(":5001", f":{proxy}")
        environment |= s3.environment()
        environment["OPENREGISTRY_STORAGE_URL"] = s3.new_storage_url()
    environment["OPENREGISTRY_LISTEN"] = f"127.0.0.1:{port}"
    blocks = [block for block in blocks_of(text) if block.language == "sh" and not block.skipped]
    commands = "\n".join(block.text for block in blocks)
    for program in PROGRAMS:
        if re.search(rf"\b{program} ", commands):
            need(program, program)
    if re.search(r"\bdocker ", commands):
        docker: DockerEngine = request.getfixturevalue("docker")
        environment["DOCKER_HOST"] = f"unix://{docker.socket}"
    for block in blocks:
        if block.mark == "background":
            proxies = "openregistry proxy" in block.text
            path = f"{proxy}/health" if proxies else f"{port}/ready"
            shell.start(block, f"127.0.0.1:{path}")
        else:
            shell.run(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_marks(page: Path) -> None:
    """No command hides behind another language or a misspelt mark, and no target is made up."""
    text = page.read_text()
    for block in blocks_of(text):
        assert block.language not in ("bash", "console", "shell", "zsh"), f"use `sh`: {block}"
        if block.language == "sh":
            assert block.mark in ("", "background") or block.skipped, str(block)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= set(targets)


def functions_of(module: Path) -> set[str]:
    """The functions of a module of tests, as pytest names them."""
    names: set[str] = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            inner = [each.name for each in node.body if isinstance(each, ast.FunctionDef)]
            names |= {f"{node.name}::{name}" for name in inner}
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_tests(page: Path) -> None:
    """Each test that a page names is there."""
    named = set(TEST.findall(page.read_text()))
    missing = [f"{path}::{name}" for path, name in named if name not in functions_of(ROOT / path)]
    assert not missing
    if page.name == "security.md":
        assert len(named) > 100


def test_settings() -> None:
    """The README's table has every setting, and no other."""
    rows = re.findall(r"^\| `OPENREGISTRY_.*", (ROOT / "README.md").read_text(), re.MULTILINE)
    cells = [row.split(" | ")[0] for row in rows]
    named = [name for cell in cells for name in re.findall(r"`(?:OPENREGISTRY|…)_(\w+)`", cell)]
    assert sorted(named) == sorted(each.name.upper() for each in fields(Settings))
