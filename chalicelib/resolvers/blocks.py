"""Files read from networks, block by block, each checked against its CID before a byte leaves.

A hash decides, so any block may come from any source, and a file whose first half came from one
goes on from another. Sources are tried in their order. One that is down, that lies, or that has not
answered within ``PATIENCE`` is left for the next, and comes last for a while.

That a CID is of the very bytes of a digest was proved when the content was put there (``placing``),
so what is read here by that CID needs no further hash.
"""

import hashlib
import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from chalicelib.http import Stream
from chalicelib.resolvers import NotThere, ResolverError
from chalicelib.resolvers.unixfs import Identifier, Node, node, parse

PATIENCE = 3.0
"""Seconds after which a source that has not answered is slow, and another is asked too."""
LONGEST = 30.0
"""Seconds after which a block cannot be had, if all sources were asked and none has answered."""
BLOCK_LIMIT = 2 << 20
"""Bytes of the largest block that networks carry."""
_SHUNNED, _LIAR_SHUNNED = 30.0, 600.0
"""For how many seconds a source that failed, or one that lied, comes last."""
_AHEAD = 8
"""How many blocks a reader asks for at once, where others leave it room."""
_AHEAD_OF_ALL = 64
"""How many blocks the readers of a process have on their way beside the one that each waits for."""
_DEPTH = 16
"""Levels of a tree. With two links to a node, that is 64 GiB."""

_log = logging.getLogger(__name__)
_room = threading.BoundedSemaphore(_AHEAD_OF_ALL)
_shunned: dict[str, tuple[float, float]] = {}
"""Of sources: until when they come last (on the clock of ``time.monotonic``), and for how long."""
_NEVER = (0.0, 0.0)
_PROBED = 10.0
"""Seconds between two probes of a source."""
_probed: dict[str, float] = {}


class Source(Protocol):
    """Where blocks may be had: a ``Resolver``, or a ``gateways.Gateway``."""

    @property
    def name(self) -> str:
        """By which it is remembered, and logged."""

    def block(self, cid: str) -> bytes:
        """One block, as the source gives it. Raises ``ResolverError``; ``NotThere`` where it has
        none."""


def read(
    sources: Sequence[Source], cid: str, offset: int, length: int, longest: float | None = None
) -> Stream:
    """Those bytes of a file. Iterating raises ``ResolverError`` where no source has a block that is
    needed, or has given it ``longest`` seconds (``LONGEST``) after the last was asked; or where the
    file is shorter, or is none. Raises ``ValueError`` for what is no CID."""
    return _Reader(sources, cid, offset, length, LONGEST if longest is None else longest)


def fetch(sources: Sequence[Source], cid: str, limit: int) -> bytes:
    """A whole file of at most so many bytes. Raises ``ResolverError``; ``ValueError`` where it is
    longer, or that is no CID."""
    identifier = parse(cid)
    block = _Asking(sources, cid, identifier, LONGEST).answer()
    size = len(block) if identifier.raw else _decoded(cid, block).size
    if size > limit:
        raise ValueError(f"What {cid} names has {size} bytes, and may have {limit}.")
    return b"".join(read(sources, cid, 0, size))


def probe(source: Source, cid: str) -> None:
    """See whether a source still gives what a CID names, now and then and without waiting: others
    are sent there."""
    now = time.monotonic()
    if now - _probed.get(source.name, -_PROBED) >= _PROBED:
        _probed[source.name] = now
        _Asking([source], cid, parse(cid), LONGEST)


class _Span(NamedTuple):
    """Of ``size`` bytes, those from ``start`` to ``end``; how many there are is not known before
    the first block."""

    start: int
    end: int
    size: int | None


class _Part:
    """A tree of blocks of which a span is wanted."""

    def __init__(
        self, sources: Sequence[Source], cid: str, span: _Span, depth: int, longest: float
    ) -> None:
        self.cid = cid
        self.identifier = parse(cid)
        self.span = span
        self.depth = depth
        self._sources = sources
        self._longest = longest
        self._asking: _Asking | None = None
        self._holds_room = False

    def ask(self) -> "_Asking":
        """Have its first block fetched."""
        if self._asking is None:
            self._asking = _Asking(self._sources, self.cid, self.identifier, self._longest)
        return self._asking

    def ask_ahead(self) -> bool:
        """Have its first block fetched, where there is room for one that nobody waits for yet."""
        if self._asking is None:
            self._holds_room = _room.acquire(blocking=False)
            if self._holds_room:
                self.ask()
        return self._asking is not None

    def let_go(self) -> None:
        """Its block was taken, or is wanted no more."""
        if self._holds_room:
            self._holds_room = False
            _room.release()


class _Reader:
    """The ``Stream`` of a part of a file."""

    def __init__(
        self, sources: Sequence[Source], cid: str, offset: int, length: int, longest: float
    ) -> None:
        self._sources = sources
        self._cid = cid
        self._length = length
        self._longest = longest
        self._parts = deque([self._part(cid, _Span(offset, offset + length, None), 0)])

    def __iter__(self) -> Iterator[bytes]:
        left = self._length
        try:
            while left and self._parts:
                asking = self._parts[0].ask()
                for part in itertools.islice(self._parts, 1, _AHEAD):
                    if not part.ask_ahead():
                        break
                block = asking.answer()
                part = self._parts.popleft()
                part.let_go()
                for piece in self._taken(part, block):
                    left -= len(piece)
                    yield piece
        finally:
            self.close()
        if left:
            raise ResolverError(f"What {self._cid} names is shorter than it should be.")

    def close(self) -> None:
        """Ask for nothing more. What was asked for is dropped when it comes."""
        while self._parts:
            self._parts.popleft().let_go()

    def _taken(self, part: _Part, block: bytes) -> Iterator[bytes]:
        """What a block holds of the bytes that are wanted. Those under it are read next."""
        start, end, size = part.span
        found = Node(block, ()) if part.identifier.raw else _decoded(part.cid, block)
        if size not in (None, found.size):
            raise ResolverError(f"The file that {self._cid} names is not sound: sizes differ.")
        if found.children and part.depth == _DEPTH:
            raise ResolverError(f"The tree that {self._cid} names is too deep.")
        if piece := found.data[start:end]:
            yield piece
        position, wanted = len(found.data), []
        for child in found.children:
            first, last = max(start - position, 0), min(end - position, child.size)
            if first < last:
                span = _Span(first, last, child.size)
                wanted.append(self._part(child.cid, span, part.depth + 1))
            position += child.size
        self._parts.extendleft(reversed(wanted))

    def _part(self, cid: str, span: _Span, depth: int) -> _Part:
        return _Part(self._sources, cid, span, depth, self._longest)


class _Asking:
    """One block, asked for from one source after another on threads, until one has given it."""

    def __init__(
        self, sources: Sequence[Source], cid: str, identifier: Identifier, longest: float
    ) -> None:
        self._cid = cid
        self._longest = longest
        self._identifier = identifier
        self._order = deque(_in_order(sources))
        self._answers: queue.SimpleQueue[tuple[str, bytes | ResolverError]] = queue.SimpleQueue()
        self._waiting: set[str] = set()
        self._until = 0.0
        self._ask_next()

    def answer(self) -> bytes:
        """The block. Raises ``ResolverError``."""
        error: ResolverError = NotThere(f"No network is known that would have {self._cid}.")
        while self._waiting:
            left = self._until - time.monotonic()
            try:
                name, answer = self._answers.get(timeout=max(left, 0.001))
            except queue.Empty:
                for name in self._waiting:
                    shun(name, _SHUNNED, "it does not answer in time")
                if not self._ask_next():
                    raise ResolverError(f"No network gave the block {self._cid} in time.") from None
                continue
            if isinstance(answer, bytes):
                return answer
            error = answer
            self._waiting.remove(name)
            self._ask_next()
        raise error

    def _ask_next(self) -> bool:
        """Ask one more source; False where all were asked."""
        if not self._order:
            return False
        source = self._order.popleft()
        self._until = time.monotonic() + (PATIENCE if self._order else self._longest)
        self._waiting.add(source.name)
        threading.Thread(
            target=self._ask, args=(source,), name=f"block-{source.name}", daemon=True
        ).start()
        return True

    def _ask(self, source: Source) -> None:
        answer: bytes | ResolverError
        try:
            answer = source.block(self._cid)
            if hashlib.sha256(answer).digest() != self._identifier.digest:
                shun(source.name, _LIAR_SHUNNED, f"gave other bytes for {self._cid}")
                answer = ResolverError(f"{source.name} gave other bytes for {self._cid}.")
        except NotThere as error:
            answer = error
        except ResolverError as error:
            shun(source.name, _SHUNNED, str(error))
            answer = error
        except Exception as error:
            _log.exception("%s failed to give a block", source.name)
            shun(source.name, _SHUNNED, "it failed")
            answer = ResolverError(f"{source.name} failed: {type(error).__name__}.")
        self._answers.put((source.name, answer))


def _in_order(sources: Sequence[Source]) -> list[Source]:
    """Sources as they are to be tried: those that failed lately come last."""
    return sorted(sources, key=lambda source: is_shunned(source.name))


def is_shunned(name: str) -> bool:
    """Whether a source is to come last now."""
    return _shunned.get(name, _NEVER)[0] > time.monotonic()


def shun(name: str, seconds: float, why: str) -> None:
    """Have a source come last: each time for twice as long, if it fails again soon."""
    now = time.monotonic()
    until, before = _shunned.get(name, _NEVER)
    if until > now:
        return
    if now - until < before:
        seconds = max(seconds, min(2 * before, 8 * seconds))
    _shunned[name] = now + seconds, seconds
    _log.warning("%s comes last for %.0f s: %s", name, seconds, why)


def _decoded(cid: str, block: bytes) -> Node:
    try:
        return node(block)
    except ValueError as error:
        raise ResolverError(f"The block {cid} is of no file: {error}") from error
