"""IPFS, through the RPC of Kubo nodes (https://docs.ipfs.tech/reference/kubo/rpc/).

With several nodes all get the same content, read once. One must take it; those that did not are
brought up to date by ``mend``. A node that fails is asked last for a while, and longer if it goes
on failing, so that one that hangs costs few requests their time.
"""

import json
import logging
import queue
import secrets
import threading
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextvars import copy_context
from typing import Any, TypeVar
from urllib.parse import urlencode

from chalicelib.http import Piece
from chalicelib.resolvers import Content, NotThere, ResolverError, Status, WrongCid
from chalicelib.resolvers.connections import PIECE, Server
from chalicelib.resolvers.pinning import PinningService
from chalicelib.resolvers.unixfs import UNIXFS_V1_2025

_SECONDS = 4.0
"""What a node must answer at once takes at most so long."""
_FIND_SECONDS = 10.0
"""For how long a node looks for a block that no node has itself."""
_ADD_SECONDS, _ADD_BYTES_A_SECOND = 30.0, 16 << 20
"""A node that has got all bytes must have them on its disk within so many seconds, and one more for
each so many bytes."""
_NAME_SECONDS = 120.0
"""Publishing a name, and finding it, asks many other nodes."""
_SHUNNED, _LONGEST_SHUNNED = 15.0, 120.0
"""For how many seconds a node that failed is asked last: twice as long each time that it fails
again."""
_BLOCK_LIMIT, _ANSWER_LIMIT = 2 << 20, 8 << 20
_LATE_SECONDS, _TICK = 20.0, 0.1
"""A node that keeps others waiting for longer, and for half of the time, is left behind."""
_ORIGINS = 20
"""How many addresses a pinning service takes, at most."""
_PIECES = 8
"""How many pieces of content wait for each node, at most."""

_log = logging.getLogger(__name__)
_Each = TypeVar("_Each")


class Kubo:
    """``Resolver`` on IPFS nodes, whose RPC is at ``nodes``: URLs, with an account perhaps. Where
    there is a pinning service it is asked to keep all that they keep; while it is down they go on
    without it, until ``mend`` or ``unpin`` tell it."""

    name = "ipfs"

    def __init__(
        self,
        nodes: Sequence[str],
        gateways: Sequence[str] = (),
        service: PinningService | None = None,
    ) -> None:
        self._nodes = [_Node(url) for url in nodes]
        self._service = service
        self.gateways = tuple(gateway.rstrip("/") for gateway in gateways)

    def put(self, content: Content) -> str:
        answers = _added(content, self._up())
        cids = _taken(answers)
        if not cids:
            raise _failure(answers.values())
        if len(set(cids.values())) > 1:
            said = ", ".join(f"{node.name} says {cid}" for node, cid in cids.items())
            raise WrongCid(f"The IPFS nodes give {content.name} different CIDs: {said}.")
        for node in answers.keys() - cids.keys():
            _log.warning("%s has not got %s: %s", node.name, content.name, answers[node])
        cid = next(iter(cids.values()))
        if self._service:
            try:
                self._have_pinned(self._service, content.name, cid, list(cids))
            except ResolverError as error:
                _log.warning("%s is not pinned by the service: %s", content.name, error)
        return cid

    def status(self, name: str, cid: str) -> Status:
        answers = self._pinned(cid)
        keeping = len(_taken(answers))
        lacking = len(self._nodes) - keeping
        if not keeping:
            failures = [each for each in answers.values() if not isinstance(each, NotThere)]
            if failures:
                raise _failure(failures)
            return Status("missing", replicas=0, lacking=lacking)
        if self._service and not self._service.keeps(cid):
            lacking += 1
        return Status("there", replicas=keeping, lacking=lacking)

    def mend(self, content: Content, cid: str) -> None:
        answers = self._pinned(cid)
        keeping = list(_taken(answers))
        lacking = [node for node, each in answers.items() if isinstance(each, NotThere)]
        failures = [each for each in answers.values() if isinstance(each, ResolverError)]
        failures = [each for each in failures if not isinstance(each, NotThere)]
        if lacking:
            added = _added(content, lacking)
            for node, said in _taken(added).items():
                if said != cid:
                    raise WrongCid(f"{node.name} gives {content.name} the CID {said}, not {cid}.")
                keeping.append(node)
            failures += [each for each in added.values() if isinstance(each, ResolverError)]
        if keeping and self._service and not self._service.keeps(cid):
            self._have_pinned(self._service, content.name, cid, keeping)
        if failures:
            raise _failure(failures)

    def block(self, cid: str) -> bytes:
        found = self._first("block/get", {"arg": cid, "offline": "true"}, _SECONDS, _BLOCK_LIMIT)
        if isinstance(found, bytes):
            return found
        if not isinstance(found, NotThere):
            raise found
        within = {"arg": cid, "timeout": f"{_FIND_SECONDS:.0f}s"}
        found = self._first("block/get", within, _FIND_SECONDS + _SECONDS, _BLOCK_LIMIT, most=1)
        if isinstance(found, bytes):
            return found
        raise found

    def unpin(self, name: str, cid: str) -> None:
        answers = self._all("pin/rm", {"arg": cid})
        if self._service:
            self._service.unpin(cid)
        failures = [each for each in answers.values() if isinstance(each, ResolverError)]
        failures = [each for each in failures if not isinstance(each, NotThere)]
        if failures:
            raise _failure(failures)

    def check(self) -> None:
        answers = self._all("id", {})
        if not _taken(answers):
            raise _failure(answers.values())

    # What only IPFS has: names (IPNS) under which a CID is published, each the hash of a key.

    def import_key(self, key: str, seed: bytes) -> str:
        """Have the nodes know an Ed25519 key of that seed (32 bytes) by a name of ours, and give
        the IPNS name that it publishes. A key which is known by that name stays. Raises
        ``ResolverError`` where no node takes it."""
        boundary, (head, tail) = _form()
        body = head + _pem(seed) + tail
        arguments = {"arg": key, "format": "pem-pkcs8-cleartext", "ipns-base": "base36"}
        target = _target("key/import", arguments)
        error: ResolverError = ResolverError("No IPFS node is known.")
        found = ""
        for node in self._in_order():
            try:
                answer = node.ask("key/list", {"l": "true", "ipns-base": "base36"})
                known = [each for each in _field(answer, "Keys") if each["Name"] == key]
                if known:
                    found = str(known[0]["Id"])
                else:
                    answer = node.send(target, iter([body]), len(body), boundary, _SECONDS)
                    found = str(_field(answer, "Id"))
            except ResolverError as failure:
                error = failure
        if not found:
            raise error
        return found

    def publish(self, cid: str, key: str) -> str:
        """Publish a CID under the IPNS name of a key, and give that. The latest one that was
        published is what others find, whichever node they ask. Raises ``ResolverError`` where no
        node does it."""
        arguments = {
            "arg": f"/ipfs/{cid}",
            "key": key,
            "allow-offline": "true",
            "resolve": "false",
            "ipns-base": "base36",
            # Of two records the one of the greater number counts, whichever node signed it.
            "sequence": time.time_ns() // 1_000_000,
        }
        answers = self._all("name/publish", arguments, _NAME_SECONDS)
        for answer in _taken(answers).values():
            return str(_field(answer, "Name"))
        raise _failure(answers.values())

    def resolve(self, name: str) -> str:
        """The CID that was published under an IPNS name. Raises ``ResolverError``; ``NotThere``
        where none is found."""
        arguments = {"arg": f"/ipns/{name}", "nocache": "true", "timeout": f"{_NAME_SECONDS:.0f}s"}
        found = self._first("name/resolve", arguments, _NAME_SECONDS + _SECONDS, _ANSWER_LIMIT)
        if isinstance(found, bytes):
            return str(_field(found, "Path")).removeprefix("/ipfs/")
        raise found

    def _up(self) -> list["_Node"]:
        """The nodes that did not fail lately, or all."""
        return [node for node in self._nodes if not node.shunned] or self._nodes

    def _in_order(self) -> list["_Node"]:
        """The nodes as they are to be asked: those that failed lately come last."""
        return sorted(self._nodes, key=lambda node: node.shunned)

    def _pinned(self, cid: str) -> dict["_Node", bytes | ResolverError]:
        return self._all("pin/ls", {"arg": cid, "type": "recursive"})

    def _first(
        self, command: str, arguments: Mapping[str, Any], seconds: float, limit: int, most: int = 0
    ) -> bytes | ResolverError:
        """The first good answer of nodes, asked one after another: of ``most`` that answered
        something, at most. Else ``NotThere`` where one said so, else the last failure."""
        error: ResolverError = ResolverError("No IPFS node is known.")
        for node in self._in_order():
            try:
                return node.ask(command, arguments, seconds, limit)
            except NotThere as answer:
                error, most = answer, most - 1
                if most == 0:
                    break
            except ResolverError as failure:
                error = error if isinstance(error, NotThere) else failure
        return error

    def _all(
        self, command: str, arguments: Mapping[str, Any], seconds: float = _SECONDS
    ) -> dict["_Node", bytes | ResolverError]:
        """What each node answers, asked at once. Where others are up, one that failed lately is
        not asked."""
        answers: dict[_Node, bytes | ResolverError] = {}
        up = self._up()
        for node in self._nodes:
            if node not in up:
                answers[node] = ResolverError(f"{node.name} failed lately.")

        def ask(node: "_Node") -> None:
            try:
                answers[node] = node.ask(command, arguments, seconds)
            except ResolverError as error:
                answers[node] = error

        first, *others = up
        threads = [
            threading.Thread(target=copy_context().run, args=(ask, node), daemon=True)
            for node in others
        ]
        for thread in threads:
            thread.start()
        ask(first)
        for thread in threads:
            thread.join()
        return answers

    def _have_pinned(
        self, service: PinningService, name: str, cid: str, keeping: Sequence["_Node"]
    ) -> None:
        """Have the service fetch it from the nodes that keep it."""
        origins: list[str] = []
        for node in keeping:
            try:
                origins += _field(node.ask("id", {}), "Addresses") or []
            except ResolverError:
                continue
        for address in service.pin(cid, name, list(dict.fromkeys(origins))[:_ORIGINS]):
            for node in keeping:
                try:
                    node.ask("swarm/connect", {"arg": address})
                except ResolverError as error:
                    _log.info("%s does not reach the pinning service: %s", node.name, error)


class _Node:
    """One node, and how it fares."""

    def __init__(self, url: str) -> None:
        self._server = Server("The IPFS node", url)
        self.name = self._server.name
        self._until, self._seconds = 0.0, 0.0

    @property
    def shunned(self) -> bool:
        """Whether it failed lately."""
        return time.monotonic() < self._until

    def ask(
        self,
        command: str,
        arguments: Mapping[str, Any],
        seconds: float = _SECONDS,
        limit: int = _ANSWER_LIMIT,
    ) -> bytes:
        """A command's answer. Raises ``ResolverError``, ``NotThere``."""
        return self.send(_target(command, arguments), iter(()), 0, "", seconds, limit)

    def send(
        self,
        target: str,
        pieces: Iterator[bytes | memoryview],
        length: int,
        boundary: str,
        seconds: float,
        limit: int = _ANSWER_LIMIT,
    ) -> bytes:
        """A command's answer, to a form. Raises ``ResolverError``, ``NotThere``."""
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"} if boundary else {}
        try:
            answer = self._server.send(
                "POST", target, pieces, length, seconds=seconds, limit=limit, headers=kind
            )
        except ResolverError:
            self.shun()
            raise
        if answer.status == 200:
            self._until = self._seconds = 0.0
            return answer.body
        sentence = f"status {answer.status}"
        try:
            sentence = str(json.loads(answer.body)["Message"])
        except (ValueError, KeyError, TypeError):
            self.shun()
        if any(each in sentence for each in _NOT_THERE):
            raise NotThere(f"{self.name} has no such content: {sentence}.")
        command = target.partition("?")[0].removeprefix(_RPC)
        raise ResolverError(f"{self.name} refused {command}: {sentence}.")

    def shun(self) -> None:
        """Ask it last for a while."""
        self._seconds = min(max(2 * self._seconds, _SHUNNED), _LONGEST_SHUNNED)
        self._until = time.monotonic() + self._seconds


_RPC = "/api/v0/"
_NOT_THERE = ("not pinned", "not found", "could not find", "could not resolve", "deadline exceeded")


def _field(answer: bytes, name: str) -> Any:
    """What an answer says. Raises ``ResolverError``."""
    try:
        return json.loads(answer)[name]
    except (ValueError, KeyError, TypeError) as error:
        raise ResolverError("An IPFS node answered with something else than it should.") from error


def _target(command: str, arguments: Mapping[str, Any]) -> str:
    return f"{_RPC}{command}?{urlencode(arguments)}"


class _Adding:
    """Content on its way to one node, on a thread of its own."""

    def __init__(self, node: _Node, content: Content) -> None:
        self.node = node
        self.name, self.size = content.name, content.size
        self.answer: str | ResolverError = ResolverError(f"{node.name} was not asked.")
        self._pieces: queue.Queue[bytes | memoryview | None] = queue.Queue(_PIECES)
        self._ended = threading.Event()
        self._abandoned = False
        self.late = 0.0
        """For how many seconds it has kept others waiting."""
        run = copy_context().run
        threading.Thread(target=run, args=[self._run], name="ipfs-add", daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether the node takes nothing any more."""
        return self._ended.is_set()

    @property
    def starves(self) -> bool:
        """Whether the node has taken all that it was given."""
        return self._pieces.empty() and not self.ended

    def give(self, piece: bytes | memoryview | None) -> bool:
        """The next piece; None after the last. False where the node did not take it within
        ``_TICK``."""
        try:
            if not self.ended:
                self._pieces.put(piece, timeout=_TICK)
        except queue.Full:
            return False
        return True

    def abandon(self) -> None:
        """Give the node no more, so that it adds nothing."""
        self._abandoned = True
        while not self.give(None):
            pass

    def leave_behind(self) -> None:
        """Go on without the node."""
        self.node.shun()
        self.answer = ResolverError(f"{self.node.name} is much slower than others.")
        self._abandoned = True
        self._ended.set()

    def join(self) -> None:
        """Wait for the answer."""
        self._ended.wait()

    def _run(self) -> None:
        try:
            answer: str | ResolverError = self._add()
        except _Abandoned:
            answer = self.answer
        except ResolverError as error:
            answer = error
        except Exception as error:
            _log.exception("%s: adding %s failed", self.node.name, self.name)
            answer = ResolverError(f"{self.node.name} failed: {type(error).__name__}.")
        if not self._abandoned:
            self.answer = answer
        self._ended.set()

    def _add(self) -> str:
        profile = UNIXFS_V1_2025
        arguments = {
            "cid-version": profile.version,
            "raw-leaves": "true",
            "chunker": f"size-{profile.chunk}",
            "max-file-links": profile.width,
            "pin": "true",
            "pin-name": self.name,
            "quieter": "true",
        }
        boundary, (head, tail) = _form()
        length = len(head) + self.size + len(tail)
        seconds = _ADD_SECONDS + self.size / _ADD_BYTES_A_SECOND
        body = self._body(head, tail)
        said = self.node.send(_target("add", arguments), body, length, boundary, seconds)
        try:
            cid = str(json.loads(said.splitlines()[-1])["Hash"])
        except (ValueError, KeyError, TypeError, IndexError):
            raise ResolverError(f"{self.node.name} broke off while it added content.") from None
        # It names the CID before the content is safe; an error after that comes in a trailer.
        try:
            self.node.ask("pin/ls", {"arg": cid, "type": "recursive"})
        except NotThere:
            raise ResolverError(f"{self.node.name} added content and does not keep it.") from None
        return cid

    def _body(self, head: bytes, tail: bytes) -> Iterator[bytes | memoryview]:
        yield head
        while (piece := self._pieces.get()) is not None and not self._abandoned:
            yield piece
        if self._abandoned:
            raise _Abandoned
        yield tail


class _Abandoned(Exception):
    """The content cannot be read to its end."""


def _added(content: Content, nodes: Sequence[_Node]) -> dict[_Node, str | ResolverError]:
    """Add content to nodes, and give the CID that each says. Raises what reading it raises."""
    adding = [_Adding(node, content) for node in nodes]
    try:
        _give_all(adding, content)
    except BaseException:
        for each in adding:
            each.abandon()
        raise
    for each in adding:
        while not each.give(None):
            pass
    for each in adding:
        each.join()
    return {each.node: each.answer for each in adding}


def _give_all(adding: Sequence[_Adding], content: Content) -> None:
    """Read content once, as fast as the nodes take it: one that is much slower than another is left
    behind."""
    started = time.monotonic()
    for piece in _cut(content.open()):
        for each in adding:
            while not each.give(piece):
                if any(other.starves for other in adding):
                    each.late += _TICK
                if each.late > max(_LATE_SECONDS, (time.monotonic() - started) / 2):
                    each.leave_behind()
        if all(each.ended for each in adding):
            return


def _cut(pieces: Iterator[Piece]) -> Iterator[bytes | memoryview]:
    """Pieces that are no longer than one that is sent at once."""
    for piece in pieces:
        if len(piece) <= PIECE:
            yield bytes(piece)
        else:
            view = memoryview(bytes(piece))
            yield from (view[start : start + PIECE] for start in range(0, len(view), PIECE))


def _form() -> tuple[str, tuple[bytes, bytes]]:
    """The boundary of a form with one file (RFC 7578), and what goes before and behind that."""
    boundary = secrets.token_hex(16)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="content"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return boundary, (head.encode(), f"\r\n--{boundary}--\r\n".encode())


def _pem(seed: bytes) -> bytes:
    """An Ed25519 key of that seed as PKCS #8 (RFC 8410)."""
    if len(seed) != 32:
        raise ValueError("The seed of an Ed25519 key has 32 bytes.")
    packed = b64encode(bytes.fromhex("302e020100300506032b657004220420") + seed)
    return b"-----BEGIN PRIVATE KEY-----\n" + packed + b"\n-----END PRIVATE KEY-----\n"


def _taken(answers: Mapping[_Node, _Each | ResolverError]) -> dict[_Node, _Each]:
    """The answers that are no failures."""
    return {node: each for node, each in answers.items() if not isinstance(each, ResolverError)}


def _failure(answers: Any) -> ResolverError:
    """One error of those of several nodes."""
    errors = list(dict.fromkeys(str(each) for each in answers if isinstance(each, ResolverError)))
    return ResolverError(" ".join(errors) or "No IPFS node is known.")
