"""Filebase, which keeps on IPFS what its S3 buckets have (https://filebase.com/docs).

How Filebase cuts a file into blocks is its own affair. So it is given archives of blocks (``car``),
with the metadata ``import: car``: then the CID is the one that was computed here, and every block
the one that others expect. It says the CID with the answer to a small object, and some time after a
large one. An object is named by its digest, and is on IPFS until it is deleted.

Two resolvers: ``Filebase`` puts content into a bucket, and ``FilebaseBucket`` is for a registry
whose storage is a bucket of Filebase's: what is stored is on IPFS already.
"""

import itertools
import json
import re
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode, urlsplit

from chalicelib.resolvers import Content, NotThere, Resolver, ResolverError, Status, WrongCid, car
from chalicelib.resolvers.blocks import BLOCK_LIMIT
from chalicelib.resolvers.connections import Server
from chalicelib.resolvers.gateways import gateway
from chalicelib.resolvers.unixfs import Block, Tree, same
from chalicelib.storage import Refused, StorageError
from chalicelib.storage.s3 import FILEBASE, Bucket, S3Store

_PART, _PART_MEMORY = 8 << 20, 32 << 20
_RATE = 50.0
"""Requests a second that a process makes. Filebase's documents speak of 100, and of 500, for an
account, whose other processes ask too."""
_CID_SECONDS = 20.0
"""How long a job waits for the CID of what it has put, before it is tried again."""
_GIVEN_UP_SECONDS = 3600.0
"""After which what has no CID yet is sent again."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 3.0
_RPC_SECONDS = 15.0
_GATEWAY = "https://ipfs.filebase.io"
_SERVERS = r"(?:[a-z0-9-]+\.)*filebase\.(?:com|io)|[a-z0-9-]+\.myfilebase\.com"
"""Hosts of Filebase's own, its customers' gateways among them."""
_FOLDER = "ipfs"
"""Where a registry's bucket has what is put there beside the blobs."""
_IMPORT = {"import": "car"}
_NO_OBJECT = ("404", "NoSuchKey", "NotFound")


@dataclass(frozen=True, slots=True)
class Address:
    """Where content is put: a bucket, what its keys begin with (``prefix``), and the servers:
    ``endpoint`` for S3; ``gateway``, at which everybody finds what is there, and ``rpc``, from
    which its owner has blocks, or "" for none."""

    bucket: str
    prefix: str = ""
    endpoint: str = f"https://{FILEBASE}"
    gateway: str = _GATEWAY
    rpc: str = "https://rpc.filebase.io"

    @classmethod
    def parse(cls, given: Mapping[str, object]) -> Self:
        """From what a person gave. Raises ``ValueError`` with a sentence that says what is
        wrong."""
        known = {field.name for field in fields(cls)}
        for name, value in given.items():
            if name not in known:
                raise ValueError(f"An address has no {name}; it has {', '.join(sorted(known))}.")
            if not isinstance(value, str):
                raise ValueError(f"The {name} of an address must be a text.")
        if not given.get("bucket"):
            raise ValueError("An address must name a bucket.")
        address = cls(**{name: str(value).strip() for name, value in given.items()})
        prefix = address.prefix.strip("/")
        try:
            Bucket.parse(address.bucket, prefix, {})
        except ValueError as error:
            raise ValueError(f"The address {error}.") from None
        for name in ("endpoint", "gateway", "rpc"):
            _check_url(name, getattr(address, name), needed=name == "endpoint")
        return cls(
            bucket=address.bucket,
            prefix=prefix and prefix + "/",
            endpoint=address.endpoint.rstrip("/"),
            gateway=address.gateway.rstrip("/"),
            rpc=address.rpc.rstrip("/"),
        )

    @property
    def is_public(self) -> bool:
        """Whether all servers are Filebase's own, over TLS: a stranger who gives such an address
        sends the registry nowhere else."""
        urls = [urlsplit(url) for url in (self.endpoint, self.gateway, self.rpc) if url]
        return all(
            url.scheme == "https"
            and url.port in (None, 443)
            and re.fullmatch(_SERVERS, url.hostname or "")
            for url in urls
        )

    def as_json(self) -> dict[str, str]:
        """What ``parse`` makes it from again."""
        return asdict(self)


def _check_url(name: str, text: str, *, needed: bool) -> None:
    if not text and not needed:
        return
    try:
        url = urlsplit(text)
        valid = (
            url.scheme in ("http", "https")
            and bool(url.hostname)
            and url.port != 0
            and not (url.query or url.fragment or "@" in url.netloc)
            and re.fullmatch(r"[!-~]+", text) is not None
        )
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f"The {name} of an address must be a URL, like https://{FILEBASE}.")


class Filebase:
    """``Resolver`` on a bucket of Filebase's, by keys of the one who owns it."""

    def __init__(self, name: str, address: Address, access_key: str, secret_key: str) -> None:
        self.name = name
        self.gateways: tuple[str, ...] = (address.gateway,) if address.gateway else ()
        self._objects = _Objects(
            S3Store(
                Bucket(
                    address.bucket,
                    address.prefix,
                    endpoint=address.endpoint,
                    region="us-east-1",
                    path_style=True,
                    access_key=access_key,
                    secret_key=secret_key,
                    service="Filebase",
                    rate=_RATE,
                ),
                _PART,
                _PART_MEMORY,
                _IMPORT,
            ),
            name,
        )
        token = b64encode(f"{access_key}:{secret_key}:{address.bucket}".encode()).decode()
        self._rpc = (
            Server("Filebase's RPC", address.rpc, {"Authorization": f"Bearer {token}"})
            if address.rpc
            else None
        )

    def put(self, content: Content) -> str:
        return self._objects.put(content)

    def status(self, name: str, cid: str) -> Status:
        return self._objects.status(self._objects.key(name), cid)

    def mend(self, content: Content, cid: str) -> None:
        _mend(self, content, cid)

    def block(self, cid: str) -> bytes:
        if self._rpc is None:
            return _from_gateways(self.gateways, cid)
        answer = self._rpc.ask(
            "POST",
            f"/api/v0/block/get?{urlencode({'arg': cid})}",
            seconds=_RPC_SECONDS,
            limit=BLOCK_LIMIT,
        )
        if answer.status == 200:
            return answer.body
        sentence = _sentence(answer.body)
        if answer.status == 404 or "not found" in sentence or "could not find" in sentence:
            raise NotThere(f"Filebase does not find {cid}.")
        raise ResolverError(f"{self._rpc.name} answered {answer.status}. {sentence}".strip())

    def unpin(self, name: str, cid: str) -> None:
        self._objects.delete(name)

    def check(self) -> None:
        self._objects.check()


class FilebaseBucket:
    """``Resolver`` for a registry whose storage is a bucket of Filebase's: nothing is copied, and
    the CID is read. What storage does not have, such as manifests, is put beside the blobs.
    ``find_key`` says at which key storage has the blob of a name, None where it has none."""

    name = "bucket"

    def __init__(
        self, store: S3Store, gateways: Sequence[str], find_key: Callable[[str], str | None]
    ) -> None:
        self.gateways: tuple[str, ...] = tuple(gateways) or (_GATEWAY,)
        self._stored = _Objects(store, "")
        own = replace(store.bucket, service="Filebase", rate=_RATE)
        self._objects = _Objects(S3Store(own, _PART, _PART_MEMORY, _IMPORT), _FOLDER)
        self._find_key = find_key

    def put(self, content: Content) -> str:
        if content.key:
            return self._stored.cid(content.key)
        return self._objects.put(content)

    def status(self, name: str, cid: str) -> Status:
        if key := self._find_key(name):
            return self._stored.status(key, cid)
        return self._objects.status(self._objects.key(name), cid)

    def mend(self, content: Content, cid: str) -> None:
        _mend(self, content, cid)

    def block(self, cid: str) -> bytes:
        return _from_gateways(self.gateways, cid)

    def unpin(self, name: str, cid: str) -> None:
        # A blob stays on IPFS as long as it is stored.
        self._objects.delete(name)

    def check(self) -> None:
        self._objects.check()


class _Found(NamedTuple):
    """An object: its size in bytes as Filebase says it, for how many seconds it has been there,
    and its CID once that is known."""

    size: int
    age: float
    cid: str | None

    def is_coming(self, *sizes: int) -> bool:
        """Whether it was sent whole, and its CID may still come. Of an archive the documents do not
        say which size the object has: its own, or that of what is in it."""
        return self.cid is None and self.size in sizes and self.age < _GIVEN_UP_SECONDS


class _Objects:
    """Objects that are on IPFS. Those that are made here are in a folder: two resolvers may have
    one bucket, and neither takes away what the other has put there. No key of a blob in storage has
    a slash, so that sweeps leave them alone."""

    def __init__(self, store: S3Store, folder: str) -> None:
        self._store = store
        self._folder = folder

    def key(self, name: str) -> str:
        """The key of content by its name."""
        return f"{self._folder}/{name.replace(':', '-')}"

    def put(self, content: Content) -> str:
        """Have content there, and give the CID that Filebase says. Raises ``StorageError`` where
        the content cannot be read."""
        key = self.key(content.name)
        found = self._find(key)
        tree = Tree(content.open())
        if found is not None and found.cid is not None and same(found.cid, tree.cid):
            return tree.cid
        size = car.length([tree.cid], tree.lengths)
        said = None
        if found is None or not found.is_coming(size, content.size):
            said = self._send(key, tree, size, content)
        if said is None:
            said = self.cid(key)
        return tree.cid if same(said, tree.cid) else said

    def cid(self, key: str) -> str:
        """The CID of an object that is there, which may come late. Raises ``ResolverError`` where
        it does not come in ``_CID_SECONDS``: it is waited for again, without sending it again."""
        pause, until = _FIRST_PAUSE, time.monotonic() + _CID_SECONDS
        while True:
            found = self._find(key)
            if found is None:
                raise ResolverError(f"Filebase has no object {key}.")
            if found.cid is not None:
                return found.cid
            if time.monotonic() + pause > until:
                raise ResolverError(f"Filebase has {key}, and has not said its CID yet.")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def status(self, key: str, cid: str) -> Status:
        found = self._find(key)
        if found is None:
            return Status("missing")
        if found.cid is None:
            return Status("coming")
        return Status("there" if same(found.cid, cid) else "missing")

    def delete(self, name: str) -> None:
        """Delete an object that was made here, and what was left of attempts to make it."""
        with _errors():
            self._store.discard(self.key(name))

    def check(self) -> None:
        with _errors():
            self._store.check()

    def _find(self, key: str) -> _Found | None:
        client = self._store.client
        try:
            with _errors():
                found = client.call(client.s3.head_object, **self._store.address(key))
        except _NoObject:
            return None
        age = time.time() - found["LastModified"].timestamp()
        return _Found(found["ContentLength"], age, found["Metadata"].get("cid"))

    def _send(self, key: str, tree: Tree, size: int, content: Content) -> str | None:
        """Make an object of an archive of so many bytes, and give its CID if that was said."""
        pieces = car.write([tree.cid], _blocks(tree, content))
        if size <= self._store.part_size:
            body = b"".join(pieces)
            client = self._store.client
            with _errors():
                answer: Mapping[str, Any] = client.call(
                    client.s3.put_object,
                    **self._store.address(key),
                    Body=body,
                    Metadata=_IMPORT,
                )
            said = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-meta-cid")
            return None if said is None else str(said)
        numbers = itertools.count(1)

        def reserve(count: int) -> int:
            return min(itertools.islice(numbers, count))

        with _errors():
            # What a process left that ended in the middle.
            self._store.end_multiparts(key)
            writer = self._store.writer(None, key, reserve)
        try:
            for piece in pieces:
                with _errors():
                    writer.write([piece])
            with _errors():
                self._store.complete(writer.close(final=True))
        except BaseException:
            writer.abort()
            with suppress(StorageError):
                self._store.end_multiparts(key)
            raise
        return None


def _blocks(tree: Tree, content: Content) -> Iterator[Block]:
    try:
        yield from tree.blocks(content.open())
    except ValueError as error:
        raise StorageError(str(error)) from error


class _NoObject(ResolverError):
    """There is no object at a key."""


@contextmanager
def _errors() -> Iterator[None]:
    """Have the errors of a bucket be those of a resolver."""
    try:
        yield
    except Refused as error:
        kind = _NoObject if error.code in _NO_OBJECT else ResolverError
        raise kind(str(error)) from error
    except StorageError as error:
        raise ResolverError(str(error)) from error


def _mend(resolver: Resolver, content: Content, cid: str) -> None:
    """Filebase copies what it has by itself: nothing lacks but what is not there at all."""
    if not same(said := resolver.put(content), cid):
        raise WrongCid(
            f"The resolver {resolver.name} says {said} of {content.name}, and said {cid}."
        )


def _from_gateways(gateways: Sequence[str], cid: str) -> bytes:
    if not gateways:
        raise ResolverError("Neither a gateway nor an RPC of Filebase's is known.")
    return gateway(gateways[0]).block(cid)


def _sentence(body: bytes) -> str:
    """What an RPC says is wrong, at most a line."""
    try:
        text = json.loads(body)["Message"]
    except (ValueError, KeyError, TypeError):
        return ""
    return re.sub(r"[^ -~]+", " ", str(text))[:200]
