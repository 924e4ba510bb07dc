"""Immutable tags: neither moved nor deleted by any way, until the rule is taken away."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.http import Denied
from chalicelib.identity import repositories as owned
from chalicelib.identity.users import Refused
from chalicelib.metadata import audit, manifests, repositories, tags
from chalicelib.metadata import immutable_tags as rows
from chalicelib.metadata.database import Database, Transaction
from chalicelib.metadata.grants import Place
from chalicelib.registry import immutable_tags
from tests.client import Answer, Client, CoreClient, push_image, push_manifest
from tests.images import Image, make_image


class Home:
    """A repository with images that are pushed, and no tags yet."""

    def __init__(self, context: Context, name: str) -> None:
        self.database: Database = context.database
        self.client: Client = CoreClient(context)
        self.name = name
        self.images = [make_image((10,), f"{name} {number}") for number in range(2)]
        for image in self.images:
            push_image(self.client, name, image)
        found = repositories.find(self.database, name)
        assert found is not None
        self.place = Place(repository=found.id)

    def push(self, image: Image, tag: str) -> Answer:
        return push_manifest(self.client, self.name, image.manifest, tag)

    def delete(self, reference: str) -> Answer:
        return self.client.request("DELETE", f"/v2/{self.name}/manifests/{reference}")

    def digest(self, tag: str) -> str:
        answer = self.client.request("HEAD", f"/v2/{self.name}/manifests/{tag}")
        return answer.headers.get("Docker-Content-Digest", "")

    def keep(self, pattern: str, *exceptions: str) -> rows.Rule:
        return immutable_tags.create(
            self.database, self.place, None, pattern, exceptions, by="operator"
        )


@pytest.fixture
def home(file_context: Context, repository: str) -> Home:
    return Home(file_context, repository)


def refused(home: Home, answer: Answer, tag: str, rule: rows.Rule) -> None:
    """The answer says which tag, which rule, and what to do."""
    assert (answer.status, answer.code) == (403, "DENIED")
    [error] = answer.json["errors"]
    for word in (tag, home.name, f"rule {rule.id}", rule.pattern, "Push another tag", "remove"):
        assert word in error["message"]
    assert error["detail"] == {
        "tag": tag,
        "repository": home.name,
        "rule": rule.id,
        "pattern": rule.pattern,
        "account": None,
    }


def test_a_tag_that_matches_is_not_moved(home: Home) -> None:
    first, second = home.images
    rule = home.keep("v*")
    assert home.push(first, "v1").status == 201
    refused(home, home.push(second, "v1"), "v1", rule)
    assert home.push(first, "v1").status == 201, "the same again"
    assert home.digest("v1") == first.manifest.digest
    assert home.push(second, "v2").status == 201
    for image in (first, second):
        assert home.push(image, "latest").status == 201
    # Nothing of a push is kept that one tag of it fails.
    both = push_manifest(home.client, home.name, second.manifest, parameters="?tag=a&tag=v1")
    refused(home, both, "v1", rule)
    assert home.digest("a") == ""


def test_a_tag_that_matches_is_not_deleted(home: Home) -> None:
    first, _ = home.images
    home.push(first, "v1")
    home.push(first, "free")
    rule = home.keep("v*")
    refused(home, home.delete("v1"), "v1", rule)
    assert home.delete("free").status == 202
    refused(home, home.delete(first.manifest.digest), "v1", rule)
    assert home.digest("v1") == first.manifest.digest
    moves = home.database.run(
        "SELECT name FROM tag_history WHERE repository_id = :id AND digest IS NULL",
        id=home.place.repository,
    )
    assert moves == [["free"]]


def test_no_statement_gets_past_a_rule(home: Home) -> None:
    """Whatever code is written later."""
    first, second = home.images
    home.push(first, "v1")
    home.keep("v1")
    for statement in (
        "DELETE FROM tags WHERE repository_id = :id",
        "DELETE FROM manifests WHERE repository_id = :id",
        "UPDATE tags SET name = 'other' WHERE repository_id = :id",
        "UPDATE tags SET digest = :digest WHERE repository_id = :id",
    ):
        values = {"digest": digests.pack(second.manifest.digest)} if ":digest" in statement else {}
        with pytest.raises(Denied):
            home.database.run(statement, id=home.place.repository, **values)
    home.database.run(
        "UPDATE tags SET pushed_at = now() WHERE repository_id = :id", id=home.place.repository
    )


def test_exceptions(home: Home) -> None:
    first, second = home.images
    home.keep("*", "latest", "dev-*")
    for tag in ("latest", "dev-1", "1.0", "late", "dev"):
        home.push(first, tag)
    assert [home.push(second, tag).status for tag in ("latest", "dev-1")] == [201, 201]
    assert [home.push(second, tag).status for tag in ("1.0", "late", "dev")] == [403] * 3


def test_the_rule_has_to_go_first(home: Home) -> None:
    first, second = home.images
    rule = home.keep("*")
    home.push(first, "v1")
    assert home.push(second, "v1").status == 403
    assert immutable_tags.remove(home.database, home.place, None, rule.id, by="account:7")
    assert not immutable_tags.remove(home.database, home.place, None, rule.id, by="account:7")
    assert home.push(second, "v1").status == 201
    assert home.delete("v1").status == 202
    events = [
        (each.event, each.subject, each.detail["pattern"])
        for each in audit.page(home.database, 100)
        if each.repository == home.place.repository and each.event.startswith("immutable")
    ]
    assert events == [
        ("immutable_tags.delete", "account:7", "*"),
        ("immutable_tags.create", "operator", "*"),
    ]


def test_another_repository_is_another(home: Home, file_context: Context) -> None:
    other = Home(file_context, f"{home.name}/other")
    home.keep("*")
    first, second = other.images
    assert [other.push(image, "v1").status for image in (first, second)] == [201, 201]
    [rule] = rows.listed(home.database, home.place, 0, 10)
    assert not immutable_tags.remove(home.database, other.place, None, rule.id, by="operator")


def test_a_repository_is_deleted_with_its_immutable_tags(home: Home) -> None:
    """It is its administrator's to delete, and noted. The next transaction knows nothing of it."""
    home.keep("*")
    home.push(home.images[0], "v1")
    owned.delete(home.database, home.name, by="account:7")
    assert repositories.find(home.database, home.name) is None
    [setting] = home.database.run(
        "SELECT coalesce(current_setting('openregistry.deleted_repository', true), '')"
    )
    assert setting == [""]


def test_two_push_one_new_tag_at_once(home: Home) -> None:
    """The second waits for the first, and then finds its digest."""
    rule = home.keep("v*")
    first, second = (digests.pack(image.manifest.digest) for image in home.images)
    pushed, ended = threading.Event(), threading.Event()
    repository = home.place.repository
    assert repository is not None

    def slowly(transaction: Transaction) -> None:
        tags.move(transaction, repository, "v1", first, "account:1")
        pushed.set()
        assert not ended.wait(0.3), "the other one has to wait"

    with ThreadPoolExecutor(2) as pool:
        winner = pool.submit(home.database.transaction, slowly)
        assert pushed.wait(5)
        loser = pool.submit(home.push, home.images[1], "v1")
        loser.add_done_callback(lambda _: ended.set())
        winner.result()
        refused(home, loser.result(), "v1", rule)
    assert home.digest("v1") == home.images[0].manifest.digest
    assert second != first


def test_many_push_one_new_tag_at_once(home: Home) -> None:
    home.keep("v*")
    images = [make_image((10,), f"{home.name} many {number}") for number in range(4)]
    for image in images:
        push_image(home.client, home.name, image)
    with ThreadPoolExecutor(4) as pool:
        for number in range(10):
            tag = f"v{number}"
            answers = list(pool.map(lambda image, tag=tag: home.push(image, tag).status, images))
            assert sorted(answers) == [201, 403, 403, 403]


def test_a_rule_that_comes_while_a_tag_is_deleted(home: Home) -> None:
    """Either the tag is gone first, or it stays."""
    home.push(home.images[0], "v1")
    begun, made = threading.Event(), threading.Event()

    def work(transaction: Transaction) -> object:
        transaction.run("SELECT 1")
        begun.set()
        assert made.wait(5)
        digest = digests.pack(home.images[0].manifest.digest)
        return manifests.remove(transaction, home.name, digest, "account:1") is not None

    with ThreadPoolExecutor(1) as pool:
        deletion = pool.submit(home.database.transaction, work)
        assert begun.wait(5)
        home.keep("v1")
        made.set()
        with pytest.raises(Denied):
            deletion.result()
    assert home.digest("v1") == home.images[0].manifest.digest


@pytest.mark.parametrize("pattern", ["", "a b", "v%", "v\\", "ä", "[a]", "x" * 129, "v?"])
def test_what_is_no_pattern(home: Home, pattern: str) -> None:
    with pytest.raises(Refused):
        home.keep(pattern)
    with pytest.raises(Refused):
        home.keep("*", pattern)


def test_the_database_and_the_reports_understand_patterns_alike(file_context: Context) -> None:
    patterns = ["*", "v*", "*-rc", "a_b", "a*b*c", "**", "V*", "1.*", "a.b", "_*", "*_", "v1"]
    names = [
        "v1",
        "V1",
        "1.0",
        "1x0",
        "a_b",
        "axb",
        "a.b",
        "abc",
        "aXbXc",
        "acb",
        "x-rc",
        "_a",
        "v",
    ]
    for pattern in patterns:
        rule = rows.Rule(1, pattern, [], "", None)
        found = file_context.database.run(
            "SELECT tag_matches(n, :pattern) FROM unnest(CAST(:names AS text[])) AS t (n)",
            pattern=pattern,
            names=names,
        )
        assert [[bool(immutable_tags.keeper([rule], name))] for name in names] == found, pattern


def test_there_are_only_so_many_rules(home: Home) -> None:
    for number in range(immutable_tags.MOST_RULES):
        rows.add(home.database, home.place, f"v{number}", [], "operator")
    with pytest.raises(Refused):
        home.keep("one-more")
    with pytest.raises(Refused):
        home.keep("x", *["y"] * (immutable_tags.MOST_EXCEPTIONS + 1))
