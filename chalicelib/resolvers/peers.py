"""Images of other registries, pulled from a network by a CID.

Trust is in keys, not in hosts: what a root says is believed where a trusted key has signed it, and
all that lies under it because of its digests. Where the blocks come from is of no account, and
addresses that a forger has written lead to nothing worse than a refusal.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.http import DigestInvalid
from chalicelib.identity import NOBODY
from chalicelib.identity.open import Open
from chalicelib.metadata import repositories, restoring
from chalicelib.registry import documents, ingest
from chalicelib.registry.names import checked_name, checked_tag
from chalicelib.resolvers import ResolverError, finding, images, signing
from chalicelib.resolvers.blocks import Source, fetch, read
from chalicelib.resolvers.placing import Corrupt
from chalicelib.resolvers.signing import NotTrusted

Tell = Callable[[str, int, int], None]
"""Told how it goes: what is done, how much of it, and how much there is to do."""
_ROOT_LIMIT = 1 << 20
_DEPTH = 8
_THREADS = 8
_IPFS, _IPNS = "ipfs://", "ipns://"


class Refused(Exception):
    """What was asked for cannot be. The text is a sentence."""


class Statement(NamedTuple):
    """What a root says of its manifest, and the key that has signed it; and where it is found: its
    very bytes, and what is derived of it."""

    key: str
    digest: bytes
    media_type: str
    size: int
    cid: str
    derived_cid: str


@dataclass(slots=True)
class Pulled:
    """An image that was pulled; ``size`` counts the bytes of the blobs that were fetched. ``key``
    is "" where nobody has signed it."""

    digest: str
    key: str
    manifests: int = 0
    blobs: int = 0
    blobs_there: int = 0
    size: int = 0


def silent(what: str, done: int, most: int) -> None:
    """Tell nobody."""


def pull(
    context: Context,
    source: str,
    repository: str,
    tag: str,
    trusted: Sequence[str],
    tell: Tell = silent,
) -> Pulled:
    """Pull an image into a repository, under a tag: from a root (``ipfs://CID``), or from another
    registry's index (``ipns://NAME#repository:tag``), signed by one of these public keys. Raises
    ``Refused``, ``NotTrusted``, ``ResolverError``, ``Corrupt``, ``StorageError``, and what a push
    is refused with."""
    root, wanted = _root(context, source, trusted)
    sources = finding.sources(context)
    return pull_root(context, sources, root, repository, tag, trusted, wanted, tell)


def pull_root(
    context: Context,
    sources: Sequence[Source],
    root: str,
    repository: str,
    tag: str,
    trusted: Sequence[str] | None,
    wanted: bytes | None = None,
    tell: Tell = silent,
) -> Pulled:
    """Pull the image of a root, which is to be that of the manifest ``wanted``. Without keys that
    are trusted, whoever has given the root is: anybody may have signed it, or nobody. Raises as
    ``pull`` does."""
    checked_name(repository)
    checked_tag(tag)
    limit = context.settings.manifest_limit
    found = statement(sources, root, trusted, limit)
    if wanted is not None and found.digest != wanted:
        raise NotTrusted("The root is of another manifest than the index says.")
    # Whoever runs the registry has asked for it.
    opened = replace(context, access=Open(context.database))
    pulling = _Pulling(opened, repository, sources, found, tell)
    return pulling.run(tag)


def statement(
    sources: Sequence[Source], cid: str, trusted: Sequence[str] | None, limit: int
) -> Statement:
    """What a root says, of a manifest of at most so many bytes. Raises ``ResolverError``;
    ``NotTrusted`` where none of these public keys has signed it, or what is signed is not so."""
    value = _read(sources, cid, _ROOT_LIMIT)
    annotations = value.get("annotations")
    if not isinstance(annotations, dict):
        annotations = {}
    if images.SIGNATURE not in annotations:
        if trusted is not None:
            raise NotTrusted("It has no signature of a registry.")
        return _unsigned(sources, value, annotations, limit)
    signed = signing.verify(str(annotations[images.SIGNATURE]), signing.MANIFEST, trusted)
    try:
        said = json.loads(signed.payload)
        return Statement(
            signed.key,
            digests.pack(said["digest"]),
            str(said["mediaType"]),
            int(said["size"]),
            _address(annotations[images.MANIFEST]),
            _address(value["urls"][0]),
        )
    except (ValueError, OverflowError, KeyError, IndexError, TypeError, DigestInvalid):
        raise NotTrusted("It is signed, and no root of an image all the same.") from None


def _unsigned(
    sources: Sequence[Source], value: dict[str, Any], annotations: dict[str, Any], limit: int
) -> Statement:
    """What a root says that nobody has signed: of the manifest to which an annotation points, or
    else, as where nerdctl has made it, of what its descriptor names."""
    try:
        media_type, address = str(value["mediaType"]), _address(value["urls"][0])
        if images.MANIFEST not in annotations:
            digest, size = digests.pack(value["digest"]), int(value["size"])
            return Statement("", digest, media_type, size, address, address)
        cid = _address(annotations[images.MANIFEST])
    except (ValueError, OverflowError, KeyError, IndexError, TypeError, DigestInvalid):
        raise Refused("That is no root of an image.") from None
    payload = _fetched(sources, cid, limit)
    return Statement("", digests.of(payload), media_type, len(payload), cid, address)


class _Pulling:
    """One image on its way."""

    def __init__(
        self,
        context: Context,
        repository: str,
        sources: Sequence[Source],
        found: Statement,
        tell: Tell,
    ) -> None:
        self._tell = tell
        self._context = context
        self._repository = repository
        self._sources = sources
        self._found = found
        self._pulled = Pulled(digests.unpack(found.digest), found.key)
        self._kept = set[bytes]()

    def run(self, tag: str) -> Pulled:
        found = self._found
        repository = repositories.find(self._context.database, self._repository)
        self._there = (
            restoring.linked(self._context.database, repository.id, self._context.store.name)
            if repository
            else set[bytes]()
        )
        self._manifest(found, (tag,), 0)
        return self._pulled

    def _manifest(self, found: Statement, tags: tuple[str, ...], depth: int) -> None:
        """Keep a manifest, after all that it names; once, however many indexes name it."""
        if found.digest in self._kept:
            return
        if depth > _DEPTH:
            raise Refused("Its indexes name each other too deep.")
        if found.size > self._context.settings.manifest_limit:
            raise Refused(f"A manifest of {found.size} bytes is too large here.")
        payload = _fetched(self._sources, found.cid, found.size)
        if digests.of(payload, digests.algorithm(found.digest)) != found.digest:
            raise Corrupt(f"What {_IPFS}{found.cid} names is another manifest than was signed.")
        document = documents.read(payload, found.media_type)
        derived = _read(self._sources, found.derived_cid, 2 * self._context.settings.manifest_limit)
        layers = self._children(found, images.document_of(payload), derived, depth)
        cids = _cids(derived) | layers
        named = [each for each in document.absent if each.digest in cids]
        named += [each for each in document.children if each.digest in layers]
        blobs = dict.fromkeys([*document.blobs, *named])
        missing = [each for each in blobs if digests.pack(each.digest) not in self._there]
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="peer") as pool:
            fetching = [pool.submit(self._blob, each, cids) for each in missing]
            most = self._pulled.blobs + len(missing)
            try:
                for size in fetching:
                    self._pulled.size += size.result()
                    self._pulled.blobs += 1
                    self._tell("blobs fetched", self._pulled.blobs, most)
            finally:
                pool.shutdown(cancel_futures=True)
        self._pulled.blobs_there += len(blobs) - len(missing)
        self._there |= {digests.pack(each.digest) for each in missing}
        ingest.add_manifest(
            self._context, self._repository, found.digest, found.media_type, payload, tags, NOBODY
        )
        self._kept.add(found.digest)
        self._pulled.manifests += 1

    def _children(
        self, found: Statement, original: Any, derived: Any, depth: int
    ) -> dict[str, str]:
        """Keep the manifests that an index names; gives where layers are that it names like such,
        as BuildKit's caches do."""
        layers = {}
        children, others = _listed(original, "manifests"), _listed(derived, "manifests")
        if len(children) != len(others):
            raise Corrupt("What was derived of an index names other manifests than it does.")
        for child, other in zip(children, others, strict=True):
            try:
                annotations = other.get("annotations") or {}
                address = itself = _address(other["urls"][0])
                if other["digest"] != child["digest"]:
                    itself = _address(annotations[images.MANIFEST])
                if itself != address or child["mediaType"] in documents.MANIFESTS:
                    said = Statement(
                        found.key,
                        digests.pack(child["digest"]),
                        str(child["mediaType"]),
                        int(child["size"]),
                        itself,
                        address,
                    )
                else:
                    layers[str(child["digest"])] = address
                    continue
            except (ValueError, KeyError, IndexError, TypeError, AttributeError):
                raise ResolverError(
                    "What was derived of an index does not tell where all of its manifests are."
                ) from None
            self._manifest(said, (), depth + 1)
        return layers

    def _blob(self, blob: documents.Descriptor, cids: dict[str, str]) -> int:
        """Keep a blob; gives its size."""
        if blob.digest not in cids:
            raise ResolverError(f"It is not told where {blob.digest} is.")
        pieces = read(self._sources, cids[blob.digest], 0, blob.size)
        digest = digests.pack(blob.digest)
        ingest.add_blob(self._context, self._repository, digest, blob.size, pieces, NOBODY)
        return blob.size


def _root(context: Context, source: str, trusted: Sequence[str]) -> tuple[str, bytes | None]:
    """The root's CID; and of which manifest it is to be, where an index says so."""
    if source.startswith(_IPFS):
        return source.removeprefix(_IPFS), None
    name, hash_, reference = source.removeprefix(_IPNS).partition("#")
    repository, colon, tag = reference.rpartition(":")
    if not source.startswith(_IPNS) or not (hash_ and colon and repository):
        raise Refused(f"An image is at ipfs://CID or ipns://NAME#repository:tag, not at {source}.")
    top = finding.newest(context, _IPNS + name, trusted)
    found = finding.public_repository(context, top, repository)
    for digest, manifest in (found.manifests if found else {}).items():
        if tag in manifest.tags:
            if not manifest.roots:
                raise Refused(f"The index tells of {reference}, and of no root of it yet.")
            return manifest.roots[0], digest
    raise Refused(f"The index of {name} does not tell of {reference}.")


def _cids(derived: Any) -> dict[str, str]:
    """Where blobs are that a derived manifest names. What is none is left out."""
    found = {}
    config = [derived["config"]] if isinstance(derived.get("config"), dict) else []
    for each in (*config, *_listed(derived, "layers"), *_listed(derived, "blobs")):
        try:
            found[str(each["digest"])] = _address(each["urls"][0])
        except (ValueError, KeyError, IndexError, TypeError):
            continue
    return found


def _listed(document: Any, name: str) -> list[Any]:
    """What stands in a field; nothing where that is no list."""
    found = document.get(name)
    return found if isinstance(found, list) else []


def _address(url: Any) -> str:
    """The CID of an ``ipfs://`` URL. Raises ``ValueError``."""
    if not isinstance(url, str) or not url.startswith(_IPFS):
        raise ValueError("That is no ipfs:// URL.")
    return url.removeprefix(_IPFS)


def _read(sources: Sequence[Source], cid: str, limit: int) -> dict[str, Any]:
    """A JSON object. Raises ``ResolverError``."""
    try:
        value = json.loads(_fetched(sources, cid, limit))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ResolverError(f"What {_IPFS}{cid} names is of no image.")
    return value


def _fetched(sources: Sequence[Source], cid: str, limit: int) -> bytes:
    try:
        return fetch(sources, cid, limit)
    except ValueError as error:
        raise ResolverError(str(error)) from error
