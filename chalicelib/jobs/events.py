"""What happens to repositories, told to the webhooks that want to know.

An event is recorded in the transaction that causes it: it is told if, and only if, that commits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from chalicelib.metadata import webhooks
from chalicelib.metadata.database import Runner

KINDS = ("push", "pull", "delete", "tag", "scan", "quota", "retention")
"""What a webhook can be told of. ``tag``: a tag was set, moved or deleted."""

Event = tuple[str, Mapping[str, Any]]
"""A kind, and what is told of it: JSON values, digests as text."""


def record(runner: Runner, kind: str, repository: str, subject: str, **detail: Any) -> bool:
    """Tell of one event in a repository, within the transaction that causes it; False where nobody
    wants to know. ``subject`` is the id of who did it, or ``system``."""
    return record_all(runner, repository, subject, [(kind, detail)])


def record_all(runner: Runner, repository: str, subject: str, events: Sequence[Event]) -> bool:
    """The same of several events, in one statement."""
    kinds = [kind for kind, _ in events]
    if unknown := set(kinds) - set(KINDS):
        raise ValueError(f"there are no events of the kind {', '.join(sorted(unknown))}")
    details = [detail for _, detail in events]
    return bool(events) and webhooks.record(runner, repository, subject, kinds, details)
