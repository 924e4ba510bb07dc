"""Trust rules: whose workloads may push and pull for an account without a secret."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from chalicelib.api.operations import Call, Needs, Operation, Page, Paging, page
from chalicelib.api.problems import Problem, invalid
from chalicelib.api.texts import RepositoryScope
from chalicelib.identity import trust
from chalicelib.metadata import trust as rows

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=trust.LARGEST)]
Claim = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class NewTrustRule(msgspec.Struct, forbid_unknown_fields=True):
    """Whose tokens to trust, and for what. ``issuer`` is the URL of an OpenID issuer, or a SPIFFE
    trust domain. ``claims`` are what a token must claim, ``*`` standing for any characters; of a
    trust domain that is ``sub`` alone. ``audience`` is what a token must be made out to, by default
    the registry's own URL."""

    issuer: Text
    claims: Annotated[dict[Claim, Text], msgspec.Meta(min_length=1, max_length=trust.MOST_CLAIMS)]
    scopes: Annotated[
        list[RepositoryScope], msgspec.Meta(min_length=1, max_length=trust.MOST_SCOPES)
    ]
    audience: Text | None = None


class TrustRule(msgspec.Struct):
    """A trust rule."""

    id: str
    kind: Literal["oidc", "spiffe"]
    issuer: str
    audience: str
    claims: dict[str, str]
    scopes: list[str]
    created_at: datetime


def create_trust_rule(call: Call) -> TrustRule:
    """Trust the workloads of an issuer, as far as they match."""
    account = _account(call)
    audience = call.body.audience or call.context.settings.public_url
    if not audience:
        raise invalid("Say which audience tokens are made out to (aud).", "audience")
    return _shown(
        trust.create(
            call.context.database,
            call.access.federation.outbound,
            account,
            call.body.issuer,
            audience,
            call.body.claims,
            call.body.scopes,
            by=call.subject.id,
            created_by=call.account,
        )
    )


def list_trust_rules(call: Call) -> Page[TrustRule]:
    """An account's trust rules."""
    limit = call.query.limit
    found = rows.listed(call.context.database, _account(call), call.query.after, limit + 1)
    return page([_shown(each) for each in found], limit, lambda each: each.id)


def show_trust_rule(call: Call) -> TrustRule:
    """A trust rule."""
    return _shown(_rule(call))


def delete_trust_rule(call: Call) -> None:
    """Trust these workloads no longer, nor what they were granted."""
    if not trust.remove(call.context.database, _rule(call), by=call.subject.id):
        raise _absent()


def _account(call: Call) -> int:
    """The id of the path's account, for a person: no token can make itself into more."""
    if call.standing is None:
        raise call.unauthorized()
    if call.subject.credential:
        raise Problem(403, "An access token cannot do this: sign in.")
    return call.standing.account


def _rule(call: Call) -> rows.Rule:
    found = rows.find(call.context.database, _account(call), call.params["rule"])
    if found is None:
        raise _absent()
    return found


def _absent() -> Problem:
    return Problem(404, "There is no such trust rule.")


def _shown(rule: rows.Rule) -> TrustRule:
    return msgspec.convert(rule._asdict(), TrustRule)


_ALL = "/accounts/{account}/trust-rules"
_ONE = f"{_ALL}/{{rule}}"
OPERATIONS = (
    Operation("POST", _ALL, create_trust_rule, Needs.ACCOUNT_ADMIN,
              "Trust workloads of others, for a registry token in exchange for their own",
              body=NewTrustRule, answer=TrustRule, status=201, problems=(409,)),
    Operation("GET", _ALL, list_trust_rules, Needs.ACCOUNT_ADMIN, "An account's trust rules",
              query=Paging, answer=Page[TrustRule]),
    Operation("GET", _ONE, show_trust_rule, Needs.ACCOUNT_ADMIN, "A trust rule",
              answer=TrustRule),
    Operation("DELETE", _ONE, delete_trust_rule, Needs.ACCOUNT_ADMIN, "Remove a trust rule"),
)  # fmt: skip
