"""Digests and resumable hashes."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib import digests
from chalicelib.digests import Hash
from chalicelib.http import DigestInvalid
from tests.images import make_bytes

algorithms = pytest.mark.parametrize("algorithm", digests.ALGORITHMS)


@algorithms
def test_digests_keep_their_text(algorithm: str) -> None:
    text = f"{algorithm}:{hashlib.new(algorithm, b'x').hexdigest()}"
    packed = digests.pack(text)
    assert packed == digests.of(b"x", algorithm)
    assert digests.unpack(packed) == text
    assert digests.algorithm(packed) == algorithm


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        "sha256:abc",
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 65,
        "sha512:" + "a" * 64,
        "md5:" + "a" * 32,
        "sha256:" + "a" * 64 + "\n",
    ],
)
def test_what_is_no_digest(text: str) -> None:
    with pytest.raises(DigestInvalid):
        digests.pack(text)


@given(
    st.sampled_from(digests.ALGORITHMS),
    st.lists(st.binary(max_size=700), max_size=6),
    st.sampled_from([bytes, bytearray, memoryview]),
)
def test_a_hash_goes_on_in_another_process(
    algorithm: str, parts: list[bytes], kind: type[bytes] | type[bytearray] | type[memoryview]
) -> None:
    state = Hash(algorithm).suspend()
    for part in parts:
        assert state is not None, "libcrypto is not the one we know"
        resumed = Hash.resume(state)
        assert resumed is not None
        resumed.update(kind(part))
        state = resumed.suspend()
    assert state is not None
    end = Hash.resume(state)
    assert end is not None
    whole = b"".join(parts)
    assert end.digest() == digests.of(whole, algorithm)
    assert end.length == len(whole)


@algorithms
def test_a_digest_may_be_taken_twice(algorithm: str) -> None:
    running = Hash(algorithm)
    running.update(b"one")
    assert running.digest() == running.digest() == digests.of(b"one", algorithm)
    running.update(b"two")
    assert running.digest() == digests.of(b"onetwo", algorithm)


def test_the_state_has_a_format_of_its_own() -> None:
    running = Hash()
    running.update(b"abc")
    initial = "6a09e667bb67ae853c6ef372a54ff53a510e527f9b05688c1f83d9ab5be0cd19"
    assert running.suspend() == bytes.fromhex(f"12{3:016x}{initial}") + b"abc"


def test_a_damaged_state_is_refused() -> None:
    state = Hash().suspend()
    assert state is not None
    with pytest.raises(ValueError, match="damaged"):
        Hash.resume(state + b"x")


@pytest.mark.long
def test_lengths_past_32_bits() -> None:
    """A length of more than 2**32 bits takes the second word of the context."""
    piece = make_bytes(1 << 20)
    running, expected = Hash(), hashlib.sha256()
    for _ in range(600):
        running.update(piece)
        expected.update(piece)
    state = running.suspend()
    assert state is not None
    resumed = Hash.resume(state)
    assert resumed is not None
    resumed.update(b"end")
    expected.update(b"end")
    assert resumed.digest()[1:] == expected.digest()


def test_without_libcrypto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_layout", lambda _name: None)
    running = Hash()
    running.update(memoryview(b"abc"))
    assert running.digest() == digests.of(b"abc")
    assert running.suspend() is None
    assert Hash.resume(b"\x12" + bytes(40)) is None


def test_the_words_of_nothing_are_the_initial_ones() -> None:
    """FIPS 180-4, sections 5.3.3 and 5.3.5."""
    assert Hash("sha256").words().hex() == (
        "6a09e667bb67ae853c6ef372a54ff53a510e527f9b05688c1f83d9ab5be0cd19"
    )
    assert Hash("sha512").words().hex() == (
        "6a09e667f3bcc908bb67ae8584caa73b3c6ef372fe94f82ba54ff53a5f1d36f1"
        "510e527fade682d19b05688c2b3e6c1f1f83d9abfb41bd6b5be0cd19137e2179"
    )


@algorithms
@pytest.mark.parametrize("blocks", [1, 2, 1000])
def test_a_hash_goes_on_from_words(algorithm: str, blocks: int) -> None:
    data = make_bytes(blocks * 128 + 57)
    hashing = Hash(algorithm)
    hashing.update(data[: blocks * 128])
    words = hashing.words()
    assert len(words) == digests.state_size(algorithm)
    on = Hash.at(algorithm, blocks * 128, words)
    on.update(data[blocks * 128 :])
    assert on.digest() == digests.of(data, algorithm)
    assert Hash.at(algorithm, blocks * 128, words).words() == words


@algorithms
def test_there_are_no_words_within_a_block(algorithm: str) -> None:
    hashing = Hash(algorithm)
    hashing.update(b"x")
    with pytest.raises(ValueError, match="no words"):
        hashing.words()
