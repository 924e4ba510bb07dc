"""What is put on a network is proved to be there: by its digest, and by its CID."""

from collections.abc import Iterator

import pytest

from chalicelib import digests
from chalicelib.http import Piece
from chalicelib.resolvers import Content, WrongCid
from chalicelib.resolvers.placing import Bytes, Corrupt, place
from chalicelib.resolvers.unixfs import UNIXFS_V0_2015
from tests.contract.resolvers import Given, cid, given
from tests.resolvers.memory import Memory

DATA = b"What is to be put somewhere. " * 30_000
PIECES = [DATA[:100_000], DATA[100_000:300_000], DATA[300_000:]]


class Counted(Given):
    """Content that counts how often it is read."""

    opened = 0

    def open(self) -> Iterator[Piece]:
        self.opened += 1
        return super().open()


class Bucket(Memory):
    """A network that has what storage has, and reads nothing."""

    def put(self, content: Content) -> str:
        return self.lie


@pytest.fixture
def content() -> Counted:
    return Counted(given(DATA).name, PIECES)


def test_one_pass_is_enough(content: Counted) -> None:
    assert place(Memory(), content, content.digest) == cid(DATA)
    assert content.opened == 1


@pytest.mark.parametrize("network", [Memory, Bucket])
@pytest.mark.parametrize("said", [cid(DATA), cid(DATA, UNIXFS_V0_2015)])
def test_a_network_may_cut_files_in_a_way_of_its_own(
    content: Counted, network: type[Memory], said: str
) -> None:
    assert place(network(lie=said), content, content.digest) == said
    assert content.opened == (1 if network is Bucket or said == cid(DATA) else 2)


@pytest.mark.parametrize("network", [Memory, Bucket])
@pytest.mark.parametrize("said", [cid(b"lie"), cid(b"lie", UNIXFS_V0_2015), "nonsense", ""])
def test_what_has_another_cid_is_told(content: Counted, network: type[Memory], said: str) -> None:
    with pytest.raises(WrongCid) as error:
        place(network(lie=said or "?"), content, content.digest)
    assert (said or "?") in str(error.value)
    assert cid(DATA) in str(error.value)


def test_the_last_bytes_are_kept_back_until_all_are_proved(content: Counted) -> None:
    taken: list[bytes] = []

    class Greedy(Memory):
        def put(self, content: Content) -> str:
            taken.extend(map(bytes, content.open()))
            return ""

    with pytest.raises(Corrupt, match=content.name):
        place(Greedy(), Given(content.name, [*PIECES[:2], b"other"]), content.digest)
    assert taken == PIECES[:2]
    with pytest.raises(Corrupt):
        place(Bucket(lie=cid(DATA)), Given(content.name, [b""]), content.digest)


def test_a_manifest_by_another_algorithm() -> None:
    digest = digests.of(DATA, "sha512")
    content = Bytes(digests.unpack(digest), DATA)
    assert place(Memory(), content, digest) == cid(DATA)
    with pytest.raises(Corrupt):
        place(Memory(), Bytes(content.name, b"other"), digest)
