"""How far copies on other networks have come, for people who look; and what they can have tried
again."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner
from chalicelib.metadata.resolver_copies import (
    CHECK,
    CONTENTS,
    DATA,
    DERIVE,
    FILL,
    IMAGE,
    NO_JOB,
    PUT,
    UNPIN,
)


class Total(NamedTuple):
    """How many copies are in one state at one resolver: ``size`` in bytes, ``failing`` those with
    an error."""

    resolver: str
    state: str
    copies: int
    size: int
    failing: int


class Failure(NamedTuple):
    """A copy that is not as it is to be, and why; ``given_up`` where it is not tried again."""

    digest: bytes
    resolver: str
    state: str
    size: int
    error: str
    given_up: bool


class Tagged(NamedTuple):
    """What a resolver has of the manifest that a tag points to."""

    tag: str
    digest: bytes
    resolver: str
    state: str
    cid: str | None
    derived_cid: str | None
    root_cid: str | None


_GIVEN_UP = (
    "EXISTS (SELECT FROM jobs j WHERE j.dead_at IS NOT NULL"
    f" AND j.kind IN ('{PUT}', '{DERIVE}', '{UNPIN}') AND j.data = {DATA.format('c')})"
)


def _scope(repository_ids: Sequence[int] | None, resolver: str) -> tuple[str, dict[str, Any]]:
    """A condition on copies ``c``: of some repositories or of all, at one resolver or at all."""
    conditions, parameters = ["true"], dict[str, Any]()
    if repository_ids is not None:
        which = "m.repository_id = ANY(CAST(:ids AS bigint[]))"
        conditions.append(f"c.digest IN {CONTENTS.format(which)}")
        parameters["ids"] = list(repository_ids)
    if resolver:
        conditions.append("c.resolver = :resolver")
        parameters["resolver"] = resolver
    return " AND ".join(conditions), parameters


def totals(
    runner: Runner, repository_ids: Sequence[int] | None = None, resolver: str = ""
) -> list[Total]:
    """How many copies there are of what repositories have, or of all."""
    scope, parameters = _scope(repository_ids, resolver)
    rows = runner.run(
        "SELECT resolver, state, count(*), CAST(sum(size) AS bigint),"
        f" count(*) FILTER (WHERE error <> '') FROM resolver_copies c WHERE {scope}"
        " GROUP BY 1, 2 ORDER BY 1, 2 DESC",
        **parameters,
    )
    return [Total(*row) for row in rows]


class Progress(NamedTuple):
    """How many copies are there and how many are waited for, and their bytes; how many of these
    have failed, and how many are not tried again."""

    there: int
    there_size: int
    waiting: int
    waiting_size: int
    failing: int
    given_up: int


def progress(runner: Runner, repository_ids: Sequence[int] | None = None) -> Progress:
    """How far what repositories have, or all, has come."""
    scope, parameters = _scope(repository_ids, "")
    waiting = "FILTER (WHERE state = 'waiting')"
    rows = runner.run(
        "SELECT count(*) FILTER (WHERE state = 'there'),"
        " CAST(coalesce(sum(size) FILTER (WHERE state = 'there'), 0) AS bigint),"
        f" count(*) {waiting}, CAST(coalesce(sum(size) {waiting}, 0) AS bigint),"
        " count(*) FILTER (WHERE state = 'waiting' AND error <> ''),"
        f" count(*) FILTER (WHERE state = 'waiting' AND error <> '' AND {_GIVEN_UP})"
        f" FROM resolver_copies c WHERE {scope}",
        **parameters,
    )
    return Progress(*rows[0])


def failures(
    runner: Runner,
    repository_ids: Sequence[int] | None = None,
    resolver: str = "",
    count: int = 1000,
) -> list[Failure]:
    """At most ``count`` copies with an error, those that were given up first."""
    scope, parameters = _scope(repository_ids, resolver)
    rows = runner.run(
        f"SELECT digest, resolver, state, size, error, {_GIVEN_UP} FROM resolver_copies c"
        f" WHERE error <> '' AND {scope} ORDER BY 6 DESC, 2, 1 LIMIT :count",
        **parameters,
        count=count,
    )
    return [Failure(bytes(row[0]), *row[1:]) for row in rows]


def outstanding(runner: Runner, repository_ids: Sequence[int] | None = None) -> int:
    """How many manifests and repositories there are whose copies are still to be looked for, and
    images to be derived."""
    which, parameters = "true", dict[str, Any]()
    if repository_ids is not None:
        contents = CONTENTS.format("m.repository_id = ANY(CAST(:ids AS bigint[]))")
        which = (
            "(data -> 'repository' = ANY(SELECT to_jsonb(i) FROM"
            " unnest(CAST(:ids AS bigint[])) i) OR data ->> 'digest' IN"
            f" (SELECT encode(d.digest, 'hex') FROM {contents} d))"
        )
        parameters["ids"] = list(repository_ids)
    rows = runner.run(
        "SELECT count(*) FROM jobs WHERE dead_at IS NULL"
        f" AND kind IN ('{IMAGE}', '{FILL}', '{DERIVE}') AND {which}",
        **parameters,
    )
    return int(rows[0][0])


def tagged(runner: Runner, repository_id: int, resolver: str = "") -> list[Tagged]:
    """The tags of a repository, each with what every resolver has of its manifest."""
    rows = runner.run(
        "SELECT t.name, t.digest, c.resolver, c.state, c.cid, c.derived_cid, c.root_cid"
        " FROM tags t JOIN resolver_copies c USING (digest) WHERE t.repository_id = :repository"
        " AND (:resolver = '' OR c.resolver = :resolver) ORDER BY t.name, c.resolver",
        repository=repository_id,
        resolver=resolver,
    )
    return [Tagged(*row) for row in rows]


def retry(runner: Runner, repository_ids: Sequence[int] | None = None) -> int:
    """Have all jobs about copies begin now that wait or were given up, and write those that are
    missing of copies that are waited for; gives how many."""
    scope, parameters = _scope(repository_ids, "")
    rows = runner.run(
        f"WITH wanting AS (SELECT digest, resolver, {DATA.format('c')} AS data"
        f" FROM resolver_copies c WHERE {scope}"
        "), again AS (UPDATE jobs j SET due_at = now(), dead_at = NULL, tries = 0, taken = false"
        f" FROM wanting w WHERE j.kind IN ('{PUT}', '{DERIVE}', '{UNPIN}') AND j.data = w.data"
        " AND NOT (j.taken AND j.due_at > now()) AND (j.due_at > now() OR j.dead_at IS NOT NULL)"
        " RETURNING 1"
        f"), made AS (INSERT INTO jobs (kind, data) SELECT '{PUT}', {DATA.format('c')}"
        f" FROM resolver_copies c WHERE state = 'waiting' AND {scope} AND {NO_JOB.format(PUT)}"
        " RETURNING 1) SELECT FROM again UNION ALL SELECT FROM made",
        **parameters,
    )
    return len(rows)


def recheck(runner: Runner, repository_ids: Sequence[int] | None = None) -> int:
    """Have networks asked soon about all that they have of what repositories have, or about all, as
    after a node has lost its disk; gives about how many copies."""
    scope, parameters = _scope(repository_ids, "")
    rows = runner.run(
        "WITH old AS (UPDATE resolver_copies c SET checked_at = '-infinity'"
        f" WHERE state = 'there' AND {scope} RETURNING 1"
        f"), asked AS (INSERT INTO jobs (kind, data) SELECT '{CHECK}', '{{}}'"
        " WHERE EXISTS (SELECT FROM old)) SELECT count(*) FROM old",
        **parameters,
    )
    return int(rows[0][0])


class Named(NamedTuple):
    """A manifest or what it names, and its copy on the network of one resolver; ``resolver`` and
    what follows are None where it is on none."""

    digest: bytes
    is_manifest: bool
    resolver: str | None
    size: int | None
    state: str | None
    cid: str | None
    derived_cid: str | None
    root_cid: str | None
    changed_at: Any


def named(runner: Runner, repository: str, digest: bytes) -> list[Named]:
    """A manifest of a repository and all that it names, on the networks of that repository."""
    rows = runner.run(
        "SELECT d.digest, d.is_manifest, c.resolver, c.size, c.state, c.cid, c.derived_cid,"
        " c.root_cid, c.changed_at FROM repositories r"
        " JOIN manifests m ON m.repository_id = r.id AND m.digest = :digest"
        " CROSS JOIN LATERAL (SELECT m.digest, true AS is_manifest UNION ALL"
        " SELECT f.digest, f.is_manifest FROM manifest_references f"
        " WHERE f.repository_id = r.id AND f.manifest = m.digest) d"
        " LEFT JOIN resolver_copies c ON c.digest = d.digest AND c.resolver = ANY(r.resolvers)"
        " WHERE r.name = :repository ORDER BY d.digest <> m.digest, d.digest, c.resolver",
        repository=repository,
        digest=digest,
    )
    return [Named(*row) for row in rows]
