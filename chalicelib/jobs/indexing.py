"""The index of what networks have is published where it has changed."""

from chalicelib.context import Context
from chalicelib.jobs import GiveUp, Job, TryAgain
from chalicelib.resolvers import ResolverError
from chalicelib.resolvers.publishing import Refused, publish


def perform(context: Context, job: Job) -> None:
    """Publish it."""
    try:
        report = publish(context)
    except Refused as error:
        raise GiveUp(str(error)) from error
    except ResolverError as error:
        raise TryAgain(str(error)) from error
    if report.failures:
        raise TryAgain(" ".join(report.failures.values()))
