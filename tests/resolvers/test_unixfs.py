"""CIDs agree with those of others: the Rust library aleph-cid where it knows the profile, and the
JavaScript library ipfs-unixfs-importer (17.1.1, run by hand), whose answers stand here."""

import random
from collections.abc import Iterator

import aleph_cid
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chalicelib import digests
from chalicelib.resolvers.unixfs import (
    UNIXFS_V0_2015,
    UNIXFS_V1_2025,
    Cid,
    Profile,
    of_one_block,
)

MIB = 1 << 20
V0_CHUNK, V0_WIDTH = UNIXFS_V0_2015.chunk, UNIXFS_V0_2015.width
KUBO_V1 = Profile("kubo's own of version 1", version=1, chunk=256 << 10, width=174, raw=True)
PATTERN = bytes(range(251)) * 4096
NOISE = random.Random(7).randbytes(V0_CHUNK * V0_WIDTH * 2 + 5)


def content(size: int) -> Iterator[bytes]:
    """Bytes that count to 250 and begin again."""
    for start in range(0, size, len(PATTERN)):
        yield PATTERN[: size - start]


def cid(profile: Profile, pieces: Iterator[bytes]) -> str:
    computing = Cid(profile)
    for piece in pieces:
        computing.update(piece)
    return computing.finish()


def cut(data: bytes, length: int) -> Iterator[bytes]:
    return (data[start : start + length] for start in range(0, len(data), length))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"),
        (1, "bafkreidogqfzz75tpkmjzjke425xqcrmpcib2p5tg44hnbirumdbpl5adu"),
        (MIB - 1, "bafkreielkxdkfu2eicjkgfuykayoada6n6dar2xzclejnxxhyn2niqhnce"),
        (MIB, "bafkreidddocae7lltzjlkooe5a3tmiwsgazn7logjvqk7bzttsidpzhxne"),
        (MIB + 1, "bafybeidjogjfwuhbzwopgd4bn3skcf5m6oz72xshywcndzxgqb623nfclu"),
        (2 * MIB, "bafybeihakzyqh6ih4iwgqily25hqovthaujdkbcfybornyhhbpoa63jwri"),
        (5 * MIB + 123, "bafybeig3ftp3tiu5hm6kmjxgifdm6xdcffxxn3aahwx2x3ogtjrgmlyrnq"),
        *(
            pytest.param(size, expected, marks=pytest.mark.long)
            for size, expected in [
                (1023 * MIB, "bafybeihk3c5tj7kx6hp7icka65ebcsuktdwgddnqvfxcyqvcm5ehh5zyga"),
                (1024 * MIB, "bafybeicwzrjcl3bf6vaai6cmvhdkgwnyezzlwmdqp3fnu33im55ssch6ve"),
                (1024 * MIB + 1, "bafybeicvbrlogmtthu7pz4o64c7yzm4v6dtshggbqsldxcm4fi2ftbxazu"),
            ]
        ),
    ],
)
def test_unixfs_v1_2025(size: int, expected: str) -> None:
    assert cid(UNIXFS_V1_2025, content(size)) == expected


@pytest.mark.parametrize(
    "size",
    [
        *(0, 1, V0_CHUNK - 1, V0_CHUNK, V0_CHUNK + 1, 2 * V0_CHUNK),
        *(V0_CHUNK * V0_WIDTH + step for step in (-1, 0, 1)),
        *(V0_CHUNK * V0_WIDTH * 2 + step for step in (0, 1)),
    ],
)
def test_boundaries_of_chunks_and_nodes(size: int) -> None:
    data = NOISE[:size]
    for profile, theirs in (
        (UNIXFS_V0_2015, aleph_cid.CidHasher.for_ipfs()),
        (KUBO_V1, aleph_cid.CidHasher.for_ipfs_v1_raw_leaves()),
    ):
        theirs.update(data)
        assert cid(profile, cut(data, 700_001)) == theirs.finalize()


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40)), st.integers(1, 9), st.integers(2, 4), st.booleans())
def test_how_bytes_are_given_changes_nothing(
    pieces: list[bytes], chunk: int, width: int, raw: bool
) -> None:
    profile = Profile("small", version=1, chunk=chunk, width=width, raw=raw)
    assert cid(profile, iter(pieces)) == cid(profile, iter([b"".join(pieces)]))


def test_the_cid_of_one_block_by_its_digest() -> None:
    for data in (b"", b"x", bytes(MIB)):
        assert of_one_block(digests.of(data), len(data)) == cid(UNIXFS_V1_2025, iter([data]))
    assert of_one_block(digests.of(b"", "sha512"), 0) is None
    assert of_one_block(digests.of(bytes(MIB + 1)), MIB + 1) is None
