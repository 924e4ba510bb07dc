"""What is on other networks: copies of blobs and manifests, by their CIDs.

It is judged in two statements of one transaction who wants them, as in ``collection``: the first
locks the rows, the second sees all that was committed before. Whoever comes to want a copy locks
its row too (``want``).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner


class Copy(NamedTuple):
    """A blob or a manifest on the network of one resolver, or on its way there; ``size`` in
    bytes. ``state`` is ``waiting``, ``there`` or ``leaving``. Of a manifest whose content is all
    there, ``derived_cid`` is that of the image that can be pulled from the network alone, and
    ``root_cid`` that of its descriptor. ``error`` tells why it is not there yet."""

    digest: bytes
    resolver: str
    size: int
    state: str
    cid: str | None
    derived_cid: str | None
    root_cid: str | None
    error: str
    changed_at: Any


Place = tuple[bytes, str]
"""A digest, and the resolver where its copy is."""

SECONDS = "CAST(:{} AS double precision) * interval '1 second'"
"""An expression: a parameter of that name, as an interval."""
IMAGE, PUT, DERIVE, UNPIN = "resolve.image", "resolve", "resolve.derive", "resolve.unpin"
FILL, CHECK = "resolve.fill", "resolve.check"
"""Kinds of jobs that are written together with the rows that they are about."""
DATA = "jsonb_build_object('resolver', {0}.resolver, 'digest', encode({0}.digest, 'hex'))"
"""Of a job about a copy that is called ``{0}`` in its statement."""
NO_JOB = (
    "NOT EXISTS (SELECT FROM jobs j WHERE j.kind = '{0}' AND j.data = " + DATA.format("c") + ")"
)
"""No job of a kind is about the copy ``c``."""
CONTENTS = (
    "(SELECT m.digest FROM manifests m WHERE {0} UNION SELECT f.blob FROM manifest_references f"
    " JOIN manifests m ON m.repository_id = f.repository_id AND m.digest = f.manifest"
    " WHERE f.blob IS NOT NULL AND {0})"
)
"""Digests of manifests ``m`` that a condition says, and of the blobs that they name."""
_COLUMNS = "digest, resolver, size, state, cid, derived_cid, root_cid, error, changed_at"
_OPEN = "(r.public OR r.insisted OR m.encrypted)"
_BLOCKED = "EXISTS (SELECT FROM blocked_digests k WHERE k.digest = {})"

WANTED = (
    f"(NOT {_BLOCKED.format('c.digest')} AND (EXISTS ("
    "SELECT FROM manifests m JOIN repositories r ON r.id = m.repository_id"
    f" WHERE m.digest = c.digest AND c.resolver = ANY(r.resolvers) AND {_OPEN}"
    ") OR EXISTS (SELECT FROM repository_blobs l JOIN repositories r ON r.id = l.repository_id"
    " JOIN manifest_references f ON f.repository_id = l.repository_id AND f.blob = l.digest"
    " JOIN manifests m ON m.repository_id = f.repository_id AND m.digest = f.manifest"
    f" WHERE l.digest = c.digest AND c.resolver = ANY(r.resolvers) AND {_OPEN})))"
)
"""An expression: whether somebody wants the copy ``c`` where it is, or is to be. The one place that
says what may be on a network."""


def there(runner: Runner, digests: Sequence[bytes]) -> list[Copy]:
    """Every copy of these that a network has."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM resolver_copies"
        " WHERE digest = ANY(CAST(:digests AS bytea[])) AND state = 'there'"
        " ORDER BY digest, resolver",
        digests=list(digests),
    )
    return [Copy(*row) for row in rows]


def want(runner: Runner, repository_id: int, manifests: Sequence[bytes]) -> int:
    """Have manifests of a repository, and the blobs that they name, put where its resolvers are, as
    far as they may be and are not yet; gives how many copies that are to be. What leaves just now
    is judged again before it is gone. A manifest that got more blobs is derived again."""
    rows = runner.run(
        "WITH images AS (SELECT m.digest, length(m.payload) AS size, r.resolvers"
        " FROM manifests m JOIN repositories r ON r.id = m.repository_id"
        " WHERE r.id = :repository AND m.digest = ANY(CAST(:manifests AS bytea[]))"
        f" AND {_OPEN}"
        "), contents AS (SELECT digest, size, resolvers FROM images"
        " UNION SELECT b.digest, b.size, i.resolvers FROM images i"
        " JOIN manifest_references f ON f.repository_id = :repository AND f.manifest = i.digest"
        " JOIN blobs b ON b.digest = f.blob"
        "), made AS (INSERT INTO resolver_copies AS c (digest, resolver, size)"
        " SELECT w.digest, u.resolver, max(w.size)"
        " FROM contents w CROSS JOIN unnest(w.resolvers) AS u (resolver)"
        f" WHERE NOT {_BLOCKED.format('w.digest')} GROUP BY 1, 2 ORDER BY 1, 2"
        # Nothing is changed, but the row is locked: whoever judges it sees who wants it, or has
        # ended.
        " ON CONFLICT (digest, resolver) DO UPDATE SET size = excluded.size WHERE false"
        " RETURNING digest, resolver"
        "), outdated AS (UPDATE resolver_copies c SET complete = false FROM ("
        " SELECT DISTINCT i.digest, d.resolver FROM images i JOIN manifest_references f"
        " ON f.repository_id = :repository AND f.manifest = i.digest"
        " JOIN made d ON d.digest = f.blob) o"
        " WHERE c.digest = o.digest AND c.resolver = o.resolver AND c.complete"
        f") INSERT INTO jobs (kind, data) SELECT '{PUT}', {DATA.format('d')} FROM made d"
        " RETURNING 1",
        repository=repository_id,
        manifests=list(manifests),
    )
    return len(rows)


def manifests_after(runner: Runner, repository_id: int, after: bytes, count: int) -> list[bytes]:
    """At most ``count`` digests of manifests of a repository after one, in their order."""
    rows = runner.run(
        "SELECT digest FROM manifests WHERE repository_id = :repository AND digest > :after"
        " ORDER BY digest LIMIT :count",
        repository=repository_id,
        after=after,
        count=count,
    )
    return [bytes(digest) for (digest,) in rows]


def manifest(runner: Runner, digest: bytes) -> tuple[bytes, str]:
    """The bytes and the media type of a manifest of any repository. Raises ``LookupError``."""
    [[payload, media_type]] = runner.run(
        "SELECT payload, media_type FROM manifests WHERE digest = :digest LIMIT 1", digest=digest
    ) or [[None, None]]
    if payload is None:
        raise LookupError
    return bytes(payload), media_type


class Task(NamedTuple):
    """A copy that something is to be done about. Its bytes are ``payload``, of a manifest, or at
    ``key`` in the store; neither where they are not there. ``wanted`` as ``WANTED`` says."""

    digest: bytes
    resolver: str
    state: str
    size: int
    cid: str | None
    derived_cid: str | None
    root_cid: str | None
    complete: bool
    changed_at: Any
    wanted: bool
    payload: bytes | None
    key: str | None

    @property
    def place(self) -> Place:
        """Its digest, and where it is."""
        return self.digest, self.resolver


def find(runner: Runner, digest: bytes, resolver: str, store: str) -> Task | None:
    """A copy, and where its bytes are in a store."""
    rows = runner.run(
        "SELECT c.state, c.size, c.cid, c.derived_cid, c.root_cid, c.complete, c.changed_at,"
        f" {WANTED}, (SELECT m.payload FROM manifests m WHERE m.digest = c.digest LIMIT 1),"
        " s.key FROM resolver_copies c"
        " LEFT JOIN blob_copies s ON s.digest = c.digest AND s.store = :store"
        " WHERE c.digest = :digest AND c.resolver = :resolver",
        digest=digest,
        resolver=resolver,
        store=store,
    )
    return Task(digest, resolver, *rows[0]) if rows else None


def record(runner: Runner, digest: bytes, resolver: str, cid: str) -> bool:
    """A network has it; False where it is not waited for, or not wanted, any more. What loses its
    last who wants it at this very moment is doubted, and judged later."""
    return bool(
        runner.run(
            "UPDATE resolver_copies c SET state = 'there', cid = :cid, error = '',"
            " changed_at = clock_timestamp(), checked_at = now()"
            " WHERE digest = :digest AND resolver = :resolver AND state = 'waiting'"
            f" AND {WANTED}"
            # The job that ends afterwards waits for the disk. Where neither came there, it is
            # put again.
            " AND (SELECT set_config('synchronous_commit', 'off', true)) = 'off' RETURNING 1",
            digest=digest,
            resolver=resolver,
            cid=cid,
        )
    )


def record_derived(
    runner: Runner, digest: bytes, resolver: str, derived_cid: str, root_cid: str
) -> bool:
    """A network has the image that is made of a manifest; False where the manifest is not to be
    there any more. The indexes that name it are derived again where it is another one now."""
    rows = runner.run(
        "WITH before AS (SELECT digest, derived_cid FROM resolver_copies"
        " WHERE digest = :digest AND resolver = :resolver AND state = 'there' FOR NO KEY UPDATE"
        "), changed AS (UPDATE resolver_copies c SET derived_cid = :derived, root_cid = :root,"
        " error = '', changed_at = clock_timestamp() FROM before b"
        " WHERE c.digest = b.digest AND c.resolver = :resolver RETURNING 1"
        "), outdated AS (UPDATE resolver_copies p SET complete = false FROM before b"
        " JOIN manifests m ON m.digest = b.digest JOIN manifest_references f"
        " ON f.repository_id = m.repository_id AND f.child = m.digest"
        " WHERE p.digest = f.manifest AND p.resolver = :resolver AND p.complete"
        " AND b.derived_cid <> :derived) SELECT FROM changed",
        digest=digest,
        resolver=resolver,
        derived=derived_cid,
        root=root_cid,
    )
    return bool(rows)


def take_back(
    runner: Runner,
    digest: bytes,
    resolver: str,
    cid: str | None = None,
    derived_cid: str | None = None,
    root_cid: str | None = None,
) -> None:
    """Have it taken away again what a network was given and nobody wants any more. Where it is to
    be there after all, or another has put it there, nothing is done."""
    runner.run(
        "WITH back AS (INSERT INTO resolver_copies AS c"
        " (digest, resolver, size, state, cid, derived_cid, root_cid)"
        " VALUES (:digest, :resolver, 0, 'leaving', :cid, :derived, :root)"
        " ON CONFLICT (digest, resolver) DO UPDATE SET state = 'leaving',"
        " cid = coalesce(excluded.cid, c.cid),"
        " derived_cid = coalesce(excluded.derived_cid, c.derived_cid),"
        " root_cid = coalesce(excluded.root_cid, c.root_cid),"
        " changed_at = clock_timestamp() WHERE c.state = 'leaving' OR c.state = 'waiting'"
        " AND CAST(:cid AS text) IS NOT NULL RETURNING digest, resolver)"
        f" INSERT INTO jobs (kind, data) SELECT '{UNPIN}', {DATA.format('b')} FROM back b",
        digest=digest,
        resolver=resolver,
        cid=cid,
        derived=derived_cid,
        root=root_cid,
    )


def fail(runner: Runner, digest: bytes, resolver: str, error: str) -> None:
    """Keep why a copy is not as it is to be."""
    runner.run(
        "UPDATE resolver_copies SET error = :error"
        " WHERE digest = :digest AND resolver = :resolver AND error <> :error",
        digest=digest,
        resolver=resolver,
        error=error,
    )


def complete(runner: Runner, resolver: str, digests: Sequence[bytes]) -> int:
    """Have the images derived of which all is on a network now that it has these contents, and that
    of the manifests among them themselves; gives how many. What the repository does not have, what
    is blocked, and children that may not be there are not waited for. Run after the copies are
    committed: of two that complete an image at once, one at least sees both, and one alone has the
    image derived."""
    rows = runner.run(
        "WITH come AS (SELECT digest FROM unnest(CAST(:digests AS bytea[])) AS d (digest)"
        "), candidates AS (SELECT digest FROM come"
        " UNION SELECT f.manifest FROM come JOIN repository_blobs l USING (digest)"
        " JOIN manifest_references f ON f.repository_id = l.repository_id AND f.blob = l.digest"
        " UNION SELECT f.manifest FROM come JOIN manifests m USING (digest)"
        " JOIN manifest_references f ON f.repository_id = m.repository_id AND f.child = m.digest"
        "), whole AS (SELECT DISTINCT m.digest FROM candidates"
        " JOIN resolver_copies c USING (digest) JOIN manifests m USING (digest)"
        " JOIN repositories r ON r.id = m.repository_id"
        " WHERE c.resolver = :resolver AND c.state = 'there' AND NOT c.complete"
        f" AND c.resolver = ANY(r.resolvers) AND {_OPEN}"
        " AND NOT EXISTS (SELECT FROM manifest_references f"
        " WHERE f.repository_id = m.repository_id AND f.manifest = m.digest"
        f" AND NOT {_BLOCKED.format('f.digest')} AND ("
        "f.blob IS NOT NULL AND NOT EXISTS (SELECT FROM resolver_copies x"
        " WHERE x.digest = f.blob AND x.resolver = c.resolver AND x.state = 'there')"
        " OR f.child IS NOT NULL AND EXISTS (SELECT FROM manifests n"
        " WHERE n.repository_id = f.repository_id AND n.digest = f.child"
        " AND (r.public OR r.insisted OR n.encrypted))"
        " AND NOT EXISTS (SELECT FROM resolver_copies x WHERE x.digest = f.child"
        " AND x.resolver = c.resolver AND x.state = 'there' AND x.root_cid IS NOT NULL)))"
        "), marked AS (UPDATE resolver_copies c SET complete = true FROM whole w"
        " WHERE c.digest = w.digest AND c.resolver = :resolver AND NOT c.complete"
        " RETURNING c.digest, c.resolver)"
        f" INSERT INTO jobs (kind, data) SELECT '{DERIVE}', {DATA.format('d')} FROM marked d"
        " RETURNING 1",
        resolver=resolver,
        digests=list(digests),
    )
    return len(rows)


def lock_doubted(runner: Runner, age: float, count: int) -> list[Place]:
    """Take at most ``count`` copies that may have been unwanted for ``age`` seconds, the oldest
    first, and skip what others hold."""
    rows = runner.run(
        "SELECT digest, resolver FROM resolver_copies"
        f" WHERE doubted_since <= now() - {SECONDS.format('age')} AND state <> 'leaving'"
        " ORDER BY doubted_since LIMIT :count FOR NO KEY UPDATE SKIP LOCKED",
        age=age,
        count=count,
    )
    return [(bytes(digest), resolver) for digest, resolver in rows]


def lock(runner: Runner, digest: bytes, resolver: str) -> Any:
    """Hold a copy until the transaction ends; gives when it changed, None where there is none."""
    rows = runner.run(
        "SELECT changed_at FROM resolver_copies WHERE digest = :digest AND resolver = :resolver"
        " FOR NO KEY UPDATE",
        digest=digest,
        resolver=resolver,
    )
    return rows[0][0] if rows else None


def judge(runner: Runner, locked: Sequence[Place]) -> int:
    """Let go of copies that nobody wants, of those that are locked; gives how many. The others are
    not looked at again before that may have changed."""
    rows = runner.run(
        f"WITH judged AS (SELECT c.digest, c.resolver, {WANTED} AS wanted"
        " FROM unnest(CAST(:digests AS bytea[]), CAST(:resolvers AS text[]))"
        " AS t (digest, resolver) JOIN resolver_copies c USING (digest, resolver)"
        " WHERE c.state <> 'leaving'"
        "), kept AS (UPDATE resolver_copies c SET doubted_since = NULL FROM judged j"
        " WHERE wanted AND c.digest = j.digest AND c.resolver = j.resolver"
        "), gone AS (UPDATE resolver_copies c SET state = 'leaving', doubted_since = NULL,"
        " error = '', changed_at = clock_timestamp() FROM judged j"
        " WHERE NOT wanted AND c.digest = j.digest AND c.resolver = j.resolver"
        f" RETURNING c.digest, c.resolver) INSERT INTO jobs (kind, data)"
        f" SELECT '{UNPIN}', {DATA.format('g')} FROM gone g RETURNING 1",
        digests=[digest for digest, _ in locked],
        resolvers=[resolver for _, resolver in locked],
    )
    return len(rows)


def shared(runner: Runner, digest: bytes, resolver: str, cids: Sequence[str]) -> set[str]:
    """Which of these CIDs copies of other digests have there, or what is derived of them, or the
    index."""
    rows = runner.run(
        "SELECT u.cid FROM unnest(CAST(:cids AS text[])) AS u (cid)"
        " WHERE EXISTS (SELECT FROM resolver_copies c WHERE c.resolver = :resolver"
        " AND c.digest <> :digest AND c.state <> 'leaving'"
        " AND (c.cid = u.cid OR c.derived_cid = u.cid OR c.root_cid = u.cid))"
        " OR EXISTS (SELECT FROM index_files i WHERE i.place = :resolver AND i.cid = u.cid)",
        digest=digest,
        resolver=resolver,
        cids=list(cids),
    )
    return {cid for (cid,) in rows}


def end(runner: Runner, digest: bytes, resolver: str) -> None:
    """A network has a copy no more that was leaving, and is locked: its row goes, and jobs about it
    that were given up. Where it is wanted again, it is put there again."""
    runner.run(
        f"WITH judged AS (SELECT c.digest, c.resolver, {WANTED} AS wanted FROM resolver_copies c"
        " WHERE c.digest = :digest AND c.resolver = :resolver AND c.state = 'leaving'"
        "), gone AS (DELETE FROM resolver_copies c USING judged j"
        " WHERE NOT wanted AND c.digest = j.digest AND c.resolver = j.resolver"
        " RETURNING c.digest, c.resolver"
        "), again AS (UPDATE resolver_copies c SET state = 'waiting', cid = NULL,"
        " derived_cid = NULL, root_cid = NULL, complete = false, error = '',"
        " doubted_since = NULL, changed_at = clock_timestamp() FROM judged j"
        " WHERE wanted AND c.digest = j.digest AND c.resolver = j.resolver"
        " RETURNING c.digest, c.resolver"
        "), dropped AS (DELETE FROM jobs o USING gone g"
        f" WHERE o.kind IN ('{PUT}', '{DERIVE}', '{UNPIN}') AND o.dead_at IS NOT NULL"
        f" AND o.data = {DATA.format('g')}"
        f") INSERT INTO jobs (kind, data) SELECT '{PUT}', {DATA.format('a')} FROM again a",
        digest=digest,
        resolver=resolver,
    )


def put_off(runner: Runner, resolver: str, seconds: float, error: str) -> None:
    """Let all jobs for a network that is down begin in so many seconds, at the earliest; what waits
    for it says why."""
    runner.run(
        "WITH untold AS (SELECT digest FROM resolver_copies"
        " WHERE resolver = :resolver AND state = 'waiting' AND error = ''"
        " ORDER BY digest FOR NO KEY UPDATE SKIP LOCKED"
        "), told AS (UPDATE resolver_copies c SET error = :error FROM untold u"
        " WHERE c.digest = u.digest AND c.resolver = :resolver)"
        f" UPDATE jobs SET due_at = now() + {SECONDS.format('seconds')}"
        " WHERE kind = ANY(CAST(:kinds AS text[])) AND data ->> 'resolver' = :resolver"
        " AND subject = '' AND dead_at IS NULL AND NOT taken"
        f" AND due_at <= now() + {SECONDS.format('seconds')}",
        kinds=[PUT, DERIVE, UNPIN],
        resolver=resolver,
        seconds=seconds,
        error=error,
    )


def fill(runner: Runner, repository_ids: Sequence[int] | None = None) -> int:
    """Have all manifests of repositories looked at by jobs: put where they are to be now, and let
    go of at once where they may not be any more; of all that have resolvers, where none are named.
    Gives how many repositories. For whoever changes what is chosen or who may see a repository, in
    the same transaction."""
    which = "resolvers <> '{}'" if repository_ids is None else "id = ANY(CAST(:ids AS bigint[]))"
    rows = runner.run(
        f"INSERT INTO jobs (kind, data) SELECT '{FILL}',"
        f" jsonb_build_object('repository', id, 'after', '') FROM repositories WHERE {which}"
        " ORDER BY id RETURNING 1",
        **({} if repository_ids is None else {"ids": list(repository_ids)}),
    )
    return len(rows)


def lock_unwanted(runner: Runner, repository_id: int, manifests: Sequence[bytes]) -> list[Place]:
    """Take the copies of manifests of a repository, and of the blobs that they name, that nobody
    seems to want."""
    which = "m.repository_id = :repository AND m.digest = ANY(CAST(:manifests AS bytea[]))"
    rows = runner.run(
        f"SELECT c.digest, c.resolver FROM resolver_copies c"
        f" WHERE c.digest IN {CONTENTS.format(which)} AND c.state <> 'leaving' AND NOT {WANTED}"
        " ORDER BY c.digest, c.resolver FOR NO KEY UPDATE OF c",
        repository=repository_id,
        manifests=list(manifests),
    )
    return [(bytes(digest), resolver) for digest, resolver in rows]
