"""The signed index of what networks have: what stands in it, and what was published last."""

from collections.abc import Sequence
from typing import NamedTuple

from chalicelib.metadata.database import Runner


class Repository(NamedTuple):
    """A repository of which a network has something; ``resolvers`` and ``insisted`` are what was
    chosen for it."""

    id: int
    name: str
    public: bool
    description: str
    resolvers: list[str]
    insisted: bool


class Manifest(NamedTuple):
    """A manifest that networks have: its size in bytes, by which CIDs it is found there, the CIDs
    by which the image can be pulled from there alone, and its tags."""

    digest: bytes
    media_type: str
    size: int
    cids: list[str]
    roots: list[str]
    tags: list[str]


class Blob(NamedTuple):
    """A blob that networks have: its size in bytes, and by which CIDs it is found there."""

    digest: bytes
    size: int
    cids: list[str]


class LeftOut(NamedTuple):
    """How much there is that no network has."""

    repositories: int
    manifests: int
    tags: int
    blobs: int


class Published(NamedTuple):
    """The index that was published last: its number (a time in seconds, higher each time), the CID
    of its first file, that file, and the CIDs of its pages."""

    number: int
    cid: str
    top: str
    pages: list[str]


class File(NamedTuple):
    """A file of an index in one place: a resolver, or object storage where ``place`` is empty."""

    place: str
    cid: str


_THERE = (
    "resolver_copies c ON c.digest = {0}.digest AND c.state = 'there' AND NOT EXISTS"
    " (SELECT FROM blocked_digests k WHERE k.digest = {0}.digest)"
)
_ABSENT = (
    "NOT EXISTS (SELECT FROM resolver_copies c WHERE c.digest = {0}.digest AND c.state = 'there')"
)


def repositories(runner: Runner, public: bool, after: str, count: int) -> list[Repository]:
    """At most ``count`` repositories that are public, or that are not, of which a network has
    manifests, in the order of their names' bytes after one."""
    rows = runner.run(
        "SELECT id, name, public, description, resolvers, insisted FROM repositories r"
        " WHERE public = :public AND name > :after AND EXISTS (SELECT FROM manifests m"
        f" JOIN {_THERE.format('m')} WHERE m.repository_id = r.id)"
        " ORDER BY name LIMIT :count",
        public=public,
        after=after,
        count=count,
    )
    return [Repository(*row) for row in rows]


def manifests(runner: Runner, repository_id: int, after: bytes, count: int) -> list[Manifest]:
    """At most ``count`` manifests of a repository that networks have, in the order of their digests
    after one."""
    rows = runner.run(
        "SELECT m.digest, m.media_type, length(m.payload), array_agg(DISTINCT c.cid),"
        " coalesce(array_agg(DISTINCT c.root_cid) FILTER (WHERE c.root_cid IS NOT NULL), '{}'),"
        " ARRAY(SELECT t.name FROM tags t WHERE t.repository_id = m.repository_id"
        " AND t.digest = m.digest ORDER BY t.name)"
        f" FROM manifests m JOIN {_THERE.format('m')}"
        " WHERE m.repository_id = :repository AND m.digest > :after"
        " GROUP BY m.repository_id, m.digest ORDER BY m.digest LIMIT :count",
        repository=repository_id,
        after=after,
        count=count,
    )
    return [Manifest(bytes(digest), *row) for digest, *row in rows]


def blobs(runner: Runner, repository_id: int, after: bytes, count: int) -> list[Blob]:
    """At most ``count`` blobs of a repository that networks have, in the order of their digests
    after one."""
    rows = runner.run(
        "SELECT b.digest, b.size, array_agg(DISTINCT c.cid) FROM repository_blobs l"
        f" JOIN blobs b USING (digest) JOIN {_THERE.format('b')}"
        " WHERE l.repository_id = :repository AND l.digest > :after"
        " GROUP BY b.digest ORDER BY b.digest LIMIT :count",
        repository=repository_id,
        after=after,
        count=count,
    )
    return [Blob(bytes(digest), *row) for digest, *row in rows]


def left_out(runner: Runner) -> LeftOut:
    """How much no network has, and an index does not tell."""
    [row] = runner.run(
        "SELECT (SELECT count(*) FROM repositories r WHERE NOT EXISTS (SELECT FROM manifests m"
        f" JOIN {_THERE.format('m')} WHERE m.repository_id = r.id)),"
        f" (SELECT count(*) FROM manifests m WHERE {_ABSENT.format('m')}),"
        f" (SELECT count(*) FROM tags t WHERE {_ABSENT.format('t')}),"
        f" (SELECT count(*) FROM blobs b WHERE {_ABSENT.format('b')})"
    )
    return LeftOut(*row)


def anything(runner: Runner) -> bool:
    """Whether there is anything to tell."""
    return bool(runner.run("SELECT FROM resolver_copies WHERE state = 'there' LIMIT 1"))


# What was published.


def begin(runner: Runner) -> int:
    """Begin to publish; gives a number by which ``finish`` knows whether another began since."""
    rows = runner.run(
        "INSERT INTO published_index AS p (attempt) VALUES (1) ON CONFLICT ((true))"
        " DO UPDATE SET attempt = p.attempt + 1 RETURNING attempt"
    )
    return int(rows[0][0])


def published(runner: Runner) -> Published | None:
    """What was published last by this database; None where nothing ever was."""
    rows = runner.run(
        "SELECT number, cid, top, pages FROM published_index WHERE number IS NOT NULL"
    )
    return Published(*rows[0]) if rows else None


def finish(runner: Runner, attempt: int, index: Published) -> list[File] | None:
    """Keep what was published; gives the files of former ones, which are taken for gone from now
    on. None where another has begun since."""
    rows = runner.run(
        "WITH done AS (UPDATE published_index SET number = :number, cid = :cid, top = :top,"
        " pages = :pages WHERE attempt = :attempt RETURNING 1"
        "), former AS (UPDATE index_files f SET there = false FROM done"
        " WHERE f.cid <> :cid AND f.cid <> ALL (CAST(:pages AS text[])) RETURNING place, f.cid)"
        " SELECT place, cid FROM former UNION ALL SELECT NULL, NULL FROM done",
        attempt=attempt,
        number=index.number,
        cid=index.cid,
        top=index.top,
        pages=index.pages,
    )
    return [File(*row) for row in rows if row[0] is not None] if rows else None


def succeed(runner: Runner, number: int) -> None:
    """Let this database publish in place of the index of that number, which it was restored
    from."""
    runner.run(
        "INSERT INTO published_index AS p (attempt, number, cid, top, pages)"
        " VALUES (1, :number, '', '', '{}') ON CONFLICT ((true))"
        " DO UPDATE SET number = excluded.number, attempt = p.attempt + 1"
        " WHERE p.number IS NULL OR p.number < excluded.number",
        number=number,
    )


def files(runner: Runner, place: str) -> dict[str, bool]:
    """The CIDs of files that a place has, or may have, and whether they were put there."""
    rows = runner.run("SELECT cid, there FROM index_files WHERE place = :place", place=place)
    return {str(cid): bool(there) for cid, there in rows}


def note(runner: Runner, place: str, cid: str, there: bool) -> None:
    """Write down a file before it is put in a place, and that it is there."""
    runner.run(
        "INSERT INTO index_files (place, cid, there) VALUES (:place, :cid, :there)"
        " ON CONFLICT (place, cid) DO UPDATE SET there = excluded.there",
        place=place,
        cid=cid,
        there=there,
    )


def forget(runner: Runner, place: str, cids: Sequence[str]) -> None:
    """A place has these files no more."""
    runner.run(
        "DELETE FROM index_files WHERE place = :place AND cid = ANY(CAST(:cids AS text[]))",
        place=place,
        cids=list(cids),
    )


def in_copies(runner: Runner, resolver: str, cids: Sequence[str]) -> set[str]:
    """Which of these CIDs are those of blobs and manifests at a resolver too."""
    rows = runner.run(
        "SELECT u.cid FROM unnest(CAST(:cids AS text[])) AS u (cid)"
        " WHERE EXISTS (SELECT FROM resolver_copies c WHERE c.resolver = :resolver"
        " AND (c.cid = u.cid OR c.derived_cid = u.cid OR c.root_cid = u.cid))",
        resolver=resolver,
        cids=list(cids),
    )
    return {cid for (cid,) in rows}
