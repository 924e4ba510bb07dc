"""What has to go once its time is over."""

from chalicelib.context import Context
from chalicelib.jobs import Job
from chalicelib.metadata import expiry as rows
from chalicelib.registry import uploads as registry


def uploads(context: Context, _job: Job) -> None:
    """Remove what uploads left behind that nobody goes on with."""
    registry.expire(context)


def identity(context: Context, _job: Job) -> None:
    """Remove secrets, sessions, tokens and counters."""
    rows.expire(context.database)
