"""Warnings that most of a quota is used, which the triggers that count write into the outbox."""

from chalicelib.context import Context
from chalicelib.jobs import Job, Later, events
from chalicelib.metadata.database import Transaction


def warn(_context: Context, job: Job) -> Later:
    """Tell those who want to know, once."""
    detail = {"refused": False, **job.data}
    repository = detail.pop("repository")

    def tell(transaction: Transaction) -> None:
        events.record(transaction, "quota", repository, "system", **detail)

    return tell
