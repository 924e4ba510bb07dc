"""The exchange of a workload's own token for a registry token (RFC 8693), by trust rules.

Nobody is asked anything before a rule names them: the token's own word chooses among the issuers
that accounts trust, no others. A token works once, and only one that is otherwise right is used up.
"""

import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from chalicelib.http import Unavailable
from chalicelib.identity import Subject
from chalicelib.identity.federation import Federation
from chalicelib.identity.key_sets import LEEWAY, TokenRefused, unverified_claims
from chalicelib.identity.spiffe import trust_domain
from chalicelib.identity.trust import matches
from chalicelib.metadata import audit, trust
from chalicelib.metadata.database import Database, Transaction
from chalicelib.metadata.trust import Rule

MOST_RULES = 100
"""Rules that are looked at for one token."""

SECONDS = 3600
"""How long a registry token holds that was had for a workload's: as long as a job pushes, which has
nothing else to get another one with. The end of its rule ends it at once."""

_MOST_AUDIENCES = 20
_AT_ONCE = threading.BoundedSemaphore(8)
"""Whoever trusts an issuer that answers slowly keeps few of the process's threads waiting."""


class Admitted(NamedTuple):
    """A token that was verified, and the rules by which it may be exchanged. ``expires``, when the
    token does, is in seconds since 1970."""

    token: str
    rules: Sequence[Rule]
    expires: float

    def subject(self, rule: Rule) -> Subject:
        """Whom the token stands for by a rule."""
        return Subject(rule.account_id, f"rule:{rule.id}", None, time.time() + SECONDS)


def admit(
    database: Database,
    federation: Federation,
    token: str,
    rule_id: str | None,
    owners: Sequence[str],
) -> Admitted:
    """Verify a token by the rules that are for it, or by the one of that id. Rules of the accounts
    named ``owners`` come first. Raises ``TokenRefused``, and ``Unavailable`` while too many others
    are verified."""
    unverified = unverified_claims(token)
    issuer, domain = _text(unverified.get("iss")), _domain(unverified.get("sub"))
    audiences = _audiences(unverified.get("aud"))
    trusted = trust.trusted(database, issuer, domain, audiences, rule_id)
    refusal = TokenRefused(
        f"No trust rule here is for tokens of {issuer[:200] or domain or 'an unknown issuer'}"
        f" for {' or '.join(audiences)[:200] or 'no audience'}."
    )
    for kind in dict.fromkeys(each.kind for each in trusted):
        audience = next(each.audience for each in trusted if each.kind == kind)
        try:
            claims = _verified(federation, kind, token, issuer, audience)
        except TokenRefused as error:
            refusal = error
            continue
        place = issuer if kind == "oidc" else domain
        told = _told(claims)
        found = trust.candidates(
            database, kind, place, audiences, rule_id, told, list(owners), MOST_RULES
        )
        if rules := [rule for rule in found if matches(rule, told)]:
            return Admitted(token, rules, float(claims["exp"]))
        refusal = TokenRefused(
            "The token is a right one, but no trust rule here is for what it claims: its subject"
            f" (sub) is {told.get('sub', '')[:300]!r}."
        )
    raise refusal


def use_up(database: Database, admitted: Admitted, rule: Rule) -> None:
    """Let the token be exchanged this once. Raises ``TokenRefused`` where it was before."""
    subject = admitted.subject(rule).id
    # What is signed: the signature has other forms that verify as well.
    signed = admitted.token.rpartition(".")[0]
    token_hash = hashlib.sha256(signed.encode()).digest()

    def work(transaction: Transaction) -> bool:
        fresh = trust.use_up(transaction, token_hash, admitted.expires + LEEWAY)
        event = "token.exchange" if fresh else "token.replay"
        audit.add(transaction, event, subject, account=rule.account_id, rule=rule.id)
        return fresh

    if not database.transaction(work):
        raise TokenRefused("This token was exchanged before: each works once.")


def _verified(
    federation: Federation, kind: str, token: str, issuer: str, audience: str
) -> Mapping[str, Any]:
    if not _AT_ONCE.acquire(timeout=1):
        raise Unavailable("Too many tokens are being verified now.")
    try:
        if kind == "oidc":
            claims: Mapping[str, Any] = federation.issuers.verify(token, issuer, audience)
        else:
            spiffe_id = federation.bundles.verify(token, audience)
            claims = {"sub": spiffe_id, "exp": unverified_claims(token)["exp"]}
    finally:
        _AT_ONCE.release()
    if claims["exp"] <= time.time():
        raise TokenRefused("The token has expired.")
    return claims


def _told(claims: Mapping[str, Any]) -> dict[str, str]:
    """The claims that a rule can look at: texts, whole numbers, and true or false, as JSON writes
    them."""
    told: dict[str, str] = {}
    for name, value in claims.items():
        text = str(value).lower() if isinstance(value, bool) else value
        if isinstance(text, int):
            text = str(text)
        if isinstance(text, str) and name.isprintable() and text.isprintable():
            told[name] = text
    return told


def _text(value: object) -> str:
    """What a rule's issuer or audience may be like; "" for anything else."""
    fits = isinstance(value, str) and value.isascii() and value.isprintable()
    return str(value) if fits else ""


def _audiences(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for each in values[:_MOST_AUDIENCES] if (text := _text(each))]


def _domain(subject: object) -> str:
    try:
        return trust_domain(subject if isinstance(subject, str) else "")
    except ValueError:
        return ""
