"""Repositories: names, and the rows behind them."""

from typing import NamedTuple

from chalicelib.metadata.database import Runner


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


def set_public(runner: Runner, name: str, public: bool) -> Owned | None:
    """Change who may pull; None where there is no such repository."""
    rows = runner.run(
        "UPDATE repositories SET public = :public WHERE name = :name RETURNING id,"
        " (SELECT id FROM accounts a WHERE a.name = split_part(:name, '/', 1))",
        name=name,
        public=public,
    )
    return Owned(*rows[0]) if rows else None
