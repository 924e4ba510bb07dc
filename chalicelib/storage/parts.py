"""Parts of blobs on their way to object storage: in memory while the process's budget lasts, and
in unlinked temporary files beyond it, so that stalled uploads keep nobody waiting."""

import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from chalicelib.metrics import catalogue, sampled
from chalicelib.storage import StorageError

BLOCK = 256 << 10
"""Bytes of a block. Memory is lent in small pieces: a small or stalled upload holds little."""

_KEEP = 32  # blocks that stay with an idle process


class Memory:
    """One process's budget for parts, lent block by block.

    The pages come from the system when a block is first written, are used again while anything is
    on its way, and go back once nothing is.
    """

    def __init__(self, size: int) -> None:
        count = max(1, size // BLOCK)
        self._map = mmap.mmap(-1, count * BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        whole = memoryview(self._map)
        self._free = [whole[n * BLOCK : (n + 1) * BLOCK] for n in reversed(range(count))]
        self.count = count
        """How many blocks there are."""
        self._most = 0
        self._lock = threading.Lock()
        _memories.add(self)

    @property
    def lent(self) -> int:
        """How many blocks are lent."""
        return self.count - len(self._free)

    def take(self) -> memoryview | None:
        """A block, or None where all of them are lent."""
        with self._lock:
            if not self._free:
                return None
            block = self._free.pop()
            self._most = max(self._most, self.lent)
            return block

    def give(self, blocks: Iterable[memoryview]) -> None:
        """Take blocks back."""
        with self._lock:
            self._free.extend(blocks)
            if not self.lent and self._most > _KEEP:
                self._most = 0
                self._map.madvise(mmap.MADV_DONTNEED)


_memories: "weakref.WeakSet[Memory]" = weakref.WeakSet()


@sampled
def _measure() -> None:
    found = list(_memories)
    catalogue.PART_MEMORY.set(sum(memory.lent for memory in found) * BLOCK)
    catalogue.PART_MEMORY_LIMIT.set(sum(memory.count for memory in found) * BLOCK)


class Part:
    """The bytes of one part. They can be iterated over any number of times, by several threads at
    once, until ``release``."""

    def __init__(self, memory: Memory, limit: int) -> None:
        self.size = 0
        self._limit = limit
        self._memory = memory
        self._blocks: list[memoryview] = []
        self._file: BinaryIO | None = None

    @property
    def full(self) -> bool:
        """Whether there is room for nothing more."""
        return self.size == self._limit

    @property
    def holds_memory(self) -> bool:
        """Whether its release would make room in memory."""
        return bool(self._blocks)

    def fill(self, view: memoryview, *, spill: bool) -> int:
        """Copy bytes in until the part is full, and say how many. Where memory is spent, the rest
        goes into a file (``spill``), or stays with the caller."""
        view = view[: self._limit - self.size]
        done = 0
        while done < len(view):
            at = self.size % BLOCK
            if self._file is None and (at or self._grow()):
                taken = min(BLOCK - at, len(view) - done)
                self._blocks[-1][at : at + taken] = view[done : done + taken]
            elif self._file is None and not spill:
                break
            else:
                taken = self._spill(view[done:])
            done += taken
            self.size += taken
        return done

    def __iter__(self) -> Iterator[memoryview | bytes]:
        """The bytes from the first on, for a connection to send: blocks as they are, without a
        copy."""
        left = self.size
        for block in self._blocks:
            yield block[:left]
            left -= min(left, BLOCK)
        spilled = left
        while left:
            if self._file is None:
                raise StorageError("A part was given up while it was being sent.")
            piece = os.pread(self._file.fileno(), min(left, BLOCK), spilled - left)
            if not piece:
                raise StorageError("A temporary file lost its bytes.")
            left -= len(piece)
            yield piece

    def seek(self, offset: int) -> None:
        """Rewind: botocore does so before it follows a bucket to its region. Iterating begins at
        the first byte anyway."""

    def release(self) -> None:
        """Give its memory and file back. Nobody may be iterating."""
        self._memory.give(self._blocks)
        self._blocks = []
        if self._file is not None:
            self._file.close()
            self._file = None

    def _grow(self) -> bool:
        block = self._memory.take()
        if block is None:
            return False
        self._blocks.append(block)
        return True

    def _spill(self, view: memoryview) -> int:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
                catalogue.SPILLED.add()
            return self._file.write(view)
        except OSError as error:
            raise StorageError(
                f"Memory for parts is spent, and {tempfile.gettempdir()} takes no more:"
                f" {error.strerror}."
            ) from error
