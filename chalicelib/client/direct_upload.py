"""One direct upload, as docs/direct-uploads.md has it: its Location, the URLs of its parts, what
the registry was told of it, and its end."""

import itertools
import json
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event
from typing import Any
from urllib.parse import urljoin

from chalicelib.client.ordinary_upload import ATTEMPTS, Ask, pause, pieces, with_query
from chalicelib.client.progress import Bar
from chalicelib.client.remote import RemoteError, Reply
from chalicelib.storage.parts import Part

ENDPOINT = "_openregistry/uploads/direct"

_BATCH = 8  # parts whose URLs are asked for at once
_TELL = 5.0  # seconds after which states are told, where no request was made anyway
_FIRST_POLL, _LONGEST_POLL = 0.1, 2.0  # seconds
_FIRST = 8  # URLs that come with an upload, where they are for parts that may be sent
_POLLERS = 16
_STANDSTILL = 300.0  # seconds without progress after which verifying is waited for no longer
_ENDING_SECONDS = 300.0  # the answer to a commit may take so long
_HOPELESS = 3  # attempts that may be refused before a part is given up
_BUSY = {400, 408, 409, 429, 500, 502, 503, 504}


class Committed(Exception):
    """The repository has the blob already."""


class DirectUpload:
    """An upload that was begun or taken over. Threads may share it."""

    def __init__(
        self,
        ask: Ask,
        threads: ThreadPoolExecutor,
        abandoned: Event,
        repository: str,
        wishes: Mapping[str, object],
    ) -> None:
        """Begin. Raises ``Committed`` and ``RemoteError``."""
        self._ask = ask
        self._threads = threads
        self._abandoned = abandoned
        self._repository = repository
        self._lock = threading.Lock()  # of what is known
        self._asking = threading.Lock()  # one request for URLs at a time
        self._urls: dict[int, tuple[int, str, float]] = {}
        self._ahead = 0
        self._fetching = False
        self._untold: dict[int, str] = {}
        self._asked = self._confirmed = time.monotonic()
        self.over = False
        """Whether the registry takes no more parts of it."""
        reply = ask("POST", f"/v2/{repository}/{ENDPOINT}", **_json(wishes))
        answer = reply.check(200, 201).json()
        try:
            if reply.status == 200:
                if answer["state"] == "verifying":
                    self._wait_for_another(wishes, answer, reply)
                raise Committed
            self.location = urljoin(reply.url, answer["location"])
            self.part_size = int(answer["partSize"])
            self.most_parts = int(answer["maxParts"])
            self._good = float(answer["expiresIn"])
            self._hold = float(answer.get("holdSeconds") or 60)
            self.held = {
                int(part["number"]): (int(part["size"]), str(part.get("state", "")))
                for part in answer["parts"]
            }
            """The parts that storage has: their size, and their state where it was told."""
            self._keep_urls(answer.get("urls", ()), _FIRST)
        except (KeyError, TypeError, ValueError):
            raise _strange(reply) from None
        if self.part_size <= 0 or self.part_size % 128:
            raise _strange(reply)

    # The parts

    def send(self, number: int, part: Part, state: str, size: int | None) -> None:
        """Bring a part to storage, and again until it is there. ``size`` is that of the blob, if
        it is known; ``state`` is told later. Raises ``RemoteError``."""
        refused = 0
        headers = {"Content-Length": str(part.size)}
        for attempt in itertools.count(1):
            if self._abandoned.is_set():
                raise RemoteError("Given up.")
            url = self._url(number, part.size, size)
            if self.over:
                return
            try:
                reply = self._ask(
                    "PUT",
                    url,
                    headers=headers,
                    body=lambda: pieces(part, 0, self._abandoned),
                    authorization="",
                    attempts=1,
                )
            except RemoteError as error:
                problem = error
            else:
                if 200 <= reply.status < 300:
                    break
                problem = reply.error()
                if reply.status == 404:
                    raise self._lost(problem)
                refused += reply.status not in _BUSY
            # What is wrong may be the URL.
            self._urls.pop(number, None)
            if attempt == ATTEMPTS or refused == _HOPELESS or self._abandoned.wait(pause(attempt)):
                raise problem
        with self._lock:
            self._urls.pop(number, None)
            if state:
                self._untold[number] = state

    def _url(self, number: int, part_size: int, size: int | None) -> str:
        """Where a part is put. Asks for others' URLs as well, and ahead of time."""
        if time.monotonic() - self._confirmed > self._hold:
            # Another may have taken the upload over: old URLs would write into what is his.
            self._request({})
        found = self._usable(number, part_size)
        if not found:
            with self._asking:
                found = self._usable(number, part_size)
                if not found and not self.over:
                    self._fetch(number, part_size, size)
                    found = self._usable(number, part_size)
                    if not found and not self.over:
                        raise RemoteError("The registry gave no URL for a part.")
        with self._lock:
            ahead = self._wanted(self._ahead + 1, size)
            if self._ahead - number >= _BATCH // 2 or self._fetching or not ahead or self.over:
                return found
            self._fetching = True
        self._threads.submit(self._fetch_ahead, ahead[0], size)
        return found

    def _usable(self, number: int, part_size: int) -> str:
        found = self._urls.get(number)
        if found is None or found[0] != part_size or found[2] < time.monotonic():
            return ""
        return found[1]

    def _wanted(self, first: int, size: int | None) -> list[int]:
        """The parts from one on whose URLs are asked for with it: those that are full, and likely
        to be sent."""
        count = self.most_parts if size is None else size // self.part_size
        full = (self.part_size,)
        numbers = range(first, min(first + _BATCH, count + 1))
        return [n for n in numbers if n not in self._urls and self.held.get(n, ())[:1] != full]

    def _fetch(self, number: int, part_size: int, size: int | None) -> None:
        wanted = [{"number": number, "size": part_size}]
        if part_size == self.part_size:
            others = self._wanted(max(number, self._ahead) + 1, size)
            wanted += [{"number": other, "size": part_size} for other in others]
        self._request({"parts": wanted})

    def _fetch_ahead(self, number: int, size: int | None) -> None:
        try:
            with self._asking:
                if not self._usable(number, self.part_size):
                    self._fetch(number, self.part_size, size)
        except RemoteError:
            pass  # whoever needs one asks again, and is told
        finally:
            self._fetching = False

    def _request(self, body: dict[str, Any], **options: Any) -> None:
        """Ask the Location for something, and tell it the states that are new."""
        with self._lock:
            told = dict(self._untold)
        if told:
            body["states"] = {str(number): state for number, state in told.items()}
        began = self._asked = time.monotonic()
        reply = self._ask("POST", self.location, **_json(body), **options)
        answer = self._heard(reply.check(200))
        with self._lock:
            self._confirmed = began
            self._untold = {n: s for n, s in self._untold.items() if told.get(n) != s}
            try:
                self._keep_urls(answer.get("parts", ()), len(body.get("parts", ())))
            except (KeyError, TypeError):
                raise _strange(reply) from None

    def _keep_urls(self, parts: Sequence[Mapping[str, Any]], most: int) -> None:
        """Remember where parts are put, as of the last answer, which had ``most`` at most."""
        until = self._confirmed + self._good * 0.9
        for part in parts:
            self._urls[part["number"]] = part["size"], part["url"], until
            self._ahead = max(self._ahead, part["number"])
        if len(parts) < most:
            # No more may be needed, or be allowed: whoever needs one asks for it.
            self._ahead = self.most_parts

    def _heard(self, reply: Reply) -> dict[str, Any]:
        """What an answer says, and how it goes on."""
        answer = reply.json()
        try:
            if answer.get("state") == "refused":
                raise _refused(answer["error"])
            self.over = answer["state"] != "open"
            if "location" in answer:
                self.location = urljoin(reply.url, answer["location"])
                self._good = float(answer["expiresIn"])
        except (AttributeError, KeyError, TypeError, ValueError):
            raise _strange(reply) from None
        return dict(answer)

    def _lost(self, problem: RemoteError) -> RemoteError:
        """Why storage knows the upload no longer."""
        try:
            self._heard(self._ask("GET", self.location).check(200))
        except RemoteError as error:
            return error
        return problem

    # Between parts

    @property
    def due(self) -> bool:
        """Whether ``keep`` is to be called: to hold the upload, or for states that are untold."""
        silent = time.monotonic() - self._asked
        return not self.over and (
            silent > self._hold / 3 or (silent > _TELL and bool(self._untold))
        )

    def keep(self) -> None:
        """Hold it, and tell states, so that a client that goes on finds them. Raises nothing: the
        next request for a URL says what is wrong."""
        with suppress(RemoteError):
            self._request({}, attempts=1, silence=10)

    def release(self) -> None:
        """Leave it to whoever goes on with it; it is let go of in a while anyway."""
        with suppress(RemoteError):
            self._request({"release": True}, attempts=2, silence=10)

    def cancel(self) -> None:
        """End it."""
        self._ask("DELETE", self.location)

    # The end

    def commit(self, digest: str, size: int, states: Sequence[str], bar: Bar | None) -> None:
        """Commit, and wait until the registry has verified the bytes. Raises ``RemoteError``."""
        reply = self._ask(
            "PUT",
            with_query(self.location, digest=digest),
            **_json({"size": size, "states": states}),
            silence=_ENDING_SECONDS,
        )
        if reply.status == 201:
            return
        if reply.status == 400:
            raise _explained(reply.error())
        self.over = True
        _Verifying(self, digest, size, bar).wait(self._heard(reply.check(202)), reply)

    def _wait_for_another(
        self, wishes: Mapping[str, Any], answer: Mapping[str, Any], reply: Reply
    ) -> None:
        """Wait until what was sent before, by a client that has left, is verified."""
        self.location = urljoin(reply.url, answer["location"])
        self._good, self.over = float(answer["expiresIn"]), True
        _Verifying(self, str(wishes["digest"]), int(answer["size"]), None).wait(answer, reply)

    def ask_state(self) -> tuple[dict[str, Any], Reply]:
        """How far it is. Raises ``RemoteError``."""
        reply = self._ask("GET", self.location, silence=_ENDING_SECONDS)
        return self._heard(reply.check(200)), reply

    def is_there(self, digest: str) -> bool:
        """Whether the repository has the blob."""
        return self._ask("HEAD", f"/v2/{self._repository}/blobs/{digest}").status == 200


class _Verifying:
    """Asks until an upload is verified; by several at once, where that makes it faster."""

    def __init__(self, upload: DirectUpload, digest: str, size: int, bar: Bar | None) -> None:
        self._upload = upload
        self._digest = digest
        self._size = size
        self._bar = bar
        self._ended = Event()
        self._verified = 0
        self._moved = time.monotonic()

    def wait(self, answer: Mapping[str, Any], reply: Reply) -> None:
        """Ask until it has ended. Raises ``RemoteError`` where it ends otherwise than well."""
        count = min(int(answer.get("pollers") or 1), _POLLERS) if self._going(answer) else 0
        if not count:
            return
        threads = [threading.Thread(target=self._help, daemon=True) for _ in range(count - 1)]
        for thread in threads:
            thread.start()
        try:
            self._poll(_seconds(reply))
        finally:
            self._ended.set()
            if self._bar is not None:
                self._bar.stage("")

    def _help(self) -> None:
        with suppress(RemoteError):  # the one who waits meets it too
            self._poll(0)

    def _poll(self, wanted: float) -> None:
        wait = _FIRST_POLL
        while not self._ended.wait(max(wait, wanted)):
            before = self._verified
            try:
                answer, reply = self._upload.ask_state()
            except RemoteError as error:
                if error.status == 404 and self._upload.is_there(self._digest):
                    self._ended.set()
                    return
                raise
            if not self._going(answer):
                self._ended.set()
                return
            wanted = _seconds(reply)
            wait = _FIRST_POLL if self._verified > before else min(wait * 2, _LONGEST_POLL)
            if time.monotonic() - self._moved > _STANDSTILL:
                raise RemoteError(
                    f"The registry has verified {self._verified} of {self._size} bytes and does not"
                    " go on: its storage may be down. It goes on by itself; push again later."
                )

    def _going(self, answer: Mapping[str, Any]) -> bool:
        """Whether it is still verified. Notes how far it is."""
        if answer["state"] == "committed":
            return False
        verified = int(answer.get("verified") or 0)
        if verified > self._verified:
            self._verified, self._moved = verified, time.monotonic()
        if self._bar is not None:
            self._bar.stage(f"verifying, {verified * 100 // max(self._size, 1)} %")
        return True


def _json(body: Mapping[str, object]) -> dict[str, Any]:
    return {
        "body": json.dumps(body).encode(),
        "headers": {"Content-Type": "application/json"},
    }


def _seconds(reply: Reply) -> float:
    """How long the registry wants to be left alone."""
    value = reply.headers.get("Retry-After", "")
    return min(float(value), 30.0) if value.isdigit() else 0.0


def _refused(error: Mapping[str, Any]) -> RemoteError:
    code, message = str(error["code"]), str(error["message"])
    return _explained(RemoteError(f"{code}: {message}", 400, code, error.get("detail")))


def _explained(error: RemoteError) -> RemoteError:
    """A refused commit, with what is to be done."""
    if error.code == "DIGEST_INVALID":
        more = "The registry has given this upload up: the next attempt sends all of it anew."
    elif error.code == "SIZE_INVALID":
        more = "The upload is still there: the next attempt sends what is missing."
    else:
        return error
    return RemoteError(f"{error.sentence} {more}", error.status, error.code, error.detail)


def _strange(reply: Reply) -> RemoteError:
    return RemoteError("The registry answered about a direct upload what cannot be.", reply.status)
