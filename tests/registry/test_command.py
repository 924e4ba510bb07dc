"""`openregistry quota` and `openregistry block`, as an operator types them."""

import pytest

from chalicelib.settings import parse_size
from tests.accounts import command
from tests.client import HTTPClient, push_blob, sha256
from tests.identity.test_command import Desk
from tests.servers import Registry


def test_quotas(registry: Registry) -> None:
    desk = Desk(registry.settings)
    push_blob(HTTPClient(registry.host), "desk/app", b"12345")
    quota = {"account": "desk", "own": True, "bytes": 10 << 30, "repositories": 5,
             "used_bytes": 5, "used_repositories": 1}  # fmt: skip
    words = ("--account", "desk", "--bytes", "10G", "--repositories", "5")
    assert desk.json("quota", "set", *words) == quota
    assert desk.json("quota", "show", "--account", "desk") == quota
    assert quota in desk.json("quota", "list")["accounts"]
    assert "desk has 5 bytes and 1 repositories, and may have 10737418240 bytes" in desk.say(
        "quota", "list"
    )
    assert desk.json("quota", "unset", "--account", "desk") == {"account": "desk", "unset": True}
    assert desk.json("quota", "show", "--account", "desk") == {
        **quota, "own": False, "bytes": None, "repositories": None,
    }  # fmt: skip
    assert "no quota of its own" in desk.refused("quota", "unset", "--account", "desk")
    assert "'10 elephants'" in desk.refused("quota", "set", *words[:2], "--bytes", "10 elephants")
    assert "lower-case" in desk.refused("quota", "set", "--account", "a/b")


def test_blocks(registry: Registry) -> None:
    desk, digest = Desk(registry.settings), sha256(b"a blocked blob")
    push_blob(HTTPClient(registry.host), "desk/app", b"a blocked blob")
    added = command(registry.settings, "block", "add", digest, "--reason", "a leaked key")
    assert added == {"digest": digest, "blocked": True, "repositories": ["desk/app"]}
    [block] = [each for each in desk.json("block", "list") if each["digest"] == digest]
    assert (block["reason"], block["public"], block["blocked_by"]) == (
        "a leaked key", False, "operator",
    )  # fmt: skip
    assert f"{digest}  " in desk.say("block", "list")
    assert desk.json("block", "remove", digest) == {"digest": digest, "blocked": False}
    assert "is not blocked" in desk.refused("block", "remove", digest)
    assert "sha256:" in desk.refused("block", "add", "sha256:ab", "--reason", "x")
    assert "Say why" in desk.refused("block", "add", digest, "--reason", " ")


@pytest.mark.parametrize(("text", "size"), [("0", 0), ("1K", 1 << 10), ("2TiB", 2 << 40)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
