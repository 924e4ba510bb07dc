"""`openregistry tag`, `immutable-tags` and `retention`, as an operator types them, beside an open
registry."""

import pytest

from chalicelib import cli
from tests.client import HTTPClient, push_image, push_manifest
from tests.identity.test_command import Desk
from tests.images import Image, make_image
from tests.servers import Registry


class Shop:
    """A repository, and an operator's desk."""

    def __init__(self, registry: Registry, name: str) -> None:
        self.desk, self.name = Desk(registry.settings), name
        self.client = HTTPClient(registry.host)
        self.images = [make_image((10,), f"{name} {number}") for number in range(3)]
        for image in self.images:
            push_image(self.client, name, image)

    def push(self, image: Image, tag: str) -> int:
        return push_manifest(self.client, self.name, image.manifest, tag).status


def test_immutable_tags(registry: Registry) -> None:
    shop = Shop(registry, "rules/immutable")
    desk, where = shop.desk, ("--repository", shop.name)
    first, second, _ = shop.images
    assert shop.push(first, "v1") == 201
    added = desk.json("immutable-tags", "add", *where, "v*", "--except", "*-rc", "--except", "vx")
    rule = added.pop("id")
    assert added == {"pattern": "v*", "exceptions": ["*-rc", "vx"]}
    assert shop.push(second, "v1") == 403
    [listed] = desk.json("immutable-tags", "list", *where)
    assert (listed["id"], listed["created_by"]) == (rule, "operator")
    assert f"{rule}  v*  except *-rc, vx" in desk.say("immutable-tags", "list", *where)
    assert "is removed" in desk.say("immutable-tags", "remove", *where, str(rule))
    assert f"no rule {rule} here" in desk.refused("immutable-tags", "remove", *where, str(rule))
    assert shop.push(second, "v1") == 201
    assert "A pattern of tags" in desk.refused("immutable-tags", "add", *where, "a b")
    beyond = desk.run("immutable-tags", "remove", *where, "99999999999999999999")
    assert (beyond.returncode, b"must be a number from 0 to" in beyond.stderr) == (2, True)
    for option in ("--repository", "--account"):
        assert "there is no" in desk.refused("immutable-tags", "list", option, "not/there")
        refused = desk.refused("immutable-tags", "list", option, b"\xff", status=2)
        assert refused == "what was given is not UTF-8"


def test_tags(registry: Registry) -> None:
    shop = Shop(registry, "rules/tags")
    desk = shop.desk
    first, second = (image.manifest.digest for image in shop.images[:2])
    for image in shop.images[:2]:
        shop.push(image, "v1")
    moves = desk.json("tag", "history", shop.name, "v1")
    assert [(each["digest"], each["exists"]) for each in moves] == [(second, True), (first, True)]
    shop.client.request("DELETE", f"/v2/{shop.name}/manifests/v1")
    assert desk.json("tag", "restore", shop.name, "v1") == {
        "tag": "v1", "digest": second, "previous": None,
    }  # fmt: skip
    assert f"v1 points to {first}" in desk.say("tag", "restore", shop.name, "v1", "--digest", first)
    lines = desk.say("tag", "history", shop.name).splitlines()
    assert [line.split()[3] for line in lines] == [first, second, "deleted", second, first]
    assert lines[0].endswith("operator")
    shop.client.request("DELETE", f"/v2/{shop.name}/manifests/{second}")
    assert desk.say("tag", "history", shop.name).count("(gone)") == 2
    refused = desk.refused("tag", "restore", shop.name, "v1", "--digest", second)
    assert f"{second} is gone" in refused
    assert "never anywhere else" in desk.refused("tag", "restore", shop.name, "v2")
    assert "no repository" in desk.refused("tag", "history", "not/there")
    assert "digest" in desk.refused("tag", "restore", shop.name, "v1", "--digest", "x")


def test_retention(registry: Registry) -> None:
    shop = Shop(registry, "rules/retention")
    desk, where = shop.desk, ("--repository", shop.name)
    for number, image in enumerate(shop.images):
        shop.push(image, f"v{number}")
    assert "everything is kept" in desk.refused("retention", "show", *where)
    assert "everything is kept" in desk.refused("retention", "run", *where)
    [tried] = desk.json("retention", "run", *where, "--dry-run", "--keep-matching", "v0")
    assert [each["tag"] for each in tried["kept"]] == ["v0"]
    assert [each["tag"] for each in tried["removed"]] == ["v2", "v1"]

    policy = {
        "keep_last": 1, "keep_newer": None, "keep_matching": ["x*", "v1"],
        "keep_pulled": 30 * 86400, "untagged_after": None,
    }  # fmt: skip
    rules = ("--keep-last", "1", "--keep-matching", "x*", "--keep-matching", "v1",
             "--keep-pulled", "30d", "--untagged-after", "never")  # fmt: skip
    assert desk.json("retention", "set", *where, *rules) == policy
    assert desk.json("retention", "show", *where) == policy
    assert "the last 1; those like x*; those like v1" in desk.say("retention", "show", *where)

    dry = desk.say("retention", "run", *where, "--dry-run")
    assert f"{shop.name}: 1 tags and 0 manifests would go, 2 tags stay" in dry
    assert "among the last 1" in dry
    assert "no rule keeps it" in dry
    reports = desk.json("retention", "run")
    [done] = [each for each in reports if each["repository"] == shop.name]
    assert [each["tag"] for each in done["removed"]] == ["v0"]
    answer = shop.client.request("GET", f"/v2/{shop.name}/tags/list")
    assert answer.json["tags"] == ["v1", "v2"]
    assert "0 tags and 0 manifests removed" in desk.say("retention", "run", *where)

    assert "taken away" in desk.say("retention", "unset", *where)
    assert "no policy" in desk.refused("retention", "unset", *where)
    assert "--dry-run" in desk.refused("retention", "run", *where, "--keep-last", "1")


def test_what_is_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    for rule in (("--keep-newer", "soon"), ("--untagged-after", "5 elephants")):
        with pytest.raises(SystemExit):
            cli.main(["retention", "set", "--repository", "a", *rule])
        assert f"argument {rule[0]}: {rule[1]!r} must be" in capsys.readouterr().err
