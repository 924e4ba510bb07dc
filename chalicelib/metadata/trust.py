"""Trust rules: their rows, and the tokens that were exchanged by them."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from chalicelib.metadata.database import Runner
from chalicelib.metadata.permissions import ACTIVE


class Rule(NamedTuple):
    """A rule of an account. ``issuer`` is a URL (``kind`` oidc) or a trust domain (spiffe),
    ``claims`` are globs by the names of claims."""

    id: str
    account_id: int
    kind: str
    issuer: str
    audience: str
    claims: dict[str, str]
    scopes: list[str]
    created_at: Any


class Trusted(NamedTuple):
    """A kind of issuer, and an audience, for which there is a rule."""

    kind: str
    audience: str


_COLUMNS = "r.id, r.account_id, r.kind, r.issuer, r.audience, r.claims, r.scopes, r.created_at"
_FOR = (
    f"trust_rules r JOIN accounts a ON a.id = r.account_id AND {ACTIVE}"
    " WHERE (r.kind = 'oidc' AND r.issuer = :issuer OR r.kind = 'spiffe' AND r.issuer = :domain)"
    " AND r.audience = ANY(CAST(:audiences AS text[]))"
    " AND (CAST(:rule AS uuid) IS NULL OR r.id = :rule)"
)


def add(runner: Runner, rule: Rule, created_by: int | None) -> Any:
    """Keep a new rule; gives when it was made."""
    rows = runner.run(
        "INSERT INTO trust_rules"
        " (id, account_id, kind, issuer, audience, claims, scopes, created_by)"
        " VALUES (CAST(:id AS uuid), :account, :kind, :issuer, :audience,"
        " CAST(:claims AS jsonb), CAST(:scopes AS text[]), :by) RETURNING created_at",
        id=rule.id,
        account=rule.account_id,
        kind=rule.kind,
        issuer=rule.issuer,
        audience=rule.audience,
        claims=json.dumps(rule.claims),
        scopes=rule.scopes,
        by=created_by,
    )
    return rows[0][0]


def count(runner: Runner, account_id: int) -> int:
    """How many rules an account has."""
    rows = runner.run("SELECT count(*) FROM trust_rules WHERE account_id = :id", id=account_id)
    return int(rows[0][0])


def listed(runner: Runner, account_id: int, last: str, limit: int) -> list[Rule]:
    """At most ``limit`` rules of an account, in the order of their ids, after ``last``."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM trust_rules r WHERE r.account_id = :account"
        ' AND CAST(r.id AS text) COLLATE "C" > :last ORDER BY r.id LIMIT :limit',
        account=account_id,
        last=last,
        limit=limit,
    )
    return [_rule(row) for row in rows]


def find(runner: Runner, account_id: int, rule_id: str) -> Rule | None:
    """The rule of that id, where it is the account's."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM trust_rules r"
        " WHERE r.account_id = :account AND CAST(r.id AS text) = :id",
        account=account_id,
        id=rule_id,
    )
    return _rule(rows[0]) if rows else None


def remove(runner: Runner, rule_id: str) -> bool:
    """Take a rule away; False where it is not there any more."""
    return bool(
        runner.run("DELETE FROM trust_rules WHERE id = CAST(:id AS uuid) RETURNING 1", id=rule_id)
    )


def trusted(
    runner: Runner, issuer: str, domain: str, audiences: list[str], rule_id: str | None
) -> list[Trusted]:
    """Whether any rule is for a token that says it is of this issuer (or trust domain) and for
    one of these audiences."""
    rows = runner.run(
        f"SELECT DISTINCT r.kind, r.audience FROM {_FOR} ORDER BY r.kind, r.audience",
        issuer=issuer,
        domain=domain,
        audiences=audiences,
        rule=rule_id,
    )
    return [Trusted(*row) for row in rows]


def candidates(
    runner: Runner,
    kind: str,
    issuer: str,
    audiences: list[str],
    rule_id: str | None,
    claims: Mapping[str, str],
    owners: list[str],
    limit: int,
) -> list[Rule]:
    """At most ``limit`` rules whose claims may match these: what stands before the first ``*`` is
    compared. Those of the accounts named ``owners`` come first, then older ones, so that nobody's
    rules crowd out others'."""
    rows = runner.run(
        f"SELECT {_COLUMNS} FROM {_FOR} AND NOT EXISTS ("
        " SELECT FROM jsonb_each_text(r.claims) c"
        " WHERE NOT starts_with(coalesce(CAST(:claims AS jsonb) ->> c.key, ''),"
        " split_part(c.value, '*', 1)))"
        " ORDER BY a.name = ANY(CAST(:owners AS text[])) DESC, r.created_at, r.id LIMIT :limit",
        issuer=issuer if kind == "oidc" else None,
        domain=issuer if kind == "spiffe" else None,
        audiences=audiences,
        rule=rule_id,
        claims=json.dumps(claims),
        owners=owners,
        limit=limit,
    )
    return [_rule(row) for row in rows]


def use_up(runner: Runner, token_hash: bytes, expires: float) -> bool:
    """Note that a token was exchanged, until it ends (seconds since 1970); False where it was
    before. Of several at once one alone gets True."""
    return bool(
        runner.run(
            "INSERT INTO exchanged_tokens (hash, expires_at)"
            " VALUES (:hash, to_timestamp(CAST(:expires AS float8)))"
            " ON CONFLICT (hash) DO NOTHING RETURNING 1",
            hash=token_hash,
            expires=expires,
        )
    )


def _rule(row: list[Any]) -> Rule:
    return Rule(str(row[0]), *row[1:])
