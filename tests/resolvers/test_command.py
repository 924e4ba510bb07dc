"""`openregistry cid`."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.servers import OPENREGISTRY

HELLO = {
    "unixfs-v1-2025": "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4",
    "unixfs-v0-2015": "QmT78zSuBmuS4z925WZfrqQ1qHaJ56DQaTfyMUF7F8ff5o",
}
"""Of ``hello world`` and a newline, as everybody's first CIDs are."""


def openregistry(*arguments: str, given: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([OPENREGISTRY, *arguments], input=given, capture_output=True)


@pytest.mark.parametrize("profile", HELLO)
def test_it_prints_the_cid_alone(profile: str, tmp_path: Path) -> None:
    file = tmp_path / "hello"
    file.write_bytes(b"hello world\n")
    done = openregistry("cid", "--profile", profile, str(file))
    assert done.stdout.decode() == f"{HELLO[profile]}\n"


def test_of_standard_input_as_json() -> None:
    done = openregistry("cid", "--json", "-", given=b"hello world\n")
    profile = "unixfs-v1-2025"
    assert json.loads(done.stdout) == {"cid": HELLO[profile], "profile": profile, "size": 12}


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = openregistry("cid", str(tmp_path / "none"))
    assert done.returncode == 1
    assert done.stderr.decode() == (
        f"openregistry: {tmp_path}/none cannot be read: No such file or directory\n"
    )
