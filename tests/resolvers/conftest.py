"""A registry whose images are resolved to a network in memory."""

import pytest

from chalicelib.context import Context
from tests.jobs.conftest import database, jobs_context
from tests.resolvers.memory import Memory

__all__ = ["database", "jobs_context", "memory"]


@pytest.fixture
def memory(jobs_context: Context) -> Memory:
    """The network ``memory``, to which all public images go."""
    network = Memory()
    jobs_context.resolvers.own["memory"] = network
    jobs_context.database.run(
        "INSERT INTO resolver_choices (resolvers, chosen_by) VALUES ('{memory}', 'test')"
    )
    return network
