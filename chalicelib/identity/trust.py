"""Trust rules: whose workloads get a registry token for an account without a secret of ours.

A rule names an issuer of OpenID tokens, or a SPIFFE trust domain; the audience that a token must
be made out to; and what it must claim. An issuer may serve everybody: a rule has to say whose
workloads it means, so that nobody trusts all of them by mistake.

Rules are made and removed, never changed: what was granted by one ends with it.
"""

import re
import uuid
from collections.abc import Mapping, Sequence
from functools import partial

from chalicelib.identity import scopes
from chalicelib.identity.spiffe import trust_domain
from chalicelib.identity.users import Refused
from chalicelib.metadata import audit, trust
from chalicelib.metadata.database import Database, Transaction
from chalicelib.metadata.trust import Rule
from chalicelib.outbound import Outbound, OutboundError

LARGEST = 512
"""Characters of an issuer, an audience or a claim's glob."""
MOST_CLAIMS = 20
MOST_SCOPES = 50
MOST_RULES = 100
"""Rules of one account."""

_CLAIM = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_OTHERS = {"iss", "aud", "exp", "nbf", "iat", "jti"}
_TEXT = re.compile(r"[ -~]{1,512}")
_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")

_OWNERS = {
    # "OpenID Connect reference" in GitHub's documentation. What job_workflow_ref names may be
    # called by anybody's workflow.
    "https://token.actions.githubusercontent.com": {
        "sub": r"repo:[^*/]+/.*",
        "repository": r"[^*/]+/.*",
        "repository_id": r"[^*]+",
        "repository_owner": r"[^*]+",
        "repository_owner_id": r"[^*]+",
    },
    # "OpenID Connect (OIDC) Authentication Using ID Tokens" in GitLab's documentation.
    "https://gitlab.com": {
        "sub": r"project_path:[^*/]+/.*",
        "project_path": r"[^*/]+/.*",
        "project_id": r"[^*]+",
        "namespace_path": r"[^*/]+(/.*)?",
        "namespace_id": r"[^*]+",
    },
}
"""Issuers that serve everybody: claims that say whose a workload is, and globs that pin it."""


def create(
    database: Database,
    outbound: Outbound,
    account_id: int,
    issuer: str,
    audience: str,
    claims: Mapping[str, str],
    scope_texts: Sequence[str],
    *,
    by: str,
    created_by: int | None = None,
) -> Rule:
    """Make a rule of an account, user, organisation or robot. ``issuer`` is a URL, or a SPIFFE
    trust domain, whose one claim is ``sub``; ``claims`` are globs (``*``: any characters) by name.
    The account's own rights stay the upper bound of what the scopes grant. Raises ``Refused``."""
    kind = "oidc" if "://" in issuer else "spiffe"
    if kind == "oidc":
        _check_issuer(outbound, issuer)
    elif not _DOMAIN.fullmatch(issuer):
        raise Refused("An issuer is a URL, or a trust domain like example.org.", "issuer")
    if not _TEXT.fullmatch(audience):
        raise Refused("Say which audience tokens are made out to (aud).", "audience")
    _check_claims(kind, issuer, claims)
    rule = Rule(
        str(uuid.uuid4()),
        account_id,
        kind,
        issuer,
        audience,
        dict(claims),
        _checked_scopes(scope_texts),
        None,
    )

    def work(transaction: Transaction) -> Rule:
        if trust.count(transaction, account_id) >= MOST_RULES:
            raise Refused(f"An account has at most {MOST_RULES} trust rules.", conflict=True)
        created_at = trust.add(transaction, rule, created_by)
        audit.add(
            transaction,
            "trust_rule.create",
            by,
            account=account_id,
            id=rule.id,
        )
        return rule._replace(created_at=created_at)

    return database.transaction(work)


def remove(database: Database, rule: Rule, *, by: str) -> bool:
    """Take a rule away; what was granted by it ends at once. False where it is gone already."""
    return database.transaction(partial(_remove, rule=rule, by=by))


def _remove(transaction: Transaction, rule: Rule, by: str) -> bool:
    if not trust.remove(transaction, rule.id):
        return False
    audit.add(transaction, "trust_rule.delete", by, account=rule.account_id, id=rule.id)
    return True


def matches(rule: Rule, claims: Mapping[str, str]) -> bool:
    """Whether what a token claims is what the rule wants."""
    return all(
        name in claims and scopes.matches(glob, claims[name]) for name, glob in rule.claims.items()
    )


def _check_issuer(outbound: Outbound, issuer: str) -> None:
    try:
        outbound.check(issuer)
    except OutboundError as error:
        raise Refused(error.sentence, "issuer") from None
    if len(issuer) > LARGEST or "?" in issuer or "#" in issuer:
        raise Refused("An issuer's URL is short, without a query and a fragment.", "issuer")


def _check_claims(kind: str, issuer: str, claims: Mapping[str, str]) -> None:
    if len(claims) > MOST_CLAIMS:
        raise Refused(f"A rule has at most {MOST_CLAIMS} claims.", "claims")
    for name, glob in claims.items():
        if not _CLAIM.fullmatch(name) or name in _OTHERS:
            raise Refused(f"{name[:100]!r} is no claim for a rule to look at.", "claims")
        if not 0 < len(glob) <= LARGEST or not glob.isprintable():
            raise Refused(f"The claim {name} needs a value; * stands for any characters.", "claims")
    if kind == "spiffe":
        if set(claims) != {"sub"} or not _pins_workload(issuer, claims["sub"]):
            raise Refused(
                f"A rule for a trust domain has the claim sub alone, like spiffe://{issuer}/ci/*",
                "claims",
            )
        return
    if not any(glob.strip("*") for glob in claims.values()):
        raise Refused(
            "Say what a token must claim besides its issuer and audience: anybody may have one.",
            "claims",
        )
    owners = _owners(issuer)
    if owners and not any(
        re.fullmatch(owners[name], glob) for name, glob in claims.items() if name in owners
    ):
        raise Refused(
            f"{issuer} serves everybody: say whose workloads you mean by {', '.join(owners)},"
            " with the owner in full.",
            "claims",
        )


def _owners(issuer: str) -> Mapping[str, str]:
    """Of an issuer that serves everybody; its customers may have a path below it each."""
    for known, owners in _OWNERS.items():
        if (issuer.lower() + "/").startswith(known + "/"):
            return owners
    return {}


def _pins_workload(domain: str, glob: str) -> bool:
    """Whether a glob is about SPIFFE IDs of a trust domain, and not about all of them."""
    start, star, _ = glob.partition("*")
    if not start.removeprefix(f"spiffe://{domain}/") or not start.startswith(f"spiffe://{domain}/"):
        return False
    try:
        return trust_domain(start.rstrip("/") if star else glob) == domain
    except ValueError:
        return False


def _checked_scopes(texts: Sequence[str]) -> list[str]:
    try:
        parsed = scopes.parse(texts)
    except scopes.ScopeError as error:
        raise Refused(str(error), "scopes") from None
    if not 0 < len(parsed) <= MOST_SCOPES:
        raise Refused(f"A rule has 1 to {MOST_SCOPES} scopes.", "scopes")
    if any(scope.kind != "repository" for scope in parsed):
        raise Refused("The scopes of a rule are for repositories.", "scopes")
    return [str(scope) for scope in parsed]
