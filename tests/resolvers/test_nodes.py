"""CIDs and nodes as strangers write them."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chalicelib.resolvers.unixfs import UNIXFS_V0_2015, Child, Node, node, parse, text
from tests.resolvers.trees import counted, tree, varint

V1 = "bafybeihakzyqh6ih4iwgqily25hqovthaujdkbcfybornyhhbpoa63jwri"
V0 = "QmT78zSuBmuS4z925WZfrqQ1qHaJ56DQaTfyMUF7F8ff5o"


def cid_of(byte: int) -> bytes:
    return b"\x01\x55\x12\x20" + bytes([byte]) * 32


def link(cid: bytes, size: int = 3) -> bytes:
    return b"\x12" + counted(b"\x0a" + counted(cid) + b"\x12\x00\x18" + varint(size))


def data(*fields: bytes) -> bytes:
    return b"\x0a" + counted(b"".join(fields))


FILE = b"\x08\x02"


@settings(deadline=None)
@given(st.binary(min_size=32, max_size=32), st.sampled_from([b"\x01\x55", b"\x01\x70", b""]))
def test_cids_are_read_as_they_are_written(digest: bytes, prefix: bytes) -> None:
    found = parse(text(prefix + b"\x12\x20" + digest))
    assert found == (1 if prefix else 0, prefix == b"\x01\x55", digest)


@pytest.mark.parametrize(
    "wrong",
    [
        *("", "b", "Qm", V1[:-1], V1 + "a", V1.upper(), "z" + V1[1:], V1[:-1] + "j", V0[:-1]),
        *(V0[:-1] + "0", V0 + "\n", V1 + "\n", " " + V1, "ipfs://" + V1, "bafy" + "\u00e9" * 55),
        # By another hash, of another codec, an identity.
        text(b"\x01\x55\x13\x20" + bytes(32)),
        text(b"\x01\x71\x12\x20" + bytes(32)),
        text(b"\x01\x55\x00\x20" + bytes(32)),
        text(b"\x02\x55\x12\x20" + bytes(32)),
    ],
)
def test_other_texts_are_no_cids(wrong: str) -> None:
    with pytest.raises(ValueError, match="CID"):
        parse(wrong)


def test_a_node_with_children() -> None:
    one, two = cid_of(1), cid_of(2)
    for sizes in (b"\x20\x05\x20\x06", b"\x22\x02\x05\x06"):
        found = node(link(one) + link(two) + data(FILE, b"\x18\x0b", sizes))
        assert found == Node(b"", (Child(text(one), 5), Child(text(two), 6)))
        assert found.size == 11


def test_a_node_of_bytes() -> None:
    cid, known = tree(b"hello", UNIXFS_V0_2015)
    assert node(known[cid]) == Node(b"hello", ())


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"\x0a",
        data(b""),
        data(b"\x08\x01"),  # a folder
        data(b"\x08\x05"),  # a folder in shards
        data(FILE, FILE),
        data(FILE) * 2,
        data(FILE, b"\x12\x01a\x12\x01b", b"\x18\x02"),
        data(FILE, b"\x12\x05a"),
        data(FILE, b"\x18\x03"),
        data(FILE, b"\x18\x00\x18\x00"),
        data(FILE, b"\x4a\x00"),
        data(FILE) + b"\x1a\x00",
        data(FILE) + b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        data(FILE, b"\x18" + b"\x80" * 12 + b"\x01"),
        link(cid_of(1)) + data(FILE, b"\x18\x05"),
        link(cid_of(1)) + data(FILE, b"\x20\x05"),
        link(cid_of(1)) + data(FILE, b"\x18\x06\x20\x05"),
        link(cid_of(1)[:-1]) + data(FILE, b"\x18\x05\x20\x05"),
        link(b"") + data(FILE, b"\x18\x05\x20\x05"),
        b"\x12\x00" + data(FILE, b"\x18\x05\x20\x05"),
    ],
)
def test_other_blocks_are_no_nodes(wrong: bytes) -> None:
    with pytest.raises(ValueError, match=r"\.$"):
        node(wrong)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_noise_is_a_node_or_refused(noise: bytes) -> None:
    for block in (noise, data(noise), link(noise) + data(FILE, noise)):
        with suppress(ValueError):
            assert isinstance(node(block), Node)
