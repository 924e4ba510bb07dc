"""Every network there is, each with nothing of the test's on it; and content to try them with."""

import random
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import pytest

from chalicelib import digests
from chalicelib.http import Piece
from chalicelib.resolvers import Content, Resolver
from chalicelib.resolvers.filebase import Address, Filebase, FilebaseBucket
from chalicelib.resolvers.kubo import Kubo
from chalicelib.resolvers.placing import place
from chalicelib.resolvers.unixfs import UNIXFS_V0_2015, UNIXFS_V1_2025, Cid, Profile
from chalicelib.settings import Settings
from chalicelib.storage import open_store
from chalicelib.storage.s3 import S3Store
from tests import servers
from tests.contract.stores import aws_credentials
from tests.resolvers.doubles import filebase as doubles
from tests.resolvers.memory import Memory

MIB = 1 << 20


@dataclass(eq=False)
class Given:
    """``Content`` of a test: ``pieces`` are its bytes, as they come. ``error`` is raised after
    them."""

    name: str
    pieces: Sequence[Piece]
    key: str = ""
    error: Exception | None = None

    @property
    def data(self) -> bytes:
        return b"".join(map(bytes, self.pieces))

    @property
    def size(self) -> int:
        return sum(map(len, self.pieces))

    @property
    def digest(self) -> bytes:
        return digests.pack(self.name)

    def open(self) -> Iterator[Piece]:
        yield from self.pieces
        if self.error:
            raise self.error


def given(*pieces: Piece) -> Given:
    """Content of these pieces, under the name of its digest."""
    hashing = digests.Hash("sha256")
    for piece in pieces:
        hashing.update(piece)
    return Given(digests.unpack(hashing.digest()), pieces)


def noise(size: int) -> bytes:
    """Bytes that nobody has put anywhere."""
    return random.Random(secrets.token_bytes(16)).randbytes(size)


def cid(data: bytes, profile: Profile = UNIXFS_V1_2025) -> str:
    """The CID of bytes."""
    computing = Cid(profile)
    computing.update(data)
    return computing.finish()


@dataclass(frozen=True)
class Network:
    """A resolver. ``made`` has a content be where the resolver takes it from, and gives it.
    ``program`` is Python that binds ``resolver`` to the same one in another process; "" where its
    memory says nothing."""

    resolver: Resolver
    made: Callable[[Given], Content] = lambda content: content
    profile: Profile = UNIXFS_V1_2025
    program: str = ""

    def place(self, content: Given) -> str:
        """Put content there, and give the CID that was proved."""
        return place(self.resolver, self.made(content), content.digest)


@pytest.fixture(
    params=["memory", "filebase", "bucket", pytest.param("ipfs", marks=pytest.mark.long)]
)
def network(request: pytest.FixtureRequest) -> Network:
    """Each network in turn."""
    made: Network = request.getfixturevalue(f"network_{request.param}")
    return made


@pytest.fixture
def network_memory() -> Network:
    """A network of this process, as other tests use it: it too keeps the contract."""
    return Network(Memory())


@pytest.fixture
def network_ipfs(kubo: servers.Kubo) -> Network:
    """An IPFS node."""
    program = f"from chalicelib.resolvers.kubo import Kubo\nresolver = Kubo([{kubo.url!r}])\n"
    return Network(Kubo([kubo.url]), program=program)


@pytest.fixture(scope="session")
def filebase_double(s3_server: servers.S3) -> Iterator[doubles.Filebase]:
    """A double of Filebase that cuts files as it likes, and says late what it made of them."""
    with closing(doubles.Filebase(s3_server)) as double:
        double.profile, double.lag = UNIXFS_V0_2015, 0.2
        yield double


@pytest.fixture(scope="session")
def network_filebase(filebase_double: doubles.Filebase, s3_server: servers.S3) -> Network:
    """A bucket of Filebase's."""
    url = filebase_double.url
    address = Address(s3_server.bucket, "contract/", endpoint=url, gateway=url, rpc=url)
    arguments = address, s3_server.access_key, s3_server.secret_key
    program = (
        "from chalicelib.resolvers.filebase import Address, Filebase\n"
        f"resolver = Filebase('filebase', *{arguments!r})\n"
    )
    return Network(Filebase("filebase", *arguments), program=program)


@pytest.fixture
def network_bucket(
    filebase_double: doubles.Filebase, s3_server: servers.S3, monkeypatch: pytest.MonkeyPatch
) -> Network:
    """The registry's own storage, on Filebase, for what it does not store."""
    aws_credentials(monkeypatch, s3_server)
    url = s3_server.new_storage_url(endpoint=filebase_double.url, filebase="true")
    store = open_store(Settings(storage_url=url))
    assert isinstance(store, S3Store)
    return Network(FilebaseBucket(store, [filebase_double.url], lambda name: None))
