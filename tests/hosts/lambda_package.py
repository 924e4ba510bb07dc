"""The stack as `make package` makes it, without asking for anything from outside."""

import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from infra.aws.package import add_functions, closure, finish, requirements, template

PROVIDED = {"boto3"}
"""What Lambda's runtime has; leaving it out of the tests' packages saves time."""


def package(directory: Path, *, packages: bool = False) -> Any:
    """Make ``directory/out`` with ``deployment.zip``; give the template that goes with it.

    With ``packages`` the requirements go in, copied from where the tests run: pip would take long.
    """
    content, out = directory / "content", directory / "out"
    content.mkdir()
    out.mkdir()
    if packages:
        for name in closure(requirements() - PROVIDED):
            _copy(name, content)
    add_functions(content)
    finish(content, out / "deployment.zip")
    return template("x86_64")


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
