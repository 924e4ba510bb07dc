"""Retention: a policy says which tags of a repository stay; the others go, and then the manifests
that have no tag any more.

A policy is one repository's, or is for all repositories of an account that have none of their own.
A tag stays that any of its rules keeps, and any that is immutable. What has no tag goes once the
grace is over at the earliest: until then a tag that went can be had back, and an index may still
come that names a manifest pushed before it.

Each batch is one transaction that reads the policy, judges, and removes. What is pushed meanwhile
stays; a policy that was taken away removes nothing more.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.http import Denied
from chalicelib.identity import scopes
from chalicelib.identity.users import Refused
from chalicelib.jobs import DAY, Job, Later, collection, events
from chalicelib.metadata import audit, immutable_tags, jobs, retention
from chalicelib.metadata import collection as manifests
from chalicelib.metadata.database import Database, Transaction
from chalicelib.metadata.grants import Place
from chalicelib.metadata.retention import Held, Policy, Tag
from chalicelib.registry.immutable_tags import checked_pattern, keeper

SUBJECT = collection.SUBJECT
KIND = "retention.repository"
BATCH = 200
MOST_PATTERNS = 50
LONGEST = 3650 * DAY
"""The longest time that a rule has, in seconds."""
MOST_TAGS = 1_000_000
_JOB_SECONDS = 60.0
_DENIALS = 5
_AUDITED = 100
"""How many tags one event of the audit log names."""
_REASON = "untagged for longer than its repository keeps that"


class Verdict(NamedTuple):
    """What becomes of a tag, and why: the rules that keep it, or that none does."""

    tag: Tag
    kept: bool
    why: list[str]


class Report(NamedTuple):
    """What goes from a repository, and what stays. ``manifests`` are digests of those that had no
    tag for long enough."""

    repository: str
    policy: Policy
    tags: list[Verdict]
    manifests: list[bytes]


def set_policy(
    database: Database, place: Place, account: int | None, policy: Policy, *, by: str
) -> None:
    """Give a place a policy; ``account`` is whose namespace it is. Raises ``Refused``."""
    check(policy)

    def work(transaction: Transaction) -> None:
        if place.repository is not None:
            retention.lock(transaction, place.repository)
        retention.put(transaction, place, policy)
        audit.add(
            transaction, "retention.set", by,
            account=account, repository=place.repository, **policy._asdict(),
        )  # fmt: skip

    database.transaction(work)


def check(policy: Policy) -> None:
    """Raise ``Refused`` for what is no policy."""
    if len(policy.keep_matching) > MOST_PATTERNS:
        raise Refused(f"A policy has at most {MOST_PATTERNS} patterns.", "keep_matching")
    for pattern in policy.keep_matching:
        checked_pattern(pattern, "keep_matching")
    for field, least, most in (
        ("keep_last", 1, MOST_TAGS),
        ("keep_newer", 1, LONGEST),
        ("keep_pulled", 1, LONGEST),
        ("untagged_after", 0, LONGEST),
    ):
        value = getattr(policy, field)
        if value is not None and not least <= value <= most:
            raise Refused(f"{field} is a number from {least} to {most}.", field)


def remove_policy(database: Database, place: Place, account: int | None, *, by: str) -> bool:
    """Take a policy away; False where there is none. Nothing is removed by it any more when this
    returns."""

    def work(transaction: Transaction) -> bool:
        if place.repository is not None:
            retention.lock(transaction, place.repository)
        if not retention.remove(transaction, place):
            return False
        audit.add(transaction, "retention.unset", by, account=account, repository=place.repository)
        return True

    return database.transaction(work)


def schedule(_context: Context, _job: Job) -> Later:
    """Have each repository seen to that a policy is about."""
    return partial(retention.schedule, kind=KIND)


def perform(context: Context, job: Job) -> Later | None:
    """Remove what a repository does not keep, for a while. What is left then is for another job."""
    until = time.monotonic() + _JOB_SECONDS
    for _ in batches(context, job.data["repository"]):
        if time.monotonic() > until:
            return lambda transaction: jobs.add(transaction, KIND, job.data, subject=job.subject)
    return None


def batches(context: Context, repository_id: int) -> Iterator[Report]:
    """Remove what a repository does not keep, a batch at a time; gives what each removed."""
    database = context.database
    denials = 0
    more = True
    while more:
        try:
            removed, more = database.transaction(partial(_remove_tags, repository_id=repository_id))
        except Denied:
            # A tag has become immutable since it was judged.
            denials += 1
            if denials == _DENIALS:
                raise
            continue
        if removed is None:
            return
        yield removed
    after: Any = manifests.BEGINNING
    more = True
    while more:
        removed, after, more = database.transaction(
            partial(
                _remove_untagged,
                repository_id=repository_id,
                grace=context.settings.grace,
                after=after,
            )
        )
        if removed is None:
            return
        yield removed


def plan(context: Context, repository_id: int, policy: Policy | None = None) -> Report | None:
    """What would go now, and what would stay, by the policy that is about a repository or by
    another one; None where no policy is about it."""

    def work(transaction: Transaction) -> Report | None:
        held = retention.read(transaction, repository_id, policy)
        if held is None:
            return None
        verdicts = _judged(transaction, held)
        age = _age(held.policy, context.settings.grace)
        found = [] if age is None else retention.untagged(
            transaction, repository_id, age, held.policy.keep_pulled or 0
        )  # fmt: skip
        return Report(held.name, held.policy, verdicts, found)

    return context.database.transaction(work)


def judge(
    policy: Policy, rules: Sequence[immutable_tags.Rule], tags: Sequence[Tag], now: datetime
) -> list[Verdict]:
    """What becomes of tags, which are given the last pushed first."""
    verdicts = []
    clauses = _clauses(policy, now)
    for number, tag in enumerate(tags):
        why = [reason for keeps, reason in clauses if keeps(number, tag)]
        if not clauses:
            why.append("no rule of the policy is about tags")
        if rule := keeper(rules, tag.name):
            why.append(f"immutable by rule {rule.id} ({rule.pattern})")
        verdicts.append(Verdict(tag, bool(why), why or ["no rule keeps it"]))
    return verdicts


_Clause = tuple[Callable[[int, Tag], bool], str]
"""Whether it keeps a tag, given its number from 0, the last pushed first; and what it says."""


def _clauses(policy: Policy, now: datetime) -> list[_Clause]:
    clauses: list[_Clause] = []
    if (last := policy.keep_last) is not None:
        clauses.append((lambda number, _: number < last, f"among the last {last}"))
    if policy.keep_newer is not None:
        newest = now - timedelta(seconds=policy.keep_newer)
        clauses.append((lambda _, tag: tag.pushed_at > newest, f"pushed since {newest:%F %T}"))
    clauses += [(_matching(pattern), f"matches {pattern}") for pattern in policy.keep_matching]
    if policy.keep_pulled is not None:
        since = now - timedelta(seconds=policy.keep_pulled)
        clauses.append(
            (
                lambda _, tag: tag.pulled_at is not None and tag.pulled_at > since,
                f"pulled since {since:%F %T}",
            )
        )
    return clauses


def _matching(pattern: str) -> Callable[[int, Tag], bool]:
    return lambda _, tag: scopes.matches(pattern, tag.name)


def _judged(transaction: Transaction, held: Held) -> list[Verdict]:
    rules = immutable_tags.in_force(transaction, held.id)
    return judge(held.policy, rules, retention.tags(transaction, held.id), held.now)


def _remove_tags(transaction: Transaction, repository_id: int) -> tuple[Report | None, bool]:
    """One batch, and whether there may be more."""
    held = retention.hold(transaction, repository_id)
    if held is None:
        return None, False
    unwanted = [each for each in _judged(transaction, held) if not each.kept]
    batch = [each.tag for each in unwanted[:BATCH]]
    gone = retention.remove_tags(transaction, held.id, batch, SUBJECT) if batch else []
    told: list[events.Event] = []
    for start in range(0, len(gone), _AUDITED):
        names = {each.name: digests.unpack(each.digest) for each in gone[start : start + _AUDITED]}
        audit.add(
            transaction, "retention.tags", SUBJECT,
            account=held.account, repository=held.id, tags=names,
        )  # fmt: skip
        for name, digest in names.items():
            told.append(("retention", {"tag": name, "digest": digest}))
            told.append(("tag", {"tag": name, "digest": None, "previous": digest}))
    events.record_all(transaction, held.name, SUBJECT, told)
    removed = {each.name for each in gone}
    verdicts = [each for each in unwanted[:BATCH] if each.tag.name in removed]
    return Report(held.name, held.policy, verdicts, []), len(unwanted) > len(batch)


def _remove_untagged(
    transaction: Transaction, *, repository_id: int, grace: float, after: Any
) -> tuple[Report | None, Any, bool]:
    """One batch, from where to go on, and whether there may be more."""
    held = retention.hold(transaction, repository_id)
    age = None if held is None else _age(held.policy, grace)
    if held is None or age is None:
        return None, after, False
    due = retention.lock_untagged(
        transaction, held.id, age, held.policy.keep_pulled or 0, after, BATCH
    )
    unnamed = manifests.judge_manifests(transaction, due) if due.rows else []
    gone = collection.remove_manifests(
        transaction, held.id, held.name, [each.digest for each in unnamed], _REASON
    ) if unnamed else []  # fmt: skip
    told: list[events.Event] = [("retention", {"digest": digests.unpack(each)}) for each in gone]
    events.record_all(transaction, held.name, SUBJECT, told)
    return Report(held.name, held.policy, [], gone), due.until, len(due.rows) == BATCH


def _age(policy: Policy, grace: float) -> float | None:
    """The age of untagged manifests that go."""
    return None if policy.untagged_after is None else max(policy.untagged_after, grace)
