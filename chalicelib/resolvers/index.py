"""The index: which repositories, tags, manifests and blobs networks have, by their CIDs.

It is for whoever has lost the database, and for other registries. Its lines are JSON: a repository,
then its manifests and blobs, then the next. *Pages* of them are files on the networks, cut where
the lines themselves say so: what changes in one place changes one page, and the others keep their
CIDs. The first file (*top*) names the pages by their CIDs, and is signed; so everything under it
is.

What may be seen of public repositories stands there in plain text. Of others a name is a secret,
and a CID would be a way in: their pages are sealed by a key of SECRET_KEY, for the registry itself.
Sealing is deterministic (AES-SIV), so that a page that has not changed keeps its CID too.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from chalicelib import digests
from chalicelib.http import DigestInvalid
from chalicelib.identity.keys import Keys
from chalicelib.metadata import indexes
from chalicelib.metadata.database import Runner
from chalicelib.resolvers import signing
from chalicelib.resolvers.signing import NotTrusted
from chalicelib.resolvers.unixfs import Cid, parse

_VERSION = 1
_BATCH = 1000
_TAGS_A_LINE = 1000
_LEAST, _MOST = 32 << 10, 1 << 20
"""Bytes of a page, but for the last of them. The most is one block, and a line perhaps."""
_CUTS = 1024
"""One line of so many ends a page."""
PAGE_LIMIT, TOP_LIMIT = 4 << 20, 64 << 20
"""Bytes of files that are read as such."""
_SEAL = "sealed pages of the index"

Line = dict[str, Any]


class Page(NamedTuple):
    """A file of lines. ``first`` is the name of the repository that it begins with, "" where it is
    sealed."""

    cid: str
    first: str
    data: bytes


class Reference(NamedTuple):
    """What the top says of a page."""

    cid: str
    first: str


@dataclass(frozen=True, slots=True)
class Top:
    """The first file, once its signature was verified. ``key`` has signed it; ``number`` is when,
    in seconds, higher each time; ``registry`` is the URL that the registry had, if any;
    ``left_out`` counts what no network had, for whoever can open what is sealed."""

    key: str
    number: int
    registry: str
    pages: tuple[Reference, ...]
    sealed: tuple[str, ...]
    left_out: str


@dataclass(slots=True)
class Repository:
    """What an index tells of a repository."""

    name: str
    public: bool
    description: str
    resolvers: list[str]
    insisted: bool
    manifests: dict[bytes, "Manifest"] = field(default_factory=dict)
    blobs: dict[bytes, "Blob"] = field(default_factory=dict)


class Blob(NamedTuple):
    """A blob: its size in bytes, and its CIDs."""

    size: int
    cids: list[str]


class Manifest(NamedTuple):
    """A manifest: its size in bytes, its CIDs, those of images that are derived of it, and its
    tags."""

    media_type: str
    size: int
    cids: list[str]
    roots: list[str]
    tags: list[str]


def cid_of(data: bytes) -> str:
    """The CID of a file of an index."""
    cid = Cid()
    cid.update(data)
    return cid.finish()


# Written


def lines(runner: Runner, *, public: bool) -> Iterator[Line]:
    """What networks have of all repositories that are public, or of all others."""
    last = ""
    while batch := indexes.repositories(runner, public, last, _BATCH):
        for repository in batch:
            last = repository.name
            yield {
                "repository": repository.name,
                "public": repository.public,
                "description": repository.description,
                "resolvers": repository.resolvers,
                "insisted": repository.insisted,
            }
            yield from _content(runner, repository.id)


def _content(runner: Runner, repository_id: int) -> Iterator[Line]:
    after = b""
    while manifests := indexes.manifests(runner, repository_id, after, _BATCH):
        for each in manifests:
            after = each.digest
            line: Line = {
                "manifest": digests.unpack(each.digest),
                "type": each.media_type,
                "size": each.size,
                "cids": each.cids,
                "roots": each.roots,
            }
            for start in range(0, len(each.tags) or 1, _TAGS_A_LINE):
                yield {**line, "tags": each.tags[start : start + _TAGS_A_LINE]}
    after = b""
    while blobs := indexes.blobs(runner, repository_id, after, _BATCH):
        for blob in blobs:
            after = blob.digest
            yield {"blob": digests.unpack(blob.digest), "size": blob.size, "cids": blob.cids}


def cut(found: Iterable[Line], seal: Callable[[bytes], bytes] | None = None) -> Iterator[Page]:
    """Pages of these lines, sealed or not. Each begins with a line of a repository, whose content
    may go on in the next."""
    page, first = bytearray(), ""
    repository: Line | None = None

    def end() -> Page:
        data = bytes(page) if seal is None else seal(bytes(page))
        return Page(cid_of(data), "" if seal else first, data)

    for line in found:
        if "repository" in line:
            repository = line
        if not page and repository is not None:
            first = repository["repository"]
            if line is not repository:
                page += _packed(repository)
        packed = _packed(line)
        page += packed
        ends = int.from_bytes(hashlib.sha256(packed).digest()[:4]) % _CUTS == 0
        if len(page) >= _MOST or (ends and len(page) >= _LEAST):
            yield end()
            page.clear()
    if page:
        yield end()


def sealing(keys: Keys) -> Callable[[bytes], bytes]:
    """What seals pages of repositories that are not public."""
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV

    siv = AESSIV(keys.derived(_SEAL)[0])
    return lambda data: siv.encrypt(data, None)


def opened(keys: Keys, data: bytes) -> bytes | None:
    """What ``sealing`` has sealed, None where it was another registry."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV

    for key in keys.derived(_SEAL):
        try:
            return AESSIV(key).decrypt(data, None)
        except (InvalidTag, ValueError):
            continue
    return None


def top(
    keys: Keys,
    number: int,
    registry: str,
    pages: Sequence[Reference],
    sealed: Sequence[str],
    left_out: indexes.LeftOut,
) -> bytes:
    """The first file of an index, signed."""
    counts = sealing(keys)(_packed(left_out._asdict()))
    value = {
        "version": _VERSION,
        "number": number,
        "registry": registry,
        "pages": [page._asdict() for page in pages],
        "sealed": list(sealed),
        "left_out": base64.b64encode(counts).decode(),
    }
    return signing.sign(keys, signing.INDEX, _packed(value)).encode()


def _packed(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


# Read: what comes from networks is judged as what comes from strangers, until a key has signed it.


def read_top(data: bytes, trusted: Sequence[str]) -> Top:
    """The first file of an index that one of these public keys has signed. Raises
    ``NotTrusted``."""
    try:
        signed = signing.verify(data.decode("ascii"), signing.INDEX, trusted)
    except UnicodeDecodeError:
        raise NotTrusted("It is no index: it has no signature.") from None
    try:
        value = json.loads(signed.payload)
        if value["version"] != _VERSION:
            raise NotTrusted(f"The index is of version {value['version']!r}, not {_VERSION}.")
        found = Top(
            signed.key,
            int(value["number"]),
            str(value["registry"]),
            tuple(Reference(str(each["cid"]), str(each["first"])) for each in value["pages"]),
            tuple(map(str, value["sealed"])),
            str(value["left_out"]),
        )
        for cid in (*(page.cid for page in found.pages), *found.sealed):
            parse(cid)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NotTrusted("It is signed, and no index all the same.") from None
    return found


def left_out(keys: Keys, found: Top) -> indexes.LeftOut | None:
    """How much no network had when an index was made; None where another registry made it."""
    counts = opened(keys, base64.b64decode(found.left_out))
    return None if counts is None else indexes.LeftOut(**json.loads(counts))


def read_page(data: bytes) -> Iterator[Line]:
    """The lines of a page. Raises ``NotTrusted`` where they are none."""
    try:
        for line in data.splitlines():
            value = json.loads(line)
            if not isinstance(value, dict):
                raise TypeError
            yield value
    except (ValueError, TypeError, RecursionError):
        raise NotTrusted("A page of the index has lines that are none.") from None


def repositories(found: Iterable[Line]) -> Iterator[Repository]:
    """The repositories that lines tell of, each whole. Raises ``NotTrusted``."""
    current: Repository | None = None
    for line in found:
        try:
            if "repository" in line:
                if current is not None and current.name == line["repository"]:
                    continue
                if current is not None:
                    yield current
                current = Repository(
                    str(line["repository"]),
                    line["public"] is True,
                    str(line["description"]),
                    [str(name) for name in line["resolvers"]],
                    line["insisted"] is True,
                )
            elif current is None:
                raise KeyError
            elif "manifest" in line:
                digest = digests.pack(line["manifest"])
                before = current.manifests.get(digest)
                current.manifests[digest] = Manifest(
                    str(line["type"]),
                    int(line["size"]),
                    [str(cid) for cid in line["cids"]],
                    [str(cid) for cid in line["roots"]],
                    [*(before.tags if before else []), *map(str, line["tags"])],
                )
            elif "blob" in line:
                cids = [str(cid) for cid in line["cids"]]
                current.blobs[digests.pack(line["blob"])] = Blob(int(line["size"]), cids)
        except (ValueError, KeyError, TypeError, DigestInvalid):
            raise NotTrusted("A page of the index has a line that is none.") from None
    if current is not None:
        yield current
