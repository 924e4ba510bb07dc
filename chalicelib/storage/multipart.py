"""How the bytes of an upload become parts of an object in S3.

What fits into one part is one PutObject. What is longer is one multipart upload, begun by the
request that first needs it, at that request's key. All its parts but the last are equal, as R2
wants them. A request that ends within a part stages the remainder twice, unless it is final: as a
part, which counts if no more bytes come, and as the object ``<key>.tail``, from which the next
request goes on.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from contextvars import copy_context
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self, cast

from chalicelib.http import Piece
from chalicelib.storage import ObjectTooLarge, Staged
from chalicelib.storage.parts import Part

if TYPE_CHECKING:
    from chalicelib.storage.s3 import S3Store

MOST_PARTS = 10_000
TAIL = ".tail"
_IN_FLIGHT = 4
_MOST_RESERVED = 32


def tail_of(key: str) -> str:
    """The key of the object that holds a request's remainder."""
    return key + TAIL


@dataclass(slots=True)
class Multipart:
    """A multipart upload, as ``Staged.state`` keeps it. A part is its number and its ETag.
    ``last`` is the short one, whose ``tail_size`` bytes are the object ``tail`` too."""

    id: str
    part_size: int
    parts: list[tuple[int, str]] = field(default_factory=list)
    last: tuple[int, str] | None = None
    tail: str = ""
    tail_size: int = 0

    @classmethod
    def of(cls, staged: Staged) -> Self:
        """What was staged, to be changed or not."""
        multipart = cls(**cast("dict[str, Any]", staged.state))
        multipart.parts = [(number, tag) for number, tag in multipart.parts]
        return multipart

    def state(self) -> dict[str, object]:
        """What ``of`` makes it from again."""
        parts = [[number, tag] for number, tag in self.parts]
        return {**asdict(self), "parts": parts, "last": self.last and [*self.last]}

    def listed(self) -> list[tuple[int, str]]:
        """The parts that the object is made of."""
        return self.parts if self.last is None else [*self.parts, self.last]


class S3Writer:
    """``Writer`` of ``S3Store``. The process's threads send its parts, a few at a time; it waits
    for no parts but its own."""

    def __init__(
        self, store: "S3Store", staged: Staged | None, key: str, reserve: Callable[[int], int]
    ) -> None:
        self._store = store
        self._staged = staged
        self._key = key
        self._reserve = reserve
        self._numbers: deque[int] = deque()
        self._reserved = 0
        self._size = 0 if staged is None else staged.size
        self._target = key
        self._multipart: Multipart | None = None
        if staged is not None and not staged.whole:
            self._target = staged.key
            self._multipart = Multipart.of(staged)
        self._part: Part | None = None
        self._sending: dict[Future[None], Part] = {}
        self._abandoned = threading.Event()

    def write(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            if len(piece):
                if self._part is None:
                    self._resume()
                self._take(memoryview(piece))
                self._size += len(piece)

    def close(self, *, final: bool) -> Staged:
        part, multipart = self._part, self._multipart
        if part is None and self._staged is not None:
            return self._staged
        if part is None or multipart is None:
            self._store.put(self._key, part, self._abandoned)
            self._release()
            return Staged(self._key, self._size, whole=True, state={})
        number = self._number()
        if short := not final and not part.full:
            multipart.tail, multipart.tail_size = tail_of(self._key), part.size
            self._start(part, self._store.put, multipart.tail, part, self._abandoned)
        last = number, self._upload(multipart, number, part)
        while self._sending:
            self._settle()
        self._release()
        multipart.parts.sort()
        if short:
            multipart.last = last
        else:
            multipart.parts.append(last)
        return Staged(self._target, self._size, whole=False, state=multipart.state())

    def abort(self) -> None:
        self._abandoned.set()
        for future in self._sending:
            future.cancel()
        wait(self._sending)
        self._release()

    def _resume(self) -> None:
        """Take back what the request before kept for this one."""
        if self._staged is None:
            return
        key, size = self._staged.key, self._staged.size
        if self._multipart is not None:
            key, size = self._multipart.tail, self._multipart.tail_size
            self._multipart.last, self._multipart.tail, self._multipart.tail_size = None, "", 0
        if size:
            with closing(self._store.read(key, 0, size)) as pieces:
                for piece in pieces:
                    self._take(memoryview(piece))

    def _take(self, view: memoryview) -> None:
        """Copy bytes into parts, and send those that are full and not the last."""
        while len(view):
            if self._part is None or self._part.full:
                if self._part is not None:
                    self._send(self._part)
                self._part = Part(self._store.process.memory, self._part_size)
            # Where memory is spent, a writer waits for its own parts, which storage gives back
            # soon. It does not wait for others', whose clients may stall.
            waits = any(part.holds_memory for part in self._sending.values())
            taken = self._part.fill(view, spill=not waits)
            if not taken:
                self._settle()
            view = view[taken:]

    def _send(self, part: Part) -> None:
        if self._multipart is None:
            upload_id = self._store.begin_multipart(self._key, self._abandoned)
            self._multipart = Multipart(upload_id, part.size)
        while len(self._sending) >= _IN_FLIGHT:
            self._settle()
        self._start(part, self._upload_and_release, self._multipart, self._number(), part)

    def _start(self, part: Part, work: Callable[..., None], *arguments: object) -> None:
        run = copy_context().run
        self._sending[self._store.process.threads.submit(run, work, *arguments)] = part

    def _settle(self) -> None:
        """Wait until one of the parts that are on their way is there."""
        for future in wait(self._sending, return_when=FIRST_COMPLETED).done:
            future.result()
            del self._sending[future]

    def _upload_and_release(self, multipart: Multipart, number: int, part: Part) -> None:
        try:
            multipart.parts.append((number, self._upload(multipart, number, part)))
        finally:
            part.release()

    def _upload(self, multipart: Multipart, number: int, part: Part) -> str:
        return self._store.upload_part(self._target, multipart.id, number, part, self._abandoned)

    def _number(self) -> int:
        """A part number of this request's own. They are reserved in growing runs: few requests to
        Postgres for a large blob, few numbers lost for a small chunk."""
        if not self._numbers:
            self._reserved = min(max(1, 2 * self._reserved), _MOST_RESERVED)
            first = self._reserve(self._reserved)
            self._numbers.extend(range(first, first + self._reserved))
        number = self._numbers.popleft()
        if number > MOST_PARTS:
            raise ObjectTooLarge(
                f"The blob has more parts than the {MOST_PARTS} that storage allows, each of"
                f" {self._part_size} bytes: a larger OPENREGISTRY_PART_SIZE admits it."
            )
        return number

    @property
    def _part_size(self) -> int:
        """That of the upload's first part, whatever the setting is by now."""
        return self._store.part_size if self._multipart is None else self._multipart.part_size

    def _release(self) -> None:
        for part in self._sending.values():
            part.release()
        if self._part is not None:
            self._part.release()
        self._sending, self._part = {}, None
