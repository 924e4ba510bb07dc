"""Retention: which tags and manifests a repository keeps, and what would go."""

from datetime import datetime
from typing import Annotated

import msgspec

from chalicelib import digests
from chalicelib.api.immutable_tags import account_place, repository_place
from chalicelib.api.operations import Call, Needs, Operation
from chalicelib.api.problems import Problem
from chalicelib.api.texts import TagPattern
from chalicelib.jobs import retention
from chalicelib.metadata import retention as rows
from chalicelib.metadata.grants import Place
from chalicelib.metadata.retention import Policy

_LISTED = 1000
Seconds = Annotated[int, msgspec.Meta(ge=1, le=retention.LONGEST)]


class RetentionPolicy(msgspec.Struct, forbid_unknown_fields=True):
    """What is kept; times are in seconds. A tag stays that is among the last ``keep_last`` that
    were pushed, was pushed within ``keep_newer``, matches one of ``keep_matching`` (``*``: any
    characters), or was pulled within ``keep_pulled``; and any that is immutable. Without such a
    rule all tags stay. Manifests go that had no tag for ``untagged_after``, and for the registry's
    grace at least; with null they stay."""

    keep_last: Annotated[int, msgspec.Meta(ge=1, le=retention.MOST_TAGS)] | None = None
    keep_newer: Seconds | None = None
    keep_matching: Annotated[
        list[TagPattern], msgspec.Meta(max_length=retention.MOST_PATTERNS)
    ] = []
    keep_pulled: Seconds | None = None
    untagged_after: Annotated[int, msgspec.Meta(ge=0, le=retention.LONGEST)] | None = 0


class RetentionTrial(msgspec.Struct, forbid_unknown_fields=True):
    """A policy to be tried; null is the one in force."""

    policy: RetentionPolicy | None = None


class JudgedTag(msgspec.Struct):
    """A tag, and why it stays or goes."""

    tag: str
    digest: str
    pushed_at: datetime
    pulled_at: datetime | None
    why: list[str]


class RetentionReport(msgspec.Struct):
    """What would go now and what would stay, by ``policy``: how much, and the first thousand of
    each. ``manifests`` are those that have had no tag for long enough."""

    policy: RetentionPolicy
    removed_count: int
    kept_count: int
    manifest_count: int
    removed: list[JudgedTag]
    kept: list[JudgedTag]
    manifests: list[str]


def set_account_retention(call: Call) -> RetentionPolicy:
    """Say what is kept of all of an account's repositories."""
    return _set(call, *account_place(call))


def show_account_retention(call: Call) -> RetentionPolicy:
    """What is kept of an account's repositories that have no policy of their own."""
    return _show(call, account_place(call)[0])


def unset_account_retention(call: Call) -> None:
    """Keep everything of an account's repositories that have no policy of their own."""
    _unset(call, *account_place(call))


def set_repository_retention(call: Call) -> RetentionPolicy:
    """Say what is kept of a repository."""
    return _set(call, *repository_place(call))


def show_repository_retention(call: Call) -> RetentionPolicy:
    """The policy that is a repository's own."""
    return _show(call, repository_place(call)[0])


def unset_repository_retention(call: Call) -> None:
    """Let a repository have no policy of its own."""
    _unset(call, *repository_place(call))


def try_retention(call: Call) -> RetentionReport:
    """Tell what would go from a repository, and why the rest stays. Nothing is changed."""
    number = repository_place(call)[0].repository
    policy = None if call.body.policy is None else _policy(call.body.policy)
    if policy is not None:
        retention.check(policy)
    found = None if number is None else retention.plan(call.context, number, policy)
    if found is None:
        raise _absent()
    removed = [each for each in found.tags if not each.kept]
    kept = [each for each in found.tags if each.kept]
    return RetentionReport(
        policy=_shown(found.policy),
        removed_count=len(removed),
        kept_count=len(kept),
        manifest_count=len(found.manifests),
        removed=[_judged(each) for each in removed[:_LISTED]],
        kept=[_judged(each) for each in kept[:_LISTED]],
        manifests=[digests.unpack(each) for each in found.manifests[:_LISTED]],
    )


def _set(call: Call, place: Place, account: int | None) -> RetentionPolicy:
    policy = _policy(call.body)
    retention.set_policy(call.context.database, place, account, policy, by=call.subject.id)
    return _shown(policy)


def _show(call: Call, place: Place) -> RetentionPolicy:
    found = rows.find(call.context.database, place)
    if found is None:
        raise _absent()
    return _shown(found)


def _unset(call: Call, place: Place, account: int | None) -> None:
    if not retention.remove_policy(call.context.database, place, account, by=call.subject.id):
        raise _absent()


def _absent() -> Problem:
    return Problem(404, "There is no policy of retention.")


def _policy(body: RetentionPolicy) -> Policy:
    return Policy(**msgspec.structs.asdict(body))


def _shown(policy: Policy) -> RetentionPolicy:
    return msgspec.convert(policy._asdict(), RetentionPolicy)


def _judged(verdict: retention.Verdict) -> JudgedTag:
    tag = verdict.tag
    return JudgedTag(
        tag.name, digests.unpack(tag.digest), tag.pushed_at, tag.pulled_at, verdict.why
    )


_OF_ACCOUNT = "/accounts/{account}/retention"
_OF_REPOSITORY = "/repositories/{repository}/-/retention"
OPERATIONS = (
    Operation("PUT", _OF_ACCOUNT, set_account_retention, Needs.ACCOUNT_ADMIN,
              "Say what is kept of all of an account's repositories",
              body=RetentionPolicy, answer=RetentionPolicy),
    Operation("GET", _OF_ACCOUNT, show_account_retention, Needs.ACCOUNT_ADMIN,
              "What is kept of an account's repositories", answer=RetentionPolicy),
    Operation("DELETE", _OF_ACCOUNT, unset_account_retention, Needs.ACCOUNT_ADMIN,
              "Keep everything of an account's repositories"),
    Operation("PUT", _OF_REPOSITORY, set_repository_retention, Needs.REPOSITORY_ADMIN,
              "Say what is kept of a repository, in place of what its account says",
              body=RetentionPolicy, answer=RetentionPolicy),
    Operation("GET", _OF_REPOSITORY, show_repository_retention, Needs.REPOSITORY_ADMIN,
              "What is kept of a repository by its own policy", answer=RetentionPolicy),
    Operation("DELETE", _OF_REPOSITORY, unset_repository_retention, Needs.REPOSITORY_ADMIN,
              "Let a repository keep what its account says"),
    Operation("POST", f"{_OF_REPOSITORY}/dry-run", try_retention, Needs.REPOSITORY_ADMIN,
              "Tell what a policy would remove from a repository, and why the rest stays",
              body=RetentionTrial, answer=RetentionReport),
)  # fmt: skip
