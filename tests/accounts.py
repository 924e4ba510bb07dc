"""Accounts, made as an operator makes them: at the command line, beside a registry that runs."""

import json
import os
import subprocess
from collections.abc import Mapping
from typing import Any

from tests.servers import OPENREGISTRY


def command(settings: Mapping[str, str], *words: str, stdin: str = "") -> Any:
    """Run `openregistry …  --json` with a registry's settings; its answer."""
    others = {name: value for name, value in os.environ.items() if "OPENREGISTRY" not in name}
    done = subprocess.run(
        [OPENREGISTRY, *words, "--json"],
        env={**others, **settings},
        input=stdin.encode(),
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return json.loads(done.stdout)


def add_user(
    settings: Mapping[str, str], name: str, password: str, *, administrator: bool = False
) -> None:
    """Make a user, whose email counts as verified."""
    options = ["--admin"] if administrator else []
    email = ("--email", f"{name}@example.org")
    command(settings, "user", "add", name, *email, "--password-stdin", *options, stdin=password)


def create_token(settings: Mapping[str, str], user: str, *scopes: str) -> str:
    """Make an access token of a user."""
    words = [word for scope in scopes for word in ("--scope", scope)]
    token: str = command(settings, "token", "create", "--user", user, *words)["token"]
    return token


def set_visibility(settings: Mapping[str, str], repository: str, visibility: str) -> None:
    """Say who may pull from a repository."""
    command(settings, "repo", "visibility", repository, visibility)
