"""Part buffers: their bytes, where those are, and that they are given back."""

import resource
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.storage import StorageError
from chalicelib.storage.parts import BLOCK, Memory, Part


def taken(part: Part, data: bytes, *, spill: bool = True) -> int:
    return part.fill(memoryview(data), spill=spill)


@given(
    blocks=st.integers(1, 4),
    sizes=st.lists(st.sampled_from([0, 1, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])),
)
def test_bytes_come_back(blocks: int, sizes: list[int]) -> None:
    """In memory, in a file, or in both, they are the same."""
    memory, limit = Memory(blocks * BLOCK), 5 * BLOCK + 77
    part, data = Part(memory, limit), b""
    for number, size in enumerate(sizes, start=1):
        piece = bytes([number]) * size
        count = taken(part, piece)
        assert count == min(size, limit - len(data))
        data += piece[:count]
        assert part.size == len(data)
        assert part.full == (len(data) == limit)
    assert b"".join(part) == b"".join(part) == data
    part.release()
    part.release()
    assert memory.lent == 0


def test_two_readers_at_once() -> None:
    part = Part(Memory(BLOCK), 3 * BLOCK)
    data = bytes(range(256)) * (BLOCK // 100)
    taken(part, data)
    pairs = list(zip(part, part, strict=True))
    assert b"".join(bytes(one) for one, _ in pairs) == data
    assert all(bytes(one) == bytes(other) for one, other in pairs)
    part.release()


def test_memory_is_lent_as_bytes_come() -> None:
    memory = Memory(10 * BLOCK)
    part = Part(memory, 8 * BLOCK)
    assert (memory.lent, part.holds_memory) == (0, False)
    for size, lent in [(1, 1), (BLOCK - 1, 1), (1, 2), (3 * BLOCK, 5)]:
        taken(part, bytes(size))
        assert (memory.lent, part.holds_memory) == (lent, True)
    part.release()
    assert (memory.lent, part.holds_memory) == (0, False)


def test_what_memory_has_no_room_for() -> None:
    memory = Memory(2 * BLOCK)
    first, second = Part(memory, 4 * BLOCK), Part(memory, 4 * BLOCK)
    assert taken(first, bytes(3 * BLOCK), spill=False) == 2 * BLOCK
    assert taken(second, b"more", spill=False) == 0
    assert taken(second, b"more") == 4
    first.release()
    # A part that has a file goes on there: its bytes have an order.
    assert taken(second, b"and more", spill=False) == 8
    assert (memory.lent, b"".join(second)) == (0, b"moreand more")
    second.release()


def test_pages_go_back_to_the_system() -> None:
    memory = Memory(64 * BLOCK)
    blocks = [block for _ in range(64) if (block := memory.take()) is not None]
    for block in blocks:
        block[:] = b"x" * BLOCK
    memory.give(blocks[1:])
    assert blocks[1][0] == ord("x")
    memory.give(blocks[:1])
    assert blocks[1][0] == 0


def test_few_pages_stay() -> None:
    memory = Memory(64 * BLOCK)
    block = memory.take()
    assert block is not None
    block[:1] = b"x"
    memory.give([block])
    assert memory.take() is block
    assert block[0] == ord("x")


def test_temporary_files_have_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    part = Part(Memory(BLOCK), 3 * BLOCK)
    taken(part, bytes(2 * BLOCK))
    assert list(tmp_path.iterdir()) == []
    part.release()


def test_no_room_for_a_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    memory = Memory(BLOCK)
    part = Part(memory, 30 * BLOCK)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * BLOCK, hard))
    try:
        with pytest.raises(StorageError, match="Memory for parts is spent"):
            taken(part, bytes(4 * BLOCK))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    part.release()
    assert memory.lent == 0


def test_a_released_part_is_not_sent() -> None:
    part = Part(Memory(BLOCK), BLOCK)
    taken(part, b"bytes")
    part.release()
    with pytest.raises(StorageError):
        b"".join(part)
