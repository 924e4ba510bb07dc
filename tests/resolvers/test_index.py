"""The index tells what networks have, to those who may know, and is put where it is not yet."""

import json
from dataclasses import replace

import pytest

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.identity.keys import Keys
from chalicelib.jobs import orphans
from chalicelib.jobs.kinds import KINDS
from chalicelib.jobs.worker import Worker
from chalicelib.metadata import blocks, indexes, resolver_copies
from chalicelib.resolvers import index, publishing, signing
from chalicelib.resolvers.index import Line
from chalicelib.resolvers.publishing import Refused, publish
from chalicelib.resolvers.signing import NotTrusted
from chalicelib.storage import StorageError
from tests.client import CoreClient, push_image
from tests.images import make_image
from tests.resolvers.memory import Memory


@pytest.fixture
def context(jobs_context: Context, memory: Memory) -> Context:
    """New repositories are public, and go to ``memory``."""
    settings = replace(jobs_context.settings, new_repositories="public")
    return replace(jobs_context, settings=settings)


def push(context: Context, repository: str, tag: str = "latest", seed: int | str = 0) -> str:
    """Push an image, and have it put on the network; gives its digest."""
    image = make_image(seed=seed)
    push_image(CoreClient(context), repository, image, tag)
    work(context)
    return image.manifest.digest


def work(context: Context) -> None:
    names = ("resolve.image", "resolve", "resolve.derive", "resolve.fill")
    Worker(context, [kind for kind in KINDS if kind.name in names]).drain()


def trusted(context: Context) -> list[str]:
    return signing.public_keys(context.keys)


def read(context: Context, memory: Memory, cid: str) -> dict[str, index.Repository]:
    """All that the registry itself reads in an index."""
    top = index.read_top(memory.kept[cid], trusted(context))
    pages = [memory.kept[page.cid] for page in top.pages]
    pages += [index.opened(context.keys, memory.kept[each]) or b"" for each in top.sealed]
    lines = [line for page in pages for line in index.read_page(page)]
    return {each.name: each for each in index.repositories(lines)}


def test_published(context: Context, memory: Memory) -> None:
    digest = push(context, "some/image")
    push_image(CoreClient(context), "some/image", make_image(), "another")
    report = publish(context)
    assert (report.changed, report.pages, report.failures) == (True, 1, {})
    assert report.put == 4  # a page and the first file, on the network and in object storage
    found = read(context, memory, report.cid)["some/image"]
    assert (found.public, found.resolvers, found.insisted) == (True, ["memory"], False)
    [(packed, manifest)] = found.manifests.items()
    assert (digests.unpack(packed), manifest.tags) == (digest, ["another", "latest"])
    image = make_image()
    assert memory.kept[manifest.cids[0]] == image.manifest.data
    assert {digests.unpack(blob) for blob in found.blobs} == {each.digest for each in image.blobs}
    for packed, blob in found.blobs.items():
        assert digests.of(memory.kept[blob.cids[0]]) == packed
        assert len(memory.kept[blob.cids[0]]) == blob.size


def test_nothing_to_tell(jobs_context: Context) -> None:
    assert publish(jobs_context).number is None
    assert list(jobs_context.store.list()) == []


def test_unchanged(context: Context, memory: Memory) -> None:
    push(context, "some/image")
    first = publish(context)
    puts = len(memory.puts)
    second = publish(context)
    assert (second.changed, second.put, second.cid) == (False, 0, first.cid)
    assert len(memory.puts) == puts


def test_former_index_is_taken_away(context: Context, memory: Memory) -> None:
    push(context, "some/image")
    first = publish(context)
    before = {page.cid for page in index.read_top(memory.kept[first.cid], trusted(context)).pages}
    push(context, "some/image", "next", seed=1)
    second = publish(context)
    assert second.changed
    assert second.number is not None
    assert first.number is not None
    assert second.number > first.number
    assert not ({first.cid} | before) & memory.kept.keys()
    keys = [key for key, _, _ in context.store.list("openregistry-")]
    assert len([key for key in keys if key.startswith("openregistry-")]) == 2
    assert len(read(context, memory, second.cid)["some/image"].manifests) == 2


def test_what_is_content_too_stays(context: Context, memory: Memory) -> None:
    """A page that somebody has pushed as a blob is not unpinned."""
    push(context, "some/image")
    first = publish(context)
    [page] = index.read_top(memory.kept[first.cid], trusted(context)).pages
    context.database.run(
        "INSERT INTO resolver_copies (digest, resolver, size, state, cid)"
        " VALUES (:digest, 'memory', 1, 'there', :cid)",
        digest=digests.of(b"x"),
        cid=page.cid,
    )
    push(context, "some/image", "next", seed=1)
    publish(context)
    assert page.cid in memory.kept
    assert first.cid not in memory.kept


def test_page_outlives_content_that_is_the_same(context: Context, memory: Memory) -> None:
    """Who pushes a page as a blob, and takes it away again, does not take the index away."""
    push(context, "some/image")
    report = publish(context)
    digest = digests.of(memory.kept[report.cid])
    found = resolver_copies.shared(context.database, digest, "memory", [report.cid, "another"])
    assert found == {report.cid}


def test_private_names_are_sealed(context: Context, memory: Memory) -> None:
    """Of what is private nobody else sees a name, a tag, a digest or a CID."""
    push(context, "open/image")
    private = replace(context, settings=replace(context.settings, new_repositories="private"))
    context.database.run("UPDATE resolver_choices SET insisted = true")
    digest = push(private, "hidden/image", "secret-tag", seed=1)
    push(private, "hidden/other", seed=2)
    report = publish(context)
    found = read(context, memory, report.cid)
    assert found.keys() == {"open/image", "hidden/image", "hidden/other"}
    assert found["hidden/image"].insisted
    assert not found["hidden/image"].public
    top = index.read_top(memory.kept[report.cid], trusted(context))
    named = [
        memory.kept[cid] for cid in (report.cid, *(page.cid for page in top.pages), *top.sealed)
    ]
    named += [data for _, data in publishing.stored_tops(context.store)]
    secret = [cid for each in found["hidden/image"].blobs.values() for cid in each.cids]
    secret += ["hidden", "secret-tag", digest, digest.removeprefix("sha256:")]
    payload = signing.verify(named[0].decode(), signing.INDEX, trusted(context)).payload
    for text in secret:
        assert not any(text.encode() in data for data in (*named, payload))
    assert index.opened(Keys("the secret of a stranger"), memory.kept[top.sealed[0]]) is None
    assert publish(context).put == 0  # sealed alike


def test_unresolved_is_left_out_and_counted(context: Context, memory: Memory) -> None:
    push(context, "open/image")
    private = replace(context, settings=replace(context.settings, new_repositories="private"))
    push(private, "hidden/image", seed=1)
    report = publish(context)
    assert read(context, memory, report.cid).keys() == {"open/image"}
    top = index.read_top(memory.kept[report.cid], trusted(context))
    assert report.left_out[:3] == (1, 1, 1)  # type: ignore[index]
    assert index.left_out(context.keys, top) == report.left_out


def test_blocked_is_left_out(context: Context, memory: Memory) -> None:
    digest = push(context, "some/image")
    blocks.add(context.database, digests.pack(digest), "malware", public=True, by="test")
    assert read(context, memory, publish(context).cid) == {}


def test_signed_by_the_registry(context: Context, memory: Memory) -> None:
    push(context, "some/image")
    data = memory.kept[publish(context).cid]
    stranger = signing.public_keys(Keys("the secret of a stranger"))
    with pytest.raises(NotTrusted, match="not trusted here"):
        index.read_top(data, stranger)
    for forged in (b"", b"\xff", data[:-2], signing.sign(context.keys, "other", b"{}").encode()):
        with pytest.raises(NotTrusted):
            index.read_top(forged, trusted(context))
    with pytest.raises(NotTrusted, match="no index all the same"):
        index.read_top(signing.sign(context.keys, signing.INDEX, b"{}").encode(), trusted(context))


def test_signed_anew_with_another_secret_key(context: Context, memory: Memory) -> None:
    push(context, "some/image")
    first = publish(context)
    later = replace(context, keys=Keys("the next secret of all", context.settings.secret_key))
    second = publish(later)
    assert second.changed
    top = index.read_top(memory.kept[second.cid], trusted(later))
    assert top.key == trusted(later)[0]
    assert first.cid not in memory.kept


def test_network_that_is_down(context: Context, memory: Memory) -> None:
    """Object storage has the index meanwhile, and the network gets it later."""
    push(context, "some/image")
    memory.down = True
    report = publish(context)
    assert report.failures == {"memory": "The network is out of reach."}
    assert [number for number, _ in publishing.stored_tops(context.store)] == [report.number]
    memory.down = False
    again = publish(context)
    assert (again.changed, again.failures, again.put) == (False, {}, 2)
    assert read(context, memory, again.cid).keys() == {"some/image"}


def test_network_that_lost_it(context: Context, memory: Memory) -> None:
    push(context, "some/image")
    first = publish(context)
    for cid in indexes.files(context.database, "memory"):
        del memory.kept[cid]
    again = publish(context)
    assert (again.changed, again.put) == (False, 2)
    assert read(context, memory, first.cid).keys() == {"some/image"}


def test_never_in_place_of_an_unknown_one(context: Context, memory: Memory) -> None:
    """A database that is new, or older, would take away what could restore it."""
    push(context, "some/image")
    first = publish(context)
    context.database.run("DELETE FROM published_index")
    with pytest.raises(Refused, match="restore metadata"):
        publish(context)
    assert first.cid in memory.kept
    forced = publish(context, force=True)
    assert forced.number is not None
    assert first.number is not None
    assert forced.number > first.number


def test_sweep_leaves_it(context: Context) -> None:
    """No sweep takes the index for blobs that nobody knows."""
    push(context, "some/image")
    publish(context)
    found = orphans.run(context, dry_run=True, force=False)
    assert found.unknown == 0
    assert found.objects == len(make_image().blobs)


def test_storage_that_is_down(
    context: Context, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(context, "some/image")

    def fail(*_: object) -> None:
        raise StorageError("Storage is full.")

    monkeypatch.setattr(publishing, "_write", fail)
    report = publish(context)
    assert report.failures == {"": "Storage is full."}
    assert report.cid in memory.kept


def many(count: int) -> list[Line]:
    """The lines of a repository."""
    head: Line = {"repository": "some/image", "public": True, "description": ""}
    return [
        head,
        *({"blob": f"sha256:{number:064x}", "size": 1, "cids": []} for number in range(count)),
    ]


def test_pages_stay_but_where_something_changes() -> None:
    lines = many(20_000)
    before = list(index.cut(lines))
    after = list(index.cut([*lines[:9000], {"blob": "new", "size": 1, "cids": []}, *lines[9000:]]))
    assert len(before) > 3
    assert all(len(page.data) < 1_100_000 for page in before)
    assert len({page.cid for page in after} - {page.cid for page in before}) <= 2
    assert {page.first for page in before} == {"some/image"}


def test_pages_hold_all_lines() -> None:
    lines = many(20_000)
    read = [line for page in index.cut(lines) for line in index.read_page(page.data)]
    assert [line for line in read if "blob" in line] == lines[1:]
    assert all(b"repository" in page.data.splitlines()[0] for page in index.cut(lines))


def test_many_tags() -> None:
    digest = f"sha256:{0:064x}"
    head = {
        "repository": "a",
        "public": True,
        "description": "",
        "resolvers": [],
        "insisted": False,
    }
    manifest = {"manifest": digest, "type": "x", "size": 1, "cids": [], "roots": []}
    lines = [head, {**manifest, "tags": ["a"]}, head, {**manifest, "tags": ["b"]}]
    [found] = index.repositories(lines)
    assert found.manifests[digests.pack(digest)].tags == ["a", "b"]


@pytest.mark.parametrize(
    "line", [[], "x", {"blob": "sha256:1"}, {"repository": "a"}, {"manifest": "nothing"}]
)
def test_lines_that_are_none(line: object) -> None:
    with pytest.raises(NotTrusted):
        list(index.repositories(index.read_page(json.dumps(line).encode())))
