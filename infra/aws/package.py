"""What goes to AWS: `python -m infra.aws.package` makes, in dist/, a zip of the functions and a
stack's template for each architecture that Lambda has.

A zip holds all that ``app.py`` imports, in the versions that are installed here, since those were
tested; and every module compiled, since on Lambda the code's folder cannot be written to, and
compiling at each cold start would take longer than all else. So it runs on the Python version that
has made it. It is the same to the byte, wherever it is made from the same versions.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import chalice
import chalice.app
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]

MACHINES = {"arm64": "aarch64", "x86_64": "x86_64"}
"""Lambda's architectures, and what everyone else calls them."""

ELF = {"arm64": 183, "x86_64": 62}
"""``e_machine`` of their shared libraries (ELF specification, AArch64 and AMD64 supplements)."""

GLIBC = 26 if sys.version_info < (3, 12) else 34
"""Minor version of Lambda's C library: Python 3.11 runs there on Amazon Linux 2, with glibc 2.26,
later ones on Amazon Linux 2023, with 2.34 (AWS, "Lambda runtimes")."""

SIZE = 120_000_000
"""Bytes that a package may have when unpacked; Lambda takes 250 MB."""

IMPORT = 1.0
"""Seconds of processor time that importing ``app`` from the package may take, on any machine. How
long it should take is for tests/test_cold_start.py."""

SERVICES = {"s3", "sesv2", "sts"}
"""The services of AWS that boto3 is used for. What botocore knows of 400 others, 25 MB, stays
out."""

_STAMP = (1980, 1, 1, 0, 0, 0)
_CHANGING = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}
"""What pip writes down of one installation, and nothing reads at run time."""


class PackageError(Exception):
    """The package cannot be made, or must not go to AWS; the text says why."""


def main() -> None:
    """Make the packages and the templates."""
    parser = argparse.ArgumentParser(prog="python -m infra.aws.package", description=__doc__)
    parser.add_argument("--to", type=Path, default=ROOT / "dist", metavar="FOLDER")
    parser.add_argument(
        "--architecture",
        action="append",
        choices=sorted(MACHINES),
        dest="architectures",
        help="one of Lambda's architectures, by default each",
    )
    parser.add_argument(
        "--template",
        choices=sorted(MACHINES),
        help="print a template, and make nothing",
    )
    options = parser.parse_args()
    try:
        if options.template:
            print(_written(template(options.template)))
            return
        options.to.mkdir(parents=True, exist_ok=True)
        for architecture in options.architectures or sorted(MACHINES):
            size = build(architecture, options.to)
            print(f"lambda-{architecture}.zip: {size / 1e6:.0f} MB unpacked")
    except PackageError as error:
        sys.exit(f"package: {error}")


def build(architecture: str, to: Path) -> int:
    """Make ``lambda-ARCHITECTURE.zip`` and ``stack-ARCHITECTURE.yaml`` in a folder; give the bytes
    of the zip's content. Raises ``PackageError``."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "content")
        folder.mkdir()
        _install(architecture, folder)
        add_functions(folder)
        package = Path(temporary, "package.zip")
        size = finish(folder, package)
        check_libraries(folder, architecture)
        if (sys.platform, os.uname().machine) == ("linux", MACHINES[architecture]):
            seconds = min(import_seconds(folder) for _ in range(3))
            if seconds > IMPORT:
                raise PackageError(f"importing app takes {seconds:.1f} s, and may take {IMPORT} s")
        if size > SIZE:
            raise PackageError(f"{size} bytes when unpacked, and {SIZE} are allowed")
        _place(package, to / f"lambda-{architecture}.zip")
    (to / f"stack-{architecture}.yaml").write_text(_written(template(architecture)))
    return size


def template(architecture: str) -> Any:
    """The stack: what Chalice makes of app.py, with .chalice/resources.yaml merged into it."""
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary, "project")
        project.mkdir()
        _copy_functions(project)
        shutil.copytree(
            ROOT / ".chalice", project / ".chalice", ignore=shutil.ignore_patterns("deploy*")
        )
        (project / "requirements.txt").touch()  # Chalice is to make a template and no package
        made = Path(temporary, "made")
        _run(
            *(sys.executable, "-c", "import sys; from chalice.cli import main; sys.exit(main())"),
            *("--project-dir", project, "package"),
            *("--stage", "prod", "--template-format", "yaml"),
            *("--merge-template", ".chalice/resources.yaml", made),
            AWS_DEFAULT_REGION="us-east-1",
        )
        # Through JSON, since CloudFormation takes no YAML in which one thing stands for another.
        stack = json.loads(json.dumps(yaml.safe_load((made / "sam.yaml").read_text())))
    for resource in stack["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            resource["Properties"]["CodeUri"] = f"lambda-{architecture}.zip"
            resource["Properties"]["Architectures"] = [architecture]
    return stack


def requirements() -> set[str]:
    """The distributions that requirements.txt asks for."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {each.name for each in wanted if each.marker is None or each.marker.evaluate()}


def closure(names: Iterable[str]) -> set[str]:
    """These distributions and all that they require, as installed here."""
    found: set[str] = set()
    wanted = set(names)
    while wanted - found:
        name = (wanted - found).pop()
        found.add(name)
        for line in distribution(name).requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.add(requirement.name)
    return found


def add_functions(folder: Path) -> None:
    """Put ours, and Chalice's part in them, beside what they require."""
    _copy_functions(folder)
    (folder / "chalice").mkdir()
    for module in (chalice, chalice.app):
        shutil.copy(str(module.__file__), folder / "chalice")


def finish(folder: Path, package: Path) -> int:
    """Compile the modules in a folder and put all into a zip; give the bytes of its content."""
    _compile(folder)
    size = 0
    with ZipFile(package, "w", ZIP_DEFLATED) as file:
        for path in sorted(_files(folder)):
            entry = ZipInfo(path.relative_to(folder).as_posix(), _STAMP)
            entry.compress_type = ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            data = path.read_bytes()
            size += len(data)
            file.writestr(entry, data)
    return size


def check_libraries(folder: Path, architecture: str) -> None:
    """Raise ``PackageError`` where Lambda could not load a shared library: it is another
    architecture's, or wants a newer C library."""
    for path in _files(folder):
        data = path.read_bytes()
        if data[:4] != b"\x7fELF":
            continue
        if int.from_bytes(data[18:20], "little") != ELF[architecture]:
            raise PackageError(f"{path.relative_to(folder)} is not for {architecture}")
        wanted = max((int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", data)), default=0)
        if wanted > GLIBC:
            raise PackageError(f"{path.relative_to(folder)} wants glibc 2.{wanted}")


def import_seconds(folder: Path) -> float:
    """Processor time that importing ``app`` takes, with nothing but this folder to import from, and
    an empty environment. Raises ``PackageError`` where it cannot be imported."""
    script = f"import sys; sys.path.append({str(folder)!r}); import time, app"
    command = [sys.executable, "-I", "-S", "-c", f"{script}; print(time.process_time())"]
    done = subprocess.run(command, env={}, cwd="/", capture_output=True, text=True, check=False)
    if done.returncode:
        raise PackageError(f"app cannot be imported from the package: {done.stderr}")
    return float(done.stdout)


def _written(stack: Any) -> str:
    return yaml.safe_dump(stack, sort_keys=False, allow_unicode=True)


def _place(package: Path, place: Path) -> None:
    """Put a package where it belongs, all at once."""
    beside = place.with_suffix(".new")
    shutil.copyfile(package, beside)
    beside.replace(place)


def _install(architecture: str, folder: Path) -> None:
    """Have pip put the requirements' wheels for an architecture there, in the versions that are
    installed here."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        for name in sorted(closure(requirements())):
            constraints.write(f"{name}=={distribution(name).version}\n")
        constraints.flush()
        _run(
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"),
            *("--target", folder, "--no-compile", "--only-binary", ":all:"),
            *("--implementation", "cp", "--python-version", _version()),
            *_platforms(MACHINES[architecture]),
            *("--constraint", constraints.name, "--requirement", ROOT / "requirements.txt"),
        )
    shutil.rmtree(folder / "bin", ignore_errors=True)  # programs, with this machine's paths
    for path in folder.glob("*.dist-info/*"):
        if path.name in _CHANGING:
            path.unlink()
    for path in (folder / "botocore" / "data").iterdir():
        if path.is_dir() and path.name not in SERVICES:
            shutil.rmtree(path)


def _platforms(machine: str) -> Iterator[str]:
    """pip's options for the wheels that Lambda can load (PEP 600)."""
    for minor in range(GLIBC, 16, -1):
        yield f"--platform=manylinux_2_{minor}_{machine}"
    yield f"--platform=manylinux2014_{machine}"


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _copy_functions(folder: Path) -> None:
    shutil.copy(ROOT / "app.py", folder)
    shutil.copytree(
        ROOT / "chalicelib", folder / "chalicelib", ignore=shutil.ignore_patterns("__pycache__")
    )


def _compile(folder: Path) -> None:
    """Compile each module: unchecked, since sources there never change (PEP 552), and in a process
    of its own, since what one has done before shows in what it compiles."""
    _run(
        *(sys.executable, "-s", "-S", "-m", "compileall", "-q", "-f"),
        *("--invalidation-mode", "unchecked-hash", "-s", folder, "-p", "/var/task", folder),
        PYTHONHASHSEED="0",
    )


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _run(*command: object, **environment: str) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(
        words, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PackageError(f"{' '.join(words[:4])} …: {done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
