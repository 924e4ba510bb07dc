"""The history of tags, and tags that are had back."""

from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.http import Denied, ManifestUnknown, NameUnknown
from chalicelib.identity.users import Refused
from chalicelib.metadata import manifests
from chalicelib.metadata.database import Transaction
from chalicelib.registry import immutable_tags, tag_history
from tests.registry.test_immutable_tags import Home


@pytest.fixture
def home(file_context: Context, repository: str) -> Home:
    return Home(file_context, repository)


def restore(home: Home, tag: str, digest: str = "") -> str:
    wanted = digests.pack(digest) if digest else None
    found = tag_history.restore(home.database, home.name, tag, wanted, by="account:1")
    return digests.unpack(found.digest)


def history(home: Home, tag: str = "", before: int | None = None, count: int = 100) -> list[str]:
    found = tag_history.page(home.database, home.name, tag, before, count)
    return [f"{each.name} {each.digest and digests.unpack(each.digest)}" for each in found]


def test_the_history(home: Home) -> None:
    first, second = (image.manifest.digest for image in home.images)
    for image in (*home.images, home.images[1]):
        home.push(image, "a")
    home.push(home.images[0], "b")
    home.delete("a")
    home.delete(first)
    assert history(home, "a") == ["a None", f"a {second}", f"a {first}"]
    everything = ["b None", "a None", f"b {first}", f"a {second}", f"a {first}"]
    assert history(home) == everything
    pages, before = [], None
    for _ in range(3):
        page = tag_history.page(home.database, home.name, "", before, 2)
        pages += [each.name for each in page]
        before = page[-1].id
    assert pages == [each[0] for each in everything]
    there = [each.there for each in tag_history.page(home.database, home.name, "", None, 9)]
    assert there == [False, False, False, True, False]
    with pytest.raises(NameUnknown):
        tag_history.page(home.database, "not/there", "", None, 1)


def test_a_deleted_tag_is_had_back(home: Home) -> None:
    home.push(home.images[0], "v1")
    home.push(home.images[1], "v1")
    home.delete("v1")
    second = home.images[1].manifest.digest
    assert restore(home, "v1") == second
    assert home.digest("v1") == second
    [last, *_] = tag_history.page(home.database, home.name, "v1", None, 1)
    assert last.subject == "account:1"


def test_a_moved_tag_is_had_back(home: Home) -> None:
    first, second = (image.manifest.digest for image in home.images)
    for image in home.images:
        home.push(image, "v1")
    assert restore(home, "v1") == first
    assert home.digest("v1") == first
    assert restore(home, "v1") == second, "back again"
    assert restore(home, "v1", first) == first
    assert restore(home, "v1", first) == first, "it is there"
    assert history(home, "v1")[:2] == [f"v1 {first}", f"v1 {second}"]


def test_what_it_never_was(home: Home) -> None:
    home.push(home.images[0], "v1")
    for tag, digest in (("v1", ""), ("v1", home.images[1].manifest.digest), ("v2", "")):
        with pytest.raises(ManifestUnknown, match=tag):
            restore(home, tag, digest)
    with pytest.raises(NameUnknown):
        tag_history.restore(home.database, "not/there", "v1", None, by="account:1")


def test_a_manifest_that_is_gone(home: Home) -> None:
    digest = home.images[0].manifest.digest
    home.push(home.images[0], "v1")
    home.delete(digest)
    for wanted in ("", digest):
        with pytest.raises(Refused, match=f"{digest} is gone") as error:
            restore(home, "v1", wanted)
        assert error.value.conflict
    assert home.digest("v1") == ""


def test_a_manifest_that_goes_just_then(home: Home) -> None:
    """The tag waits for the deletion, and then says that it is gone."""
    digest = home.images[0].manifest.digest
    home.push(home.images[0], "v1")
    home.delete("v1")

    with ThreadPoolExecutor(1) as pool:

        def work(transaction: Transaction) -> "Future[str]":
            manifests.remove(transaction, home.name, digests.pack(digest), "account:1")
            restoring = pool.submit(restore, home, "v1")
            with pytest.raises(TimeoutError):
                restoring.result(0.3)
            return restoring

        restoring = home.database.transaction(work)
        with pytest.raises(Refused):
            restoring.result(10)


def test_an_immutable_tag_is_had_back_only_where_it_was_deleted(home: Home) -> None:
    first, second = (image.manifest.digest for image in home.images)
    for image in home.images:
        home.push(image, "v1")
        home.push(image, "v2")
    home.delete("v1")
    rule = home.keep("v*")
    assert restore(home, "v1") == second
    for tag in ("v1", "v2"):
        with pytest.raises(Denied, match=f"rule {rule.id}"):
            restore(home, tag, first)
    assert immutable_tags.remove(home.database, home.place, None, rule.id, by="operator")
    assert restore(home, "v1", first) == first
