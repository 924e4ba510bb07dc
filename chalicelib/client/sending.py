"""Sending blobs to a registry elsewhere: as direct uploads where it takes them and the blob is
large, and as the specification's own uploads else.

Whoever writes waits while the network is slower than he is. What is on its way lies in one budget
of memory for the process (``chalicelib.storage.parts``); a sender that finds it spent waits for its
own parts, and writes into a temporary file where it has none on their way: so no sender waits for
another one.
"""

import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, Self

from chalicelib import digests
from chalicelib.client.direct_upload import ENDPOINT, Committed, DirectUpload
from chalicelib.client.ordinary_upload import OrdinaryUpload
from chalicelib.client.progress import Bar
from chalicelib.client.remote import Remote, RemoteError, Reply
from chalicelib.digests import Hash
from chalicelib.http import Piece
from chalicelib.storage import StorageError
from chalicelib.storage.parts import Memory, Part

MIB = 1 << 20
MEMORY = 64 * MIB
PART_SIZE = 8 * MIB

_THREADS = 16
_IN_FLIGHT = 4  # parts of one sender
_KEEP = 1.0  # seconds between two looks at which uploads are to be held
_LEAVING = 15.0  # seconds for which an aborted sender's last requests are waited for
_INVALID = "DIGEST_INVALID"
_EXTENSION = "_openregistry"


class Sending:
    """What all senders to one registry share. Use it as a context, or ``close`` it."""

    def __init__(self, remote: Remote, memory: int = MEMORY, part_size: int = PART_SIZE) -> None:
        """``memory`` and ``part_size`` are bytes; the registry may choose another size."""
        self.remote = remote
        self.memory = Memory(memory)
        self.part_size = part_size
        self.threads = ThreadPoolExecutor(_THREADS, "sending")
        self._offers: bool | None = None
        self._lock = threading.Lock()
        self._discovering = threading.Lock()
        self._kept: set[DirectUpload] = set()
        self._closed = threading.Event()
        self._keeper: threading.Thread | None = None

    def close(self) -> None:
        """End the threads. The senders have ended before."""
        self._closed.set()
        self.threads.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def takes_direct(self, sender: "Sender") -> bool:
        """Whether the registry offers direct uploads. Asks it once."""
        with self._discovering:
            if self._offers is None:
                reply = sender.ask("GET", "/v2/_oci/ext/discover")
                if reply.status != 200:
                    # One who is not let in there learns nothing for the others.
                    self._offers = False if reply.status in (404, 405) else None
                    return False
                self._offers = _names_direct(reply)
            return self._offers

    def takes_none(self) -> None:
        """Remember that it takes none, whatever it offers."""
        self._offers = False

    def keep(self, upload: DirectUpload) -> None:
        """Hold an upload until ``let_go``, whatever its sender does meanwhile."""
        with self._lock:
            self._kept.add(upload)
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._run_keeper, daemon=True)
                self._keeper.start()

    def let_go(self, upload: DirectUpload) -> None:
        with self._lock:
            self._kept.discard(upload)

    def _run_keeper(self) -> None:
        while not self._closed.wait(_KEEP):
            with self._lock:
                due = [upload for upload in self._kept if upload.due]
            for upload in due:
                upload.keep()


class Sender:
    """Sends one blob. One thread at a time calls it. Whatever fails raises ``RemoteError``, after
    which only ``abort`` or ``cancel`` follows."""

    def __init__(
        self,
        sending: Sending,
        repository: str,
        *,
        digest: str | None = None,
        size: int | None = None,
        bar: Bar | None = None,
        authorization: str | None = None,
    ) -> None:
        """``digest`` and ``size`` where they are known. ``bar`` is told of bytes that are there.
        ``authorization`` stands for the remote's own credentials, as in ``Remote.send``."""
        self.authorization = authorization
        """Of requests from now on: that of a client may be renewed meanwhile."""
        self.received = 0
        """Bytes that were written."""
        self.skipped = 0
        """Bytes that an upload before had brought there, and that were not sent again."""
        self._sending = sending
        self._repository = repository
        self._digest = digest
        self._size = size
        self._bar = bar
        self._algorithm = digest.partition(":")[0] if digest else "sha256"
        if self._algorithm not in digests.ALGORITHMS:
            raise RemoteError(f"No digest is computed by {self._algorithm} here.")
        self._hash = Hash(self._algorithm)
        self._limit = sending.part_size
        self._part: Part | None = None
        self._parts = 0
        self._states: list[str] = []
        self._road: DirectUpload | OrdinaryUpload | None = None
        self._there = False
        self._flight: dict[Future[None], Part] = {}
        self._abandoned = threading.Event()

    def write(self, pieces: Iterable[Piece]) -> None:
        """Take the next bytes; waits while there is no room for them."""
        try:
            for piece in pieces:
                self._take(memoryview(piece).cast("B"))
        except StorageError as error:
            raise RemoteError(str(error)) from error

    def finish(self, digest: str | None = None) -> str:
        """Send what is left, commit, and wait until the blob is there; gives its digest. ``digest``
        is what it must be. Raises ``RemoteError``: with code DIGEST_INVALID where it is another."""
        wanted = digest or self._digest
        if self._there:
            if wanted != self._digest:
                raise RemoteError("The bytes have another digest.", 400, _INVALID)
            return self._digest or ""
        try:
            return self._finish(wanted)
        except StorageError as error:
            raise RemoteError(str(error)) from error

    def abort(self) -> None:
        """Give up for now. A direct upload stays, and whoever sends the same bytes goes on with
        it. After ``finish`` nothing is given up."""
        self._give_up()
        if isinstance(self._road, DirectUpload) and not self._there:
            self._road.release()

    def cancel(self) -> None:
        """Give up for good: what was sent is removed."""
        self._give_up()
        if self._road is not None and not self._there:
            self._road.cancel()

    def ask(self, method: str, path: str, **options: Any) -> Reply:
        """Send a request that has to do with this blob."""
        options.setdefault("authorization", self.authorization)
        scope = f"repository:{self._repository}:pull,push"
        return self._sending.remote.send(method, path, scope=scope, **options)

    # Filling parts

    def _take(self, view: memoryview) -> None:
        while len(view) and not self._there:
            if self._part is not None and self._part.full:
                self._pass_on(self._part)
                continue
            if self._part is None:
                self._part = Part(self._sending.memory, self._limit)
            waits = any(part.holds_memory for part in self._flight.values())
            taken = self._part.fill(view, spill=not waits)
            if not taken:
                self._settle()
            self.received += taken
            view = view[taken:]
        if self._there:
            self.received += len(view)
            self._count(len(view))

    def _pass_on(self, part: Part) -> None:
        """Send a part that is full, and not the last one."""
        self._hash_part(part)
        if self._road is None and not self._begin():
            return
        if isinstance(self._road, DirectUpload):
            self._start_direct(self._road, part)
        elif self._road is not None:
            self._settle_all()
            self._start(part, self._road.send, part)

    def _hash_part(self, part: Part) -> None:
        for piece in part:
            self._hash.update(piece)
        with suppress(ValueError):  # hashes cannot be suspended here, or parts end within a block
            self._states.append(self._hash.words().hex())

    def _begin(self) -> bool:
        """Choose the road, now that there is more than one part. Gives whether the part that is
        there has the size of its parts; else it has been taken anew, or is not needed."""
        self._road = self._begin_direct()
        if self._there:
            self._drop()
            return False
        if self._road is None:
            self._road = OrdinaryUpload(self.ask, self._repository, self._abandoned)
            size = self._road.chunk
        else:
            self._sending.keep(self._road)
            size = self._road.part_size
        if size == self._limit:
            return True
        self._take_anew(size)
        return False

    def _begin_direct(self) -> DirectUpload | None:
        if not self._states or not self._sending.takes_direct(self):
            return None
        wishes: dict[str, object] = {"partSize": self._limit, "algorithm": self._algorithm}
        wishes["states"] = self._states
        if self._digest is not None:
            wishes["digest"] = self._digest
        if self._size is not None:
            wishes["size"] = self._size
        try:
            return DirectUpload(
                self.ask, self._sending.threads, self._abandoned, self._repository, wishes
            )
        except Committed:
            self._there = True
        except RemoteError as error:
            if error.status not in (404, 405) or error.code not in ("", "UNSUPPORTED"):
                raise
            self._sending.takes_none()
        return None

    def _take_anew(self, size: int) -> None:
        """Cut what is there into parts of another size."""
        old, self._part, self._limit = self._part, None, size
        self._hash, self._states, self.received = Hash(self._algorithm), [], 0
        if old is None:
            return
        try:
            for piece in old:
                self._take(memoryview(piece))
        finally:
            old.release()

    def _drop(self) -> None:
        """Be done with what is there: the blob is."""
        self._count(self.received)
        if self._part is not None:
            self._part.release()
            self._part = None

    # Sending parts

    def _start_direct(self, road: DirectUpload, part: Part) -> None:
        self._parts += 1
        number = self._parts
        if number > road.most_parts:
            most = road.most_parts * road.part_size
            raise RemoteError(
                f"The registry takes no blob of more than {most} bytes in such parts."
            )
        state = self._states[number - 1] if number <= len(self._states) else ""
        if state and road.held.get(number) == (part.size, state):
            self.skipped += part.size
            self._count(part.size)
            part.release()
            self._part = None
            return
        while len(self._flight) >= _IN_FLIGHT:
            self._settle()
        self._start(part, road.send, number, part, state, self._size)

    def _start(self, part: Part, work: Any, *arguments: object) -> None:
        """Send a part on another thread, which releases it."""

        def run() -> None:
            try:
                work(*arguments)
                self._count(part.size)
            finally:
                part.release()

        self._part = None
        self._flight[self._sending.threads.submit(run)] = part

    def _settle(self) -> None:
        """Wait until one of the parts that are on their way is there."""
        for future in wait(self._flight, return_when=FIRST_COMPLETED).done:
            del self._flight[future]
            future.result()

    def _count(self, count: int) -> None:
        if self._bar is not None and count:
            self._bar.add(count)

    # The end

    def _finish(self, wanted: str | None) -> str:
        if self._part is None:
            self._part = Part(self._sending.memory, self._limit)
        if self._road is None:
            self._road = OrdinaryUpload(self.ask, self._repository, self._abandoned)
            if self._part.size > self._road.chunk:
                self._take_anew(self._road.chunk)
        part = self._part
        for piece in part:
            self._hash.update(piece)
        digest = self._checked(wanted)
        if isinstance(self._road, DirectUpload):
            self._size = self.received
            self._start_direct(self._road, part)
            self._settle_all()
            states = self._states[: self._parts - 1]
            self._road.commit(digest, self.received, states, self._bar)
            self._sending.let_go(self._road)
        else:
            self._settle_all()
            self._road.finish(part, digest)
            self._count(part.size)
            part.release()
        self._part, self._there = None, True
        self._digest = digest
        return digest

    def _checked(self, wanted: str | None) -> str:
        """The digest, where the bytes are those that were to come."""
        if self._size not in (None, self.received):
            raise RemoteError(
                f"There are {self.received} bytes and not {self._size}.", 400, "SIZE_INVALID"
            )
        found = digests.unpack(self._hash.digest())
        if wanted in (None, found):
            return found
        other = not (wanted or "").startswith(f"{self._algorithm}:")
        if other and isinstance(self._road, OrdinaryUpload):
            return wanted or ""  # which the registry computes
        raise RemoteError(f"The bytes have the digest {found}, not {wanted}.", 400, _INVALID)

    def _settle_all(self) -> None:
        while self._flight:
            self._settle()

    def _give_up(self) -> None:
        """Stop what is on its way."""
        self._abandoned.set()
        if isinstance(self._road, DirectUpload):
            self._sending.let_go(self._road)
        running = []
        for future, part in self._flight.items():
            if future.cancel():
                part.release()
            else:
                running.append(future)
        wait(running, timeout=_LEAVING)
        self._flight = {}
        if self._part is not None:
            self._part.release()
            self._part = None


def _names_direct(reply: Reply) -> bool:
    """Whether an answer about extensions names direct uploads."""
    try:
        return any(
            extension["name"] == _EXTENSION and ENDPOINT in extension["endpoints"]
            for extension in reply.json()["extensions"]
        )
    except (RemoteError, KeyError, TypeError):
        return False
