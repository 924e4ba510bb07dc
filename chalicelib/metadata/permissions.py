"""Permissions: what an account may do with a repository, in one statement.

Roles are numbers here: 0 none, 1 read, 2 write, 3 maintain, 4 admin. Somebody's role is the highest
of what they have as the owner of the namespace, an owner or a member of the organisation, by a
grant to them or to a team of theirs, on the repository or on all of the namespace, and, of a
public repository, as anybody.
"""

import re
from typing import NamedTuple

from chalicelib.metadata.database import Runner

PROBED = "openregistry-status/probe"
"""The repository by which the registry tries itself (``chalicelib.jobs.probing``): no catalog shows
it."""

ROLES = ("none", "read", "write", "maintain", "admin")
NONE, READ, WRITE, MAINTAIN, ADMIN = range(5)

_RANK = "array_position(ARRAY['read', 'write', 'maintain', 'admin'], {})"
ACTIVE = (
    "a.suspended_at IS NULL AND a.deleted_at IS NULL AND NOT EXISTS ("
    " SELECT FROM accounts o WHERE o.id = a.owner_id"
    " AND (o.suspended_at IS NOT NULL OR o.deleted_at IS NOT NULL))"
)
"""Whether an account may do anything at all; a robot may no longer when its owner may not."""


def role_of(repository: str, namespace: str) -> str:
    """An expression: the role of account ``a`` in a repository (a row of that alias, or null) of
    a namespace (an account of that alias, or null)."""
    return (
        "greatest(0,"
        " CASE WHEN a.administrator THEN 4 END,"
        f" CASE WHEN {namespace}.id = a.id THEN 4 END,"
        f" CASE WHEN {repository}.public THEN 1 END,"
        f" (SELECT CASE m.role WHEN 'owner' THEN 4"
        f" ELSE {_RANK.format(f'{namespace}.member_role')} END"
        f" FROM members m WHERE m.organisation_id = {namespace}.id AND m.user_id = a.id),"
        f" (SELECT max({_RANK.format('g.role')}) FROM grants g"
        f" WHERE (g.repository_id = {repository}.id OR g.namespace_id = {namespace}.id)"
        " AND (g.account_id = a.id OR g.team_id IN"
        " (SELECT t.team_id FROM team_members t WHERE t.user_id = a.id))))"
    )


class Decision(NamedTuple):
    """What is known of an account and a repository at one moment. ``active``: the account may do
    anything at all; ``verified``: its email is; ``scopes`` and ``expires`` (seconds since 1970, or
    None) are those of its credential, ``scopes`` None where that no longer holds. ``repository`` is
    the repository's id, None where it is absent, and then ``moved`` its new name if it has one;
    ``public``: everyone may pull from it;
    ``namespace`` is the id of the account whose namespace it is in, and ``password`` the number of
    the account's password."""

    role: int
    active: bool
    verified: bool
    scopes: list[str] | None
    expires: float | None
    repository: int | None
    public: bool
    moved: str | None
    namespace: int | None
    password: int | None
    epoch: int


_BY_GITHUB = "ARRAY['repository:*:pull,push,delete']"
"""What a token of GitHub's is good for here: not for managing the account."""

_EPOCH = "SELECT epoch FROM access_epoch"


def epoch(runner: Runner) -> int:
    """The number that every change raises after which somebody may do less."""
    return int(runner.run(_EPOCH)[0][0])


def decide(runner: Runner, account_id: int | None, credential: str, repository: str) -> Decision:
    """What this account, by a credential (``token:ID``, ``rule:ID``, ``github:ID`` or ""), may do
    with the repository of that name."""
    kind, _, credential_id = credential.partition(":")
    rows = runner.run(
        f"SELECT {role_of('r', 'n')}, a.id IS NOT NULL,"
        " coalesce(a.email_verified OR a.kind <> 'user', false),"
        f" coalesce(t.scopes, u.scopes, CASE WHEN e.id IS NOT NULL THEN {_BY_GITHUB} END),"
        " CAST(extract(epoch FROM t.expires_at) AS float8),"
        " r.id, coalesce(r.public, false), CASE WHEN r.id IS NULL THEN moved.name END, n.id,"
        " a.password_number, (SELECT epoch FROM access_epoch)"
        " FROM (SELECT CAST(:repository AS text) AS name) asked"
        f" LEFT JOIN accounts a ON a.id = :account AND {ACTIVE}"
        " LEFT JOIN accounts n ON n.name = split_part(asked.name, '/', 1)"
        " LEFT JOIN repositories r ON r.name = asked.name"
        " LEFT JOIN repository_renames x ON x.name = asked.name"
        " LEFT JOIN repositories moved ON moved.id = x.repository_id"
        " LEFT JOIN access_tokens t ON t.id = CAST(:token AS uuid) AND t.account_id = a.id"
        " AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > now())"
        " LEFT JOIN trust_rules u ON u.id = CAST(:rule AS uuid) AND u.account_id = a.id"
        " LEFT JOIN external_identities e ON e.id = CAST(:link AS uuid) AND e.account_id = a.id",
        repository=repository,
        account=account_id,
        token=credential_id if kind == "token" else None,
        rule=credential_id if kind == "rule" else None,
        link=credential_id if kind == "github" else None,
    )
    return Decision(*rows[0])


def visible(
    runner: Runner, account_id: int | None, globs: list[str] | None, last: str, count: int
) -> list[str]:
    """At most ``count`` names of repositories that hold a manifest and that the account may read,
    in the order of their bytes, after ``last``; those alone that match one of ``globs``, if these
    are given."""
    rows = runner.run(
        f"SELECT r.name FROM {READERS} WHERE r.name > :last AND r.name <> '{PROBED}' AND {READABLE}"
        " AND EXISTS (SELECT FROM manifests m WHERE m.repository_id = r.id)"
        " ORDER BY r.name LIMIT :count",
        account=account_id,
        patterns=patterns(globs),
        last=last,
        count=count,
    )
    return [name for (name,) in rows]


READERS = (
    f"repositories r LEFT JOIN accounts a ON a.id = :account AND {ACTIVE}"
    " LEFT JOIN accounts n ON n.name = split_part(r.name, '/', 1)"
)
READABLE = (
    f"{role_of('r', 'n')} > 0 AND (CAST(:patterns AS text[]) IS NULL"
    " OR r.name LIKE ANY (CAST(:patterns AS text[])))"
)
"""Which repositories ``r`` of ``READERS`` an account may read, by a token confined to ``patterns``
if these are not null."""


def patterns(globs: list[str] | None) -> list[str] | None:
    """Globs of scopes as patterns of LIKE."""
    if globs is None:
        return None
    escaped = [re.sub(r"([\\\\%_])", r"\\\1", glob) for glob in globs]
    return [glob.replace("*", "%") for glob in escaped]


class Standing(NamedTuple):
    """What an account may do with an account: itself, or an organisation of its. ``role`` is
    ``admin`` of one's own and of organisations that one owns, ``read`` of those one is a member
    of, and ``none`` of others'."""

    account: int
    kind: str
    role: int


def standing(runner: Runner, account_id: int | None, name: str) -> Standing | None:
    """What an account may do with the account of that name; None where there is none."""
    rows = runner.run(
        "SELECT n.id, n.kind, CASE"
        " WHEN a.administrator OR a.id = n.id OR a.id = n.owner_id THEN 4"
        " WHEN m.role = 'owner' OR o.role = 'owner' THEN 4"
        " WHEN m.role = 'member' OR o.role = 'member' THEN 1 ELSE 0 END"
        f" FROM accounts n LEFT JOIN accounts a ON a.id = :account AND {ACTIVE}"
        " LEFT JOIN members m ON m.organisation_id = n.id AND m.user_id = a.id"
        " LEFT JOIN members o ON o.organisation_id = n.owner_id AND o.user_id = a.id"
        " WHERE n.name = :name",
        account=account_id,
        name=name,
    )
    return Standing(*rows[0]) if rows else None


def is_administrator(runner: Runner, account_id: int) -> bool:
    """Whether an account administers the registry."""
    return bool(
        runner.run(
            f"SELECT FROM accounts a WHERE a.id = :id AND a.administrator AND {ACTIVE}",
            id=account_id,
        )
    )
