"""Repositories: names, and the rows behind them."""

from chalicelib.metadata.database import Runner


def ensure(runner: Runner, name: str) -> int:
    """The repository's id; its row is made where there is none."""
    found = runner.run("SELECT id FROM repositories WHERE name = :name", name=name)
    if not found:
        found = runner.run(
            "INSERT INTO repositories (name) VALUES (:name)"
            " ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id",
            name=name,
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
