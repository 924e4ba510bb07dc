"""The stack as `chalice package` makes it, without asking for anything from outside."""

import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

from tests.hosts.lambda_runtime import ROOT
from tests.servers import BIN, run

PROVIDED = {"boto3"}
"""What Lambda's runtime has; leaving it out of the tests' packages saves time."""


def package(directory: Path, *, packages: bool = False) -> Any:
    """Make ``directory/out`` with ``deployment.zip``; give the template that goes with it.

    With ``packages`` the requirements go in, copied from where the tests run: Chalice would ask
    pip for them.
    """
    project = directory / "project"
    project.mkdir()
    shutil.copy(ROOT / "app.py", project)
    ignored = shutil.ignore_patterns("__pycache__", "deployed", "deployments")
    for folder in (".chalice", "chalicelib"):
        shutil.copytree(ROOT / folder, project / folder, ignore=ignored)
    (project / "requirements.txt").write_text("")
    vendor = project / "vendor"
    vendor.mkdir()
    if packages:
        names = {requirement.name for requirement in _requirements()} - PROVIDED
        for name in _closure(names):
            _copy(name, vendor)
    run(
        *(BIN / "chalice", "--project-dir", project, "package", "--stage", "prod"),
        *("--template-format", "yaml", "--merge-template", ".chalice/resources.yaml"),
        directory / "out",
        AWS_DEFAULT_REGION="us-east-1",
    )
    run(sys.executable, ROOT / ".chalice" / "precompile.py", directory / "out" / "deployment.zip")
    return yaml.safe_load((directory / "out" / "sam.yaml").read_text())


def _requirements() -> list[Requirement]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def _closure(names: set[str]) -> set[str]:
    """These distributions and all that they require here."""
    found: set[str] = set()
    while names - found:
        name = (names - found).pop()
        found.add(name)
        for line in distribution(name).requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                names = names | {requirement.name}
    return found


def _copy(name: str, target: Path) -> None:
    try:
        files = distribution(name).files or []
    except PackageNotFoundError:
        raise AssertionError(f"{name} is in requirements.txt and not installed") from None
    for file in files:
        if file.parts[0] != ".." and "__pycache__" not in file.parts:
            place = target / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), place)
