"""IPFS nodes, one and several: real ones, and ones in trouble."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from chalicelib.http import Piece
from chalicelib.resolvers import NotThere, ResolverError, WrongCid, connections, kubo
from chalicelib.resolvers.blocks import read
from chalicelib.resolvers.connections import Server
from chalicelib.resolvers.kubo import Kubo
from chalicelib.resolvers.placing import mend, place
from chalicelib.resolvers.unixfs import UNIXFS_V0_2015, UNIXFS_V1_2025, Cid, Profile
from tests import servers
from tests.clients.programs import built
from tests.contract.resolvers import MIB, Given, cid, given, noise
from tests.contract.stores import same
from tests.faults.test_storage import mounted
from tests.resolvers.faults import Fault, FaultyNode

NewFaulty = Callable[..., FaultyNode]
NewKubo = Callable[[], servers.Kubo]
BLOCK = b"A block, as far as these nodes know."
NAME = cid(BLOCK)


@pytest.fixture
def faulty() -> Iterator[NewFaulty]:
    """Make nodes that have faults."""
    with ExitStack() as stack:
        yield lambda *given, **answers: stack.enter_context(closing(FaultyNode(*given, **answers)))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs is given up after a second."""
    monkeypatch.setattr(kubo, "_ADD_SECONDS", 2.0)
    monkeypatch.setattr(connections, "STALLED_SECONDS", 1.0)


def copies(resolver: Kubo, name: str) -> tuple[int | None, int]:
    status = resolver.status("", name)
    return status.replicas, status.lacking


def has(node: servers.Kubo, content: Given, name: str) -> None:
    """That a node has all of it, by itself."""
    same(b"".join(read([Kubo([node.url])], name, 0, content.size)), content.data)


# What can be tried without a node.


def test_a_block_comes_from_the_next_node_while_one_hangs(
    faulty: NewFaulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubo, "_SECONDS", 0.3)
    hanging, good = faulty(block_get=BLOCK), faulty(block_get=BLOCK)
    hanging.faults[""] = Fault(hang=True)
    resolver = Kubo([hanging.url, good.url])
    started = time.monotonic()
    assert [resolver.block(NAME) for _ in range(5)] == [BLOCK] * 5
    assert time.monotonic() - started < 1
    assert (len(hanging.seen), len(good.seen)) == (1, 5)


@pytest.mark.parametrize(
    "fault", [Fault(status=502), Fault(lost=3), Fault(swollen=3 << 20), Fault(trickle=0.2)]
)
def test_a_block_comes_from_the_next_node_when_one_fails(
    faulty: NewFaulty, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(kubo, "_SECONDS", 0.3)
    bad, good = faulty(block_get=BLOCK), faulty(block_get=BLOCK)
    bad.faults[""] = fault
    assert Kubo([bad.url, good.url]).block(NAME) == BLOCK
    with pytest.raises(ResolverError):
        Kubo([bad.url]).block(NAME)


def test_a_node_that_lacks_a_block_is_asked_to_find_it_when_all_do(faulty: NewFaulty) -> None:
    one, two = faulty(), faulty(block_get=BLOCK)
    assert Kubo([one.url, two.url]).block(NAME) == BLOCK
    assert [seen.query for seen in one.seen] == [f"arg={NAME}&offline=true"]
    two.answers.clear()
    with pytest.raises(NotThere):
        Kubo([one.url, two.url]).block(NAME)
    assert [seen.query for seen in one.seen[2:]] == [f"arg={NAME}&timeout=10s"]
    assert len(two.seen) == 2


def test_nodes_that_cannot_be_used(faulty: NewFaulty) -> None:
    good, bad = faulty(id={}), faulty(id={})
    bad.faults[""] = Fault(status=403)
    Kubo([bad.url, good.url]).check()
    with pytest.raises(ResolverError, match="refused id: status 403"):
        Kubo([bad.url]).check()


def test_what_the_nodes_say_of_accounts_is_not_told(faulty: NewFaulty) -> None:
    bad = faulty(id={})
    bad.faults[""] = Fault(status=401)
    resolver = Kubo([bad.url.replace("//", "//user:not-to-be-told@")])
    for act in (resolver.check, lambda: resolver.put(given(b"x")), lambda: resolver.unpin("", "")):
        with pytest.raises(ResolverError) as error:
            act()
        assert "not-to-be-told" not in str(error.value)


def test_an_answer_that_breaks_off_is_none(faulty: NewFaulty) -> None:
    for answer in (b"", b'{"Name":"x"', b'{"Bytes":1}\n', b"[]"):
        with pytest.raises(ResolverError, match="while it added"):
            Kubo([faulty(add=answer).url]).put(given(b"x"))


def test_what_is_not_pinned_in_the_end_is_not_there(faulty: NewFaulty) -> None:
    node = faulty(add={"Hash": NAME})
    with pytest.raises(ResolverError, match="does not keep it"):
        Kubo([node.url]).put(given(BLOCK))


def test_two_nodes_that_disagree(faulty: NewFaulty) -> None:
    nodes = [faulty(add={"Hash": name}, pin_ls={"Keys": {}}) for name in (NAME, cid(b"lie"))]
    with pytest.raises(WrongCid, match=f"{nodes[0].url[7:]} says {NAME}, "):
        Kubo([node.url for node in nodes]).put(given(BLOCK))


def test_no_bytes_are_read_when_no_node_takes_them(faulty: NewFaulty) -> None:
    nodes = [faulty(), faulty()]
    for node in nodes:
        node.close()
    content, read_pieces = given(*[bytes(MIB)] * 100), 0

    class Counted(Given):
        def open(self) -> Iterator[Piece]:
            nonlocal read_pieces
            for piece in self.pieces:
                read_pieces += 1
                yield piece
                time.sleep(0.01)

    with pytest.raises(ResolverError, match=r"out of reach.* The IPFS node .*out of reach"):
        Kubo([node.url for node in nodes]).put(Counted(content.name, content.pieces))
    assert read_pieces < 50


def test_a_node_that_is_much_slower_is_left_behind(
    faulty: NewFaulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = given(*[bytes(MIB)] * 40)
    name = cid(content.data)
    slow, good = (faulty(add={"Hash": name}, pin_ls={"Keys": {}}) for _ in range(2))
    resolver = Kubo([slow.url, good.url])
    slow.faults["add"] = Fault(slow=0.001)  # some other work, and not that much slower
    assert place(resolver, content, content.digest) == name
    assert slow.commands() == good.commands() == ["add", "pin/ls"]
    monkeypatch.setattr(kubo, "_LATE_SECONDS", 0.5)
    monkeypatch.setattr(connections, "STALLED_SECONDS", 20.0)
    slow.faults["add"] = Fault(slow=0.1)
    started = time.monotonic()
    assert place(resolver, content, content.digest) == name
    assert time.monotonic() - started < 10
    assert resolver.status(content.name, name).lacking == 1
    assert slow.commands() == ["add", "pin/ls", "add"]


# Real nodes.


@pytest.mark.long
def test_all_nodes_get_the_same_of_one_read(new_kubo: NewKubo) -> None:
    one, two = new_kubo(), new_kubo()
    resolver = Kubo([one.url, two.url])
    content, opened = given(noise(12 * MIB + 5)), 0

    class Counted(Given):
        def open(self) -> Iterator[Piece]:
            nonlocal opened
            opened += 1
            return super().open()

    name = place(resolver, Counted(content.name, content.pieces), content.digest)
    assert opened == 1
    assert copies(resolver, name) == (2, 0)
    has(one, content, name)
    has(two, content, name)
    listed = one.run("pin", "ls", "--type=recursive", "--names", api=True).stdout
    assert f"{name} recursive {content.name}" in listed
    resolver.unpin(content.name, name)
    assert copies(resolver, name) == (0, 2)


@pytest.mark.long
def test_a_node_that_was_down_is_brought_up_to_date(new_kubo: NewKubo) -> None:
    one, two = new_kubo(), new_kubo()
    resolver = Kubo([one.url, two.url])
    content = given(noise(3 * MIB))
    one.stop()
    name = place(resolver, content, content.digest)
    assert copies(resolver, name) == (1, 1)
    with pytest.raises(ResolverError):
        mend(resolver, content, content.digest, name)
    one.start()
    resolver = Kubo([one.url, two.url])  # as another process, or some time later
    mend(resolver, content, content.digest, name)
    assert copies(resolver, name) == (2, 0)
    has(one, content, name)
    two.stop()
    with pytest.raises(ResolverError):
        resolver.unpin(content.name, name)
    assert Kubo([one.url]).status(content.name, name).state == "missing"
    resolver.check()
    two.start()
    resolver = Kubo([one.url, two.url])
    resolver.unpin(content.name, name)
    assert copies(resolver, name) == (0, 2)


@pytest.mark.long
@pytest.mark.parametrize(
    "fault", [Fault(stall=100_000), Fault(hang=True), Fault(status=500), Fault(lost=5)]
)
def test_a_node_in_trouble_holds_up_no_other(
    kubo: servers.Kubo, faulty: NewFaulty, fault: Fault
) -> None:
    bad = faulty(kubo.url)
    bad.faults["add"] = fault
    resolver = Kubo([bad.url, kubo.url])
    content = given(*[noise(MIB) for _ in range(30)])
    started = time.monotonic()
    name = place(resolver, content, content.digest)
    assert time.monotonic() - started < 10
    has(kubo, content, name)
    with pytest.raises(ResolverError):
        place(Kubo([bad.url]), content, content.digest)
    assert time.monotonic() - started < 15


@pytest.mark.long
def test_a_node_that_lies(kubo: servers.Kubo, faulty: NewFaulty) -> None:
    liar = faulty(kubo.url)
    content = given(noise(MIB + 1))
    name, other = cid(content.data), cid(b"lie")
    liar.faults["add"] = Fault(lie=(name.encode(), other.encode()))
    with pytest.raises(ResolverError, match="does not keep it"):
        place(Kubo([liar.url]), content, content.digest)
    liar.faults["pin/ls"] = Fault(status=200)
    with pytest.raises(WrongCid, match=f"has the CID {other}; it has {name}"):
        place(Kubo([liar.url]), content, content.digest)
    liar.faults = {"block/get": Fault(lie=(content.data[:4], b"lie!"))}
    leaf = given(content.data[:1000])
    name = place(Kubo([liar.url]), leaf, leaf.digest)
    with pytest.raises(ResolverError, match="gave other bytes"):
        b"".join(read([Kubo([liar.url])], name, 0, 1000))


@pytest.mark.long
def test_a_node_that_is_killed_while_it_adds(new_kubo: NewKubo) -> None:
    node = new_kubo()
    resolver = Kubo([node.url])
    before = given(noise(2 * MIB))
    kept = place(resolver, before, before.digest)
    pieces = [noise(MIB) for _ in range(20)]
    content = given(*pieces)
    at = threading.Event()

    class Slow(Given):
        def open(self) -> Iterator[Piece]:
            for number, piece in enumerate(self.pieces):
                yield piece
                if number == 10:
                    at.set()
                    time.sleep(0.5)

    def kill() -> None:
        at.wait(20)
        node.kill9()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ResolverError):
        place(resolver, Slow(content.name, content.pieces), content.digest)
    killer.join()
    with pytest.raises(ResolverError, match="out of reach"):
        resolver.check()
    node.start()
    resolver.check()
    assert resolver.status(content.name, cid(content.data)).state == "missing"
    name = place(resolver, content, content.digest)
    has(node, content, name)
    has(node, before, kept)
    assert "verify complete" in node.run("repo", "verify", api=True).stdout


@pytest.mark.long
def test_a_full_disk(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", 64) as folder:
        node = servers.Kubo(folder, built("ipfs"))
        with servers.stopping(node.start()):
            resolver = Kubo([node.url])
            small, large = given(noise(MIB)), given(*[noise(MIB) for _ in range(80)])
            kept = place(resolver, small, small.digest)
            with pytest.raises(ResolverError, match="no space left"):
                place(resolver, large, large.digest)
            assert resolver.status(large.name, cid(large.data)).state == "missing"
            has(node, small, kept)
            node.run("repo", "gc", "--quiet", api=True)
            other = given(noise(2 * MIB))
            has(node, other, place(resolver, other, other.digest))


class Guarded(servers.Kubo):
    """A node that wants an account."""

    account = "basic:registry:not-to-be-told"

    def ready(self) -> bool:
        done = self.run("id", f"--api-auth={self.account}", check=False, api=True)
        return done.returncode == 0


@pytest.mark.long
def test_a_node_that_wants_an_account(tmp_path: Path) -> None:
    node = Guarded(tmp_path, built("ipfs"))
    allowed = {"AuthSecret": node.account, "AllowedPaths": ["/api/v0"]}
    node.run("config", "--json", "API.Authorizations", json.dumps({"registry": allowed}))
    with servers.stopping(node.start()):
        for wrong in (node.url, node.url.replace("//", "//registry:wrong@")):
            with pytest.raises(ResolverError, match="refused id: status 403"):
                Kubo([wrong]).check()
        resolver = Kubo([node.url.replace("//", "//registry:not-to-be-told@")])
        content = given(noise(1000))
        name = place(resolver, content, content.digest)
        assert resolver.block(name) == content.data


@pytest.mark.long
def test_names(new_kubo: NewKubo) -> None:
    one, two = new_kubo(), new_kubo()
    one.connect(two)
    resolver = Kubo([one.url, two.url])
    first, second = given(b"first"), given(b"second")
    name = resolver.import_key("openregistry-test", bytes(range(32)))
    assert name == "k51qzi5uqu5dg9ufswxt229ntzdy7p4125xzv5rtyjso89ajdujg6csfxcj260"
    assert resolver.import_key("openregistry-test", bytes(range(32))) == name
    assert Kubo([two.url]).import_key("openregistry-test", bytes(32)) == name
    with pytest.raises(NotThere):
        resolver.resolve(name)
    for content in (first, second):
        found = place(resolver, content, content.digest)
        assert resolver.publish(found, "openregistry-test") == name
        assert resolver.resolve(name) == found
    one.stop()
    third = place(Kubo([two.url]), given(b"third"), given(b"third").digest)
    assert resolver.publish(third, "openregistry-test") == name
    assert resolver.resolve(name) == third
    one.start()
    one.connect(two)
    assert Kubo([one.url, two.url]).import_key("openregistry-test", bytes(32)) == name


PATTERN = bytes(range(251)) * 4096
EDGES = [
    *[(UNIXFS_V1_2025, size) for size in (0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, 5 * MIB + 123)],
    *[(UNIXFS_V1_2025, 1024 * MIB + more) for more in (-MIB, -1, 0, 1, MIB + 1)],
    *[(UNIXFS_V0_2015, size) for size in (0, 1, MIB // 4 - 1, MIB // 4, MIB // 4 + 1)],
    *[(UNIXFS_V0_2015, 174 * MIB // 4 + more) for more in (-1, 0, 1, 174 * MIB // 4)],
]


@pytest.mark.long
@pytest.mark.parametrize(("profile", "size"), EDGES)
def test_cids_are_those_that_a_node_computes(
    kubo: servers.Kubo, profile: Profile, size: int
) -> None:
    """Of the bytes of ``tests/resolvers/test_unixfs.py``, which has the values of a third program
    too."""
    computing = Cid(profile)
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    tail = b"\r\n--x--\r\n"

    def form() -> Iterator[bytes]:
        yield head
        for start in range(0, size, len(PATTERN)):
            piece = PATTERN[: size - start]
            computing.update(piece)
            yield piece
        yield tail

    answer = Server("The node", kubo.url).send(
        "POST",
        f"/api/v0/add?only-hash=true&cid-version={profile.version}&chunker=size-{profile.chunk}"
        f"&raw-leaves={str(profile.raw).lower()}&max-file-links={profile.width}",
        form(),
        len(head) + size + len(tail),
        seconds=60,
        limit=1 << 20,
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    assert json.loads(answer.body.splitlines()[-1])["Hash"] == computing.finish()
