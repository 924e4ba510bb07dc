"""Files read by blocks, from sources that lie, hang and lack things."""

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chalicelib.resolvers import NotThere, ResolverError, blocks
from chalicelib.resolvers.unixfs import UNIXFS_V0_2015, UNIXFS_V1_2025, Profile, parse, text
from tests.resolvers.trees import Memory, node, tree

RAW = Profile("small", version=1, chunk=7, width=3, raw=True)
NODES = Profile("small, of nodes", version=0, chunk=7, width=3, raw=False)
DATA = random.Random(3).randbytes(7 * 3**4 + 5)
TREES = {profile: tree(DATA, profile) for profile in (RAW, NODES)}
CID, BLOCKS = TREES[RAW]
FAULTS = ("down", "hangs", "lies", "truncates", "fails")


@pytest.fixture(autouse=True)
def _strangers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sources of whom nothing is known yet."""
    monkeypatch.setattr(blocks, "_shunned", {})
    monkeypatch.setattr(blocks, "PATIENCE", 0.1)
    yield
    assert blocks._room._value == blocks._AHEAD_OF_ALL


def whole(sources: "list[Memory]", cid: str = CID, size: int = len(DATA)) -> bytes:
    return b"".join(blocks.read(sources, cid, 0, size))


@pytest.mark.parametrize("profile", TREES)
@settings(deadline=None)
@given(st.data())
def test_every_range(profile: Profile, data: st.DataObject) -> None:
    cid, known = TREES[profile]
    offset = data.draw(st.integers(0, len(DATA)))
    length = data.draw(st.integers(0, len(DATA) - offset))
    source = Memory("memory", known)
    stream = blocks.read([source], cid, offset, length)
    assert b"".join(stream) == DATA[offset : offset + length]
    leaves, levels = length // 7 + 2, 5
    assert len(source.asked) <= leaves * 3 // 2 + 2 * levels, "only what is needed"


@pytest.mark.parametrize("profile", [UNIXFS_V1_2025, UNIXFS_V0_2015])
@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1])
def test_real_profiles(profile: Profile, size: int) -> None:
    data = random.Random(1).randbytes(size)
    cid, known = tree(data, profile)
    assert whole([Memory("memory", known)], cid, size) == data


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("healthy", [0, 20])
def test_a_source_with_a_fault_is_left_for_the_next(fault: str, healthy: int) -> None:
    faulty, good = Memory("faulty", BLOCKS), Memory("good", BLOCKS)
    faulty.fault, faulty.healthy = fault, healthy
    assert whole([faulty, good]) == DATA
    asked = len(faulty.asked)
    assert asked <= healthy + blocks._AHEAD
    assert whole([faulty, good]) == DATA
    assert len(faulty.asked) == asked, "it is asked last for a while"
    faulty.released.set()


def test_a_block_may_come_from_any_source() -> None:
    rng = random.Random(5)
    halves: tuple[dict[str, bytes], dict[str, bytes]] = ({}, {})
    for cid, block in BLOCKS.items():
        rng.choice(halves)[cid] = block
    assert whole([Memory(f"half {number}", half) for number, half in enumerate(halves)]) == DATA


@pytest.mark.parametrize("fault", FAULTS)
def test_no_source_is_left(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "LONGEST", 0.1)
    sources = [Memory("one", BLOCKS), Memory("two", BLOCKS)]
    for source in sources:
        source.fault, source.healthy = fault, 20
    read = bytearray()
    pieces = iter(blocks.read(sources, CID, 0, len(DATA)))
    with pytest.raises(ResolverError):
        read.extend(b for piece in pieces for b in piece)
    assert DATA.startswith(read)
    for source in sources:
        source.released.set()


def test_what_nobody_has() -> None:
    with pytest.raises(NotThere):
        whole([Memory("empty", {})])
    with pytest.raises(NotThere):
        whole([])


def test_a_file_that_is_shorter() -> None:
    with pytest.raises(ResolverError, match="shorter"):
        whole([Memory("memory", BLOCKS)], size=len(DATA) + 1)


def test_blocks_are_asked_for_ahead_and_not_too_many() -> None:
    source = Memory("memory", BLOCKS)
    stream = blocks.read([source], CID, 0, len(DATA))
    pieces = iter(stream)
    next(pieces)
    assert 1 < len(source.asked) <= 4 + blocks._AHEAD * 2
    stream.close()
    pieces.close()  # type: ignore[attr-defined]


def test_fetch_takes_no_more_than_it_may() -> None:
    source = Memory("memory", BLOCKS)
    assert blocks.fetch([source], CID, len(DATA)) == DATA
    with pytest.raises(ValueError, match="may have"):
        blocks.fetch([source], CID, len(DATA) - 1)


def test_a_tree_that_is_too_deep() -> None:
    known, cid, size = dict(BLOCKS), CID, len(DATA)
    for _ in range(20):
        link = (b"\x01\x70\x12\x20" + parse(cid).digest, size, size)
        cid = text(node(b"", [link], RAW, known)[0])
    with pytest.raises(ResolverError, match="too deep"):
        whole([Memory("memory", known)], cid)
