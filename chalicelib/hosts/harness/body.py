"""What has arrived of a request's body and has not been taken yet."""

import asyncio

from chalicelib.http import RegistryError

GATHER = 512 << 10
"""Bytes that are handed to a thread at once, and that may wait for it meanwhile. Measured: with
fewer the changes of thread cost as much as the writing, and more bring memory alone."""

PAUSE = 0.02
"""Seconds after which a slow client's bytes are handed over though they are few."""


class BodyError(RegistryError):
    """The body did not come to its end. ``vanished``: there is nobody to tell."""

    code = "BODY_INCOMPLETE"

    def __init__(self, message: str, status: int = 400, *, vanished: bool = False) -> None:
        super().__init__(message, status=status)
        self.vanished = vanished


class Body:
    """Filled by the connection (``put``, ``complete``, ``fail``), emptied by ``take``. The loop's
    alone."""

    __slots__ = ("_error", "_flush", "_loop", "_pieces", "_waiter", "complete", "dropped",
                 "received", "since", "size")  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pieces: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._error: BodyError | None = None
        self._flush: asyncio.TimerHandle | None = None
        self.size = 0
        self.received = 0
        self.complete = False
        self.dropped = False
        self.since = 0.0
        """The loop's time since which ``take`` has seen nothing arrive; 0: nobody waits."""

    @property
    def full(self) -> bool:
        """Whether enough has arrived for now: the connection reads no more until it is taken."""
        return self.size >= GATHER and self._waiter is None

    def put(self, piece: bytes) -> None:
        """These bytes have arrived."""
        self.received += len(piece)
        if self.dropped:
            return
        self._pieces.append(piece)
        self.size += len(piece)
        if self._waiter is not None:
            self.since = self._loop.time()
            if self.size >= GATHER:
                self._wake()
            elif self._flush is None:
                self._flush = self._loop.call_later(PAUSE, self._wake)

    def end(self) -> None:
        """The last byte has arrived."""
        self.complete = True
        self._wake()

    def fail(self, error: BodyError) -> None:
        """The rest will not come."""
        if not self.complete and self._error is None:
            self._error = error
            self._wake()

    def drop(self) -> None:
        """Nobody wants what comes, nor what is here."""
        self.dropped = True
        self._pieces = []
        self.size = 0

    async def take(self) -> list[bytes]:
        """The next pieces, soon after the first of them has come; none at the end. Raises
        ``BodyError``."""
        if self.size < GATHER and not self.complete and self._error is None:
            self._waiter = self._loop.create_future()
            self.since = self._loop.time()
            if self.size:
                self._flush = self._loop.call_later(PAUSE, self._wake)
            await self._waiter
        if self._error is not None:
            raise self._error
        pieces, self._pieces, self.size = self._pieces, [], 0
        return pieces

    def _wake(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        if self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_result(None)
            self._waiter = None
            self.since = 0.0
