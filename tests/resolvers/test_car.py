"""Archives: as the specification has them, as Kubo makes them, and as strangers send them."""

import hashlib
import io
import random
import tracemalloc
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chalicelib.resolvers import NotThere, blocks
from chalicelib.resolvers.car import BLOCK_LIMIT, Archive, Reader, length, write
from chalicelib.resolvers.unixfs import (
    PROFILES,
    UNIXFS_V0_2015,
    UNIXFS_V1_2025,
    Block,
    Profile,
    Tree,
    packed,
    text,
)
from tests.resolvers import trees
from tests.resolvers.trees import counted, varint
from tests.servers import Kubo

MIB = 1 << 20
NOISE = random.Random(5).randbytes(MIB)
SMALL = Profile("small", version=1, chunk=4, width=3, raw=True)
SMALL_V0 = Profile("small", version=0, chunk=4, width=3, raw=False)
HELLO = b"hello world\n"
HELLO_CID = "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"

OTHERS_V2 = bytes.fromhex(
    "0aa16776657273696f6e02"
    "000000000000000000000000000000003300000000000000410000000000000074000000000000"
    "0011a265726f6f7473806776657273696f6e012e0155122001d448afd928065458cf670b60f5a594d735af0172c8d6"
    "7f22a81680132681ca00000000000000000000810801000000120000000000000001000000280000002800000000"
    "00000001d448afd928065458cf670b60f5a594d735af0172c8d67f22a81680132681ca1200000000000000"
)
"""An archive of version 2 with an index, as go-car's tests have it."""


def archive(data: bytes, profile: Profile = UNIXFS_V1_2025) -> bytes:
    tree = Tree([data], profile)
    return b"".join(write([tree.cid], tree.blocks([data])))


def version_2(inner: bytes, padding: int = 0, after: bytes = b"") -> bytes:
    fixed = bytes(16) + b"".join(
        number.to_bytes(8, "little") for number in (51 + padding, len(inner), 0)
    )
    return bytes.fromhex("0aa16776657273696f6e02") + fixed + bytes(padding) + inner + after


def header(value: object) -> bytes:
    encoded = cbor2.dumps(value)
    return varint(len(encoded)) + encoded


def link(cid: bytes) -> cbor2.CBORTag:
    return cbor2.CBORTag(42, b"\0" + cid)


def section(cid: bytes, data: bytes) -> bytes:
    return varint(len(cid) + len(data)) + cid + data


def raw(data: bytes) -> bytes:
    return b"\x01\x55\x12\x20" + hashlib.sha256(data).digest()


def read(data: bytes) -> tuple[tuple[str, ...], list[Block]]:
    reader = Reader([data])
    return reader.roots, list(reader)


NO_ROOTS = header({"roots": [], "version": 1})


def test_it_is_as_the_specification_has_it() -> None:
    cid = raw(HELLO)
    expected = header({"roots": [link(cid)], "version": 1}) + section(cid, HELLO)
    assert archive(HELLO) == expected
    assert read(expected) == ((HELLO_CID,), [(HELLO_CID, HELLO)])


@pytest.mark.parametrize("profile", [SMALL, SMALL_V0])
@settings(deadline=None)
@given(data=st.binary(max_size=200) | st.binary(max_size=2).map(lambda part: part * 80))
def test_all_blocks_once_and_the_length_foretold(profile: Profile, data: bytes) -> None:
    tree = Tree([data[:7], data[7:]], profile)
    cid, expected = trees.tree(data, profile)
    made = b"".join(write([tree.cid], tree.blocks([data[:50], b"", data[50:]])))
    assert len(made) == length([tree.cid], tree.lengths)
    roots, found = read(made)
    assert roots == (tree.cid,) == (cid,)
    assert dict(found) == expected
    assert len(found) == len(expected)


@pytest.mark.parametrize("count", [0, 1, 23, 24, 300])
def test_several_roots(count: int) -> None:
    contents = [b"%d" % number for number in range(count)]
    made = [Tree([data]) for data in contents]
    roots = [tree.cid for tree in made]
    given = (
        block
        for tree, data in [*zip(made, contents, strict=True)] * 2
        for block in tree.blocks([data])
    )
    written = b"".join(write(roots, given))
    assert written.startswith(header({"roots": [link(packed(r)) for r in roots], "version": 1}))
    lengths = {cid: size for tree in made for cid, size in tree.lengths.items()}
    assert len(written) == length(roots, lengths)
    found, blocks = read(written)
    assert found == tuple(roots)
    assert [block.data for block in blocks] == contents


@pytest.mark.parametrize("other", [b"", NOISE[:4], NOISE[:7], NOISE[:9], b"x" * 8])
def test_a_file_that_changes_between_the_passes(other: bytes) -> None:
    for profile in (SMALL, SMALL_V0):
        tree = Tree([NOISE[:8]], profile)
        with pytest.raises(ValueError, match="since it was read first"):
            list(tree.blocks([other]))


def test_memory_stays_small() -> None:
    def pieces(count: int) -> Iterator[bytes]:
        for number in range(count):
            yield number.to_bytes(4) + NOISE[4:]

    tracemalloc.start()
    tree = Tree(pieces(64))
    reader = Reader(write([tree.cid], tree.blocks(pieces(64))))
    found = sum(len(block.data) for block in reader)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found > 64 * MIB
    assert reader.position == length([tree.cid], tree.lengths)
    assert peak < 12 * MIB


def test_version_2() -> None:
    inner = archive(NOISE[:50], SMALL)
    for padding in (0, 1000):
        assert read(version_2(inner, padding, after=b"an index")) == read(inner)
    [block] = read(OTHERS_V2)[1]
    assert block.data == bytes(10)


def test_blocks_of_other_kinds_and_hashes() -> None:
    digest = hashlib.sha512(b"a").digest()
    blake = hashlib.blake2b(b"b", digest_size=32).digest()
    made = NO_ROOTS + b"".join(
        [
            section(b"\x01\x71\x13\x40" + digest, b"a"),
            section(b"\x01\x55\xa0\xe4\x02\x20" + blake, b"b"),
            section(b"\x01\x55\x00\x03abc", b"abc"),
            section(b"\x12\x20" + hashlib.sha256(b"d").digest(), b"d"),
        ]
    )
    assert [block.data for block in read(made)[1]] == [b"a", b"b", b"abc", b"d"]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (b"", "no header"),
        (b"\x00", "no header"),
        (b"PK\x03\x04" + NOISE[:200], "another header"),
        (varint(2 * MIB) + NOISE, "more than"),
        (header({"roots": [], "version": 2}), "another header"),
        (header({"version": 1, "roots": []}), "another header"),
        (header({"roots": [], "version": 1, "more": 1}), "another header"),
        (header({"roots": [b"x"], "version": 1}), "no CID"),
        (header({"roots": [cbor2.CBORTag(42, raw(b""))], "version": 1}), "no CID"),
        (header({"roots": [link(raw(b"") + b"x")], "version": 1}), "no CID"),
        (header({"roots": [link(raw(b"")[:-1])], "version": 1}), "cut off"),
        (counted(b"\xa2\x65roots\x98\x00\x67version\x01"), "DAG-CBOR"),
        (counted(b"\xa2\x65roots\x9f\x67version\x01"), "DAG-CBOR"),
        (counted(b"\xa2\x65roots\x80\x80\x67version\x01"), "more in it"),
        (counted(b"\xa2\x65roots\x9b" + b"\xff" * 8 + b"\x67version\x01"), "no CID"),
        (NO_ROOTS + b"\x00", "no CID"),
        (NO_ROOTS + section(raw(b"a"), b"b"), "other bytes"),
        (NO_ROOTS + section(raw(b"a"), b"a")[:-1], "cut off"),
        (NO_ROOTS + b"\x80", "cut off"),
        (NO_ROOTS + b"\xa5\x80\x00" + raw(b"a"), "too long"),
        (NO_ROOTS + b"\xff" * 9, "no length"),
        (NO_ROOTS + varint(1 << 40), "more than"),
        (NO_ROOTS + section(raw(bytes(BLOCK_LIMIT + 1)), bytes(BLOCK_LIMIT + 1)), "more than"),
        (NO_ROOTS + section(b"\x01\x55\x11\x14" + bytes(20), b"a"), "not known here"),
        (NO_ROOTS + section(b"\x01\x55\x12\x10" + bytes(16), b"a"), "other bytes"),
        (NO_ROOTS + section(b"\x01\x55\x12", b""), "cut off"),
        (NO_ROOTS + section(b"\x03\x55\x12\x20" + bytes(32), b""), "version 0 or 1"),
        (NO_ROOTS + section(b"\x01\x55\x00\xff\x7f" + bytes(200), b""), "far too long"),
        (version_2(NO_ROOTS)[:30], "cut off"),
        (version_2(NO_ROOTS)[:-1], "cut off"),
        (version_2(version_2(NO_ROOTS)), "another header"),
        (version_2(b""), "another header"),
        (version_2(NO_ROOTS)[:27] + bytes(24) + NO_ROOTS, "before its own beginning"),
        (version_2(NO_ROOTS)[:27] + b"\xff" * 24 + NO_ROOTS, "cut off"),
    ],
)
def test_what_is_no_archive(wrong: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read(wrong)


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 255))
def test_any_bytes_at_all(noise: bytes, at: int, byte: int) -> None:
    spoiled = bytearray(version_2(archive(NOISE[:50], SMALL)))
    spoiled[at % len(spoiled)] = byte
    for data in (noise, NO_ROOTS + noise, bytes(spoiled)):
        with suppress(ValueError):
            read(data)


def test_blocks_are_had_by_cid(tmp_path: Path) -> None:
    data = NOISE * 3 + b"the end"
    file = tmp_path / "file.car"
    for profile in PROFILES.values():
        file.write_bytes(version_2(archive(data, profile), padding=3))
        with file.open("rb") as opened:
            source = Archive(opened)
            [root] = source.roots
            assert b"".join(blocks.read([source], root, 10, len(data) - 10)) == data[10:]
            with pytest.raises(NotThere):
                source.block(text(raw(b"another")))
    with pytest.raises(ValueError, match="cut off"):
        Archive(io.BytesIO(file.read_bytes()[:-1]))


@pytest.mark.long
@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_it_is_what_kubo_takes_and_makes(kubo: Kubo, profile: Profile, tmp_path: Path) -> None:
    width = UNIXFS_V0_2015.chunk * UNIXFS_V0_2015.width
    for data in (
        *(b"", b"x", NOISE, NOISE + b"x", bytes(5 * MIB)),
        random.Random(6).randbytes(width + 1),
        (NOISE + b"shifted") * 60,
    ):
        tree = Tree([data], profile)
        made = b"".join(write([tree.cid], tree.blocks([data])))
        file = tmp_path / "file.car"
        file.write_bytes(made)
        assert "success" in kubo.run("dag", "import", file, api=True).stdout
        url = f"{kubo.url}/api/v0/dag/export?arg={tree.cid}"
        with urllib.request.urlopen(urllib.request.Request(url, method="POST")) as answer:
            assert answer.read() == made
