"""Repositories: names, and the rows behind them."""

from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner
from chalicelib.metadata.permissions import PROBED, READABLE, READERS, patterns, role_of


class New(NamedTuple):
    """What a repository gets when a push makes it: who did, and whether it is public, unless the
    account in whose namespace it lies has chosen."""

    created_by: str
    public: bool


def ensure(runner: Runner, name: str, new: New) -> int:
    """The repository's id; its row is made where there is none."""
    found = runner.run("SELECT id FROM repositories WHERE name = :name", name=name)
    if not found:
        found = runner.run(
            "INSERT INTO repositories (name, public, created_by) VALUES (:name, :public, :by)"
            " ON CONFLICT (name) DO UPDATE SET created_by = repositories.created_by RETURNING id",
            name=name,
            public=new.public,
            by=new.created_by,
        )
    return int(found[0][0])


def exists(runner: Runner, name: str) -> bool:
    """Whether anything was ever pushed to this name."""
    return bool(runner.run("SELECT FROM repositories WHERE name = :name", name=name))


def page(runner: Runner, last: str, count: int) -> list[str]:
    """At most ``count`` names of repositories that hold a manifest, in the order of their bytes,
    after ``last``."""
    rows = runner.run(
        "SELECT name FROM repositories r WHERE name > :last"
        f" AND name <> '{PROBED}'"
        " AND EXISTS (SELECT FROM manifests m WHERE m.repository_id = r.id)"
        " ORDER BY name LIMIT :count",
        last=last,
        count=count,
    )
    return [name for (name,) in rows]


class Owned(NamedTuple):
    """A repository's id, and the id of the account in whose namespace it lies, if any."""

    id: int
    account: int | None


class Created(NamedTuple):
    """A new repository: as ``Owned``, and whether it is public."""

    id: int
    account: int | None
    public: bool


class Summary(NamedTuple):
    """A repository in a list; ``role`` is what the account that asks may do with it."""

    name: str
    public: bool
    description: str
    created_at: Any
    role: int


class Detail(NamedTuple):
    """All that is told of a repository: ``size`` is that of its distinct blobs in bytes,
    ``pushed_at`` when a manifest last came, ``pulled_at`` when one last went."""

    name: str
    public: bool
    description: str
    created_at: Any
    role: int
    tags: int
    size: int
    pushed_at: Any
    pulls: int
    pulled_at: Any


_NAMESPACE = "(SELECT a.id FROM accounts a WHERE a.name = split_part(r.name, '/', 1))"
_SUMMARY = (
    "r.name, r.public, r.description, r.created_at,"
    f" least({role_of('r', 'n')},"
    " CASE WHEN a.kind = 'user' AND NOT a.email_verified THEN 1 ELSE 4 END)"
)


def add(runner: Runner, name: str, new: New, description: str) -> Created | None:
    """Make a repository; None where there is one."""
    rows = runner.run(
        "INSERT INTO repositories AS r (name, public, created_by, description)"
        " VALUES (:name, :public, :by, :description)"
        f" ON CONFLICT (name) DO NOTHING RETURNING r.id, {_NAMESPACE}, r.public",
        name=name,
        public=new.public,
        by=new.created_by,
        description=description,
    )
    return Created(*rows[0]) if rows else None


def find(runner: Runner, name: str) -> Owned | None:
    """The repository of that name."""
    rows = runner.run(
        f"SELECT r.id, {_NAMESPACE} FROM repositories r WHERE r.name = :name", name=name
    )
    return Owned(*rows[0]) if rows else None


def ids_of(runner: Runner, namespace: str) -> list[int]:
    """Of all repositories in a namespace, the first component of their names."""
    rows = runner.run(
        "SELECT id FROM repositories WHERE split_part(name, '/', 1) = :namespace ORDER BY id",
        namespace=namespace,
    )
    return [number for (number,) in rows]


def hold(runner: Runner, name: str) -> Owned | None:
    """Keep a repository from being changed, and anything from being put into it, until the
    transaction ends; None where there is none."""
    rows = runner.run(
        f"SELECT r.id, {_NAMESPACE} FROM repositories r WHERE r.name = :name FOR UPDATE", name=name
    )
    return Owned(*rows[0]) if rows else None


def set_public(runner: Runner, repository_id: int, public: bool) -> bool:
    """Change who may pull; False where it is so already."""
    return bool(
        runner.run(
            "UPDATE repositories SET public = :public WHERE id = :id AND public <> :public"
            " RETURNING 1",
            id=repository_id,
            public=public,
        )
    )


def describe(runner: Runner, repository_id: int, description: str) -> None:
    """Change the description."""
    runner.run(
        "UPDATE repositories SET description = :description WHERE id = :id",
        id=repository_id,
        description=description,
    )


def claim(runner: Runner, name: str) -> None:
    """Let a repository have a name that is another's former one."""
    runner.run("DELETE FROM repository_renames WHERE name = :name", name=name)


def rename(runner: Runner, repository_id: int, before: str, name: str) -> Owned:
    """Give a repository another name; ``before`` leads there from now on. In another namespace it
    loses what was granted to teams and robots of the former one, its webhooks and triggers, and
    what was chosen of resolvers. A name that is another's makes this a unique violation."""
    claim(runner, name)
    runner.run(
        "DELETE FROM grants g USING accounts n WHERE g.repository_id = :id"
        " AND n.name = split_part(:before, '/', 1) AND n.name <> split_part(:name, '/', 1)"
        " AND (g.team_id IN (SELECT id FROM teams WHERE organisation_id = n.id)"
        " OR g.account_id IN (SELECT id FROM accounts WHERE owner_id = n.id))",
        id=repository_id,
        before=before,
        name=name,
    )
    for table in ("webhooks", "triggers", "resolver_choices"):
        runner.run(
            f"DELETE FROM {table} WHERE repository_id = :id"
            " AND split_part(:before, '/', 1) <> split_part(:name, '/', 1)",
            id=repository_id,
            before=before,
            name=name,
        )
    rows = runner.run(
        f"UPDATE repositories r SET name = :name WHERE r.id = :id RETURNING r.id, {_NAMESPACE}",
        id=repository_id,
        name=name,
    )
    runner.run(
        "INSERT INTO repository_renames (name, repository_id) VALUES (:before, :id)"
        " ON CONFLICT (name) DO UPDATE SET repository_id = :id, renamed_at = now()",
        before=before,
        id=repository_id,
    )
    return Owned(*rows[0])


def delete(runner: Runner, repository_id: int, name: str) -> None:
    """Delete a repository that is held, and all that is in it, immutable tags too. Its open uploads
    are ended."""
    runner.run(
        "SELECT set_config('openregistry.deleted_repository', CAST(:id AS text), true)",
        id=repository_id,
    )
    runner.run(
        "UPDATE uploads SET state = 'cancelled'"
        " WHERE repository = :name AND state IN ('open', 'committing')",
        name=name,
    )
    # What refers to something before what it refers to.
    for table in ("manifest_references", "manifests", "repository_blobs"):
        runner.run(f"DELETE FROM {table} WHERE repository_id = :id", id=repository_id)
    runner.run("DELETE FROM repositories WHERE id = :id", id=repository_id)


def detail(runner: Runner, account_id: int | None, name: str) -> Detail | None:
    """A repository as an account sees it, which may read it."""
    rows = runner.run(
        f"SELECT {_SUMMARY}, (SELECT count(*) FROM tags t WHERE t.repository_id = r.id),"
        " CAST((SELECT coalesce(sum(b.size), 0) FROM repository_blobs l JOIN blobs b USING (digest)"
        " WHERE l.repository_id = r.id) AS bigint),"
        " (SELECT max(m.pushed_at) FROM manifests m WHERE m.repository_id = r.id),"
        " coalesce((SELECT p.pulls FROM repository_pulls p WHERE p.repository_id = r.id), 0),"
        " (SELECT p.pulled_at FROM repository_pulls p WHERE p.repository_id = r.id)"
        f" FROM {READERS} WHERE r.name = :name",
        account=account_id,
        name=name,
    )
    return Detail(*rows[0]) if rows else None


def listed(
    runner: Runner,
    account_id: int | None,
    globs: list[str] | None,
    last: str,
    count: int,
    *,
    namespace: str = "",
    text: str = "",
) -> list[Summary]:
    """At most ``count`` repositories that an account may read, in the order of their names, after
    ``last``; those alone that match one of ``globs`` if these are given, that lie in a namespace,
    and whose name or description has a text."""
    rows = runner.run(
        f"SELECT {_SUMMARY} FROM {READERS} WHERE r.name > :last AND {READABLE}"
        " AND (:namespace = '' OR split_part(r.name, '/', 1) = :namespace)"
        " AND (:text = '' OR strpos(r.name, lower(:text)) > 0"
        " OR strpos(lower(r.description), lower(:text)) > 0)"
        " ORDER BY r.name LIMIT :count",
        account=account_id,
        patterns=patterns(globs),
        last=last,
        count=count,
        namespace=namespace,
        text=text,
    )
    return [Summary(*row) for row in rows]


def everything(runner: Runner) -> list[tuple[str, bool]]:
    """Every repository's name and whether it is public, for an operator."""
    rows = runner.run("SELECT name, public FROM repositories ORDER BY name")
    return [(name, public) for name, public in rows]
