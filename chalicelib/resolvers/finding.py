"""The newest index found again: in object storage, under an IPNS name, or by its CID.

Where it lies says nothing: it is believed because of who has signed it.
"""

from collections.abc import Iterable, Iterator, Sequence

from chalicelib.context import Context
from chalicelib.resolvers import NotThere, ResolverError, index, publishing
from chalicelib.resolvers.blocks import Source, fetch
from chalicelib.resolvers.gateways import gateway
from chalicelib.resolvers.publishing import Naming
from chalicelib.resolvers.signing import NotTrusted
from chalicelib.resolvers.unixfs import parse

BUCKET = "bucket"
"""Object storage, as people write it."""
_IPNS, _IPFS = "ipns://", "ipfs://"


def sources(context: Context) -> list[Source]:
    """Where the registry itself looks for blocks of whatever CID."""
    own = list(context.resolvers.own.values())
    urls = [url for resolver in own for url in resolver.gateways]
    urls += [url.rstrip("/") for url in context.settings.ipfs_gateways]
    return [*own, *map(gateway, dict.fromkeys(urls))]


def newest(context: Context, origin: str, trusted: Sequence[str]) -> index.Top:
    """The index at a place: ``bucket``, ``ipns://NAME`` or ``ipfs://CID``; of those in object
    storage and under the registry's own name the newest, where none is said. Raises
    ``ResolverError`` where there is none; ``NotTrusted`` where none is signed by one of these
    public keys."""
    if origin.startswith(_IPFS):
        return _at(context, origin.removeprefix(_IPFS), trusted)
    if origin.startswith(_IPNS):
        return _at(context, _resolved(context, origin.removeprefix(_IPNS)), trusted)
    if origin not in ("", BUCKET):
        raise ResolverError(f"An index is at {BUCKET}, {_IPNS}NAME or {_IPFS}CID, not at {origin}.")
    found, refused = _stored(context, trusted)
    said: list[Exception] = list(refused)
    if not origin:
        try:
            cid = _resolved(context, publishing.ipns_name(context.keys))
            found.append(_at(context, cid, trusted))
        except NotTrusted as error:
            refused.append(error)
        except ResolverError as error:
            said.append(error)
    if found:
        return max(found, key=lambda top: top.number)
    if refused:
        raise refused[0]
    where = "object storage" if origin else "object storage, nor under the registry's IPNS name"
    raise NotThere(" ".join([f"There is no index in {where}.", *map(str, said)]))


def _stored(context: Context, trusted: Sequence[str]) -> tuple[list[index.Top], list[NotTrusted]]:
    """The newest index in object storage, and why newer ones are not believed."""
    refused = list[NotTrusted]()
    for _, data in publishing.stored_tops(context.store):
        try:
            return [index.read_top(data, trusted)], refused
        except NotTrusted as error:
            refused.append(error)
    return [], refused


def page(context: Context, cid: str) -> bytes:
    """A page of an index. Raises ``ResolverError``."""
    data = publishing.stored_page(context.store, cid)
    if data is not None and index.cid_of(data) == cid:
        return data
    return _fetched(context, cid, index.PAGE_LIMIT)


def containing(top: index.Top, name: str) -> Iterator[str]:
    """The CIDs of the pages that may tell of a public repository."""
    for number, each in enumerate(top.pages):
        after = top.pages[number + 1].first if number + 1 < len(top.pages) else None
        if each.first <= name and (after is None or name <= after):
            yield each.cid


def public_repository(context: Context, top: index.Top, name: str) -> index.Repository | None:
    """What an index tells of a public repository. Raises ``ResolverError``; ``NotTrusted``."""
    pages = (page(context, cid) for cid in containing(top, name))
    for found in index.repositories(_lines(pages)):
        if found.name == name:
            return found
    return None


def _lines(pages: Iterable[bytes]) -> Iterator[index.Line]:
    for data in pages:
        yield from index.read_page(data)


def _at(context: Context, cid: str, trusted: Sequence[str]) -> index.Top:
    return index.read_top(_fetched(context, cid, index.TOP_LIMIT), trusted)


def _fetched(context: Context, cid: str, limit: int) -> bytes:
    try:
        parse(cid)
        return fetch(sources(context), cid, limit)
    except ValueError as error:
        raise ResolverError(str(error)) from error


def _resolved(context: Context, name: str) -> str:
    error = ResolverError("There is no IPFS node here that finds names (IPNS).")
    for resolver in context.resolvers.own.values():
        if isinstance(resolver, Naming):
            try:
                return resolver.resolve(name)
            except ResolverError as failure:
                error = failure
    raise error
