"""What is asked of every network."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chalicelib import digests
from chalicelib.resolvers import NotThere
from chalicelib.resolvers.blocks import BLOCK_LIMIT, read
from chalicelib.resolvers.placing import Corrupt, mend
from chalicelib.storage import StorageError
from tests.contract.resolvers import MIB, Given, Network, cid, given, noise
from tests.contract.stores import same

ROOT = Path(__file__).parents[2]
SIZES = [0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB, 5 * MIB + 123]
UNKNOWN = cid(b"What nobody has put anywhere.")
WITHIN = 20.0
"""Seconds in which a network gives up to look for what nobody has."""


def everything(network: Network, name: str, size: int) -> bytes:
    return b"".join(read([network.resolver], name, 0, size))


@pytest.mark.parametrize("size", SIZES)
def test_put(network: Network, size: int) -> None:
    content = given(noise(size))
    name = network.place(content)
    assert name == cid(content.data, network.profile)
    assert network.resolver.status(content.name, name).state == "there"
    same(everything(network, name, size), content.data)


def test_pieces_of_all_kinds_and_sizes(network: Network) -> None:
    data = noise(3 * MIB + 70_000)
    pieces: list[bytes | bytearray | memoryview] = []
    at = 0
    for size in [1, 0, 70_000, 3, 2 * MIB + 5, *([1500] * 100)]:
        piece = data[at : at + size]
        pieces += [bytearray(piece[: size // 2]), memoryview(piece[size // 2 :])]
        at += size
    content = given(*pieces, data[at:], b"")
    name = network.place(content)
    assert name == cid(data, network.profile)
    same(everything(network, name, len(data)), data)


def test_a_range(network: Network) -> None:
    data = noise(4 * MIB + 1000)
    name = network.place(given(data))
    for offset, length in [(0, 1), (5, 100), (MIB - 10, 20), (4 * MIB + 999, 1), (MIB, 2 * MIB)]:
        found = b"".join(read([network.resolver], name, offset, length))
        same(found, data[offset : offset + length])


def test_a_block_is_what_its_cid_says(network: Network) -> None:
    content = given(noise(1000))
    name = network.place(content)
    block = network.resolver.block(name)
    assert len(block) <= BLOCK_LIMIT
    if network.profile.raw:
        assert block == content.data


def test_put_again(network: Network) -> None:
    content = given(noise(MIB + 5))
    name = network.place(content)
    assert network.place(content) == name
    network.resolver.unpin(content.name, name)
    assert network.place(content) == name
    same(everything(network, name, content.size), content.data)


def test_unpin(network: Network) -> None:
    content, other = given(noise(2 * MIB)), given(noise(10))
    name, kept = network.place(content), network.place(other)
    network.resolver.unpin(content.name, name)
    assert network.resolver.status(content.name, name).state == "missing"
    network.resolver.unpin(content.name, name)
    assert network.resolver.status(other.name, kept).state == "there"
    same(everything(network, kept, 10), other.data)


def test_what_nobody_has(network: Network) -> None:
    name = given(b"What nobody has put anywhere.").name
    assert network.resolver.status(name, UNKNOWN).state == "missing"
    network.resolver.unpin(name, UNKNOWN)
    started = time.monotonic()
    with pytest.raises(NotThere):
        network.resolver.block(UNKNOWN)
    assert time.monotonic() - started < WITHIN


def test_it_is_well(network: Network) -> None:
    network.resolver.check()
    assert network.resolver.name
    assert all(not gateway.endswith("/") for gateway in network.resolver.gateways)


def test_what_lacks_is_mended(network: Network) -> None:
    content = given(noise(MIB + 9))
    name = network.place(content)
    made = network.made(content)
    mend(network.resolver, made, content.digest, name)
    network.resolver.unpin(content.name, name)
    mend(network.resolver, network.made(content), content.digest, name)
    assert network.resolver.status(content.name, name).state == "there"
    assert network.resolver.status(content.name, name).lacking == 0


def test_bytes_that_storage_does_not_give(network: Network) -> None:
    whole = noise(3 * MIB)
    content = Given(given(whole).name, [whole[: 2 * MIB]], error=StorageError("The disk is gone."))
    with pytest.raises(StorageError, match="The disk is gone"):
        network.place(content)
    for data in (whole, whole[: 2 * MIB]):
        assert network.resolver.status(content.name, cid(data, network.profile)).state == "missing"


def test_bytes_that_are_other_ones(network: Network) -> None:
    data = noise(2 * MIB + 5)
    content = Given(given(b"what it should be").name, [data])
    with pytest.raises(Corrupt):
        network.place(content)
    assert network.resolver.status(content.name, cid(data, network.profile)).state == "missing"


def test_many_at_once(network: Network) -> None:
    contents = [given(noise(size)) for size in [10, MIB + 1, 300_000] * 8]
    names: list[str] = []
    lock = threading.Lock()

    def put(content: Given) -> None:
        name = network.place(content)
        assert network.resolver.status(content.name, name).state == "there"
        same(everything(network, name, content.size), content.data)
        with lock:
            names.append(name)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, contents))
    assert sorted(names) == sorted(cid(content.data, network.profile) for content in contents)


HUGE = r"""
import re
from pathlib import Path
from chalicelib.resolvers.placing import place
{program}
class Huge:
    name, size, key = "sha256:{digest}", {count} << 20, ""
    def open(self):
        for number in range({count}):
            yield number.to_bytes(4) * (1 << 18)
resolver.check()
place(resolver, Huge(), bytes.fromhex("{packed}"))
print(int(re.search(r"VmHWM:\s*([0-9]+) kB", Path("/proc/self/status").read_text())[1]) >> 10)
"""
"""Puts an object that is larger than memory should be, and tells how many MiB it took at most."""


@pytest.mark.long
def test_memory_is_bounded(network: Network) -> None:
    if not network.program:
        return
    count, hashing = 300, digests.Hash("sha256")
    for number in range(count):
        hashing.update(number.to_bytes(4) * (1 << 18))
    code = HUGE.format(
        program=network.program,
        digest=digests.unpack(hashing.digest()).partition(":")[2],
        packed=hashing.digest().hex(),
        count=count,
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100, "MiB"
