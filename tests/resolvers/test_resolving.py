"""What is pushed where a network was chosen comes there, once; and goes when nobody wants it."""

from dataclasses import replace

import pytest

from chalicelib.context import Context
from chalicelib.jobs.kinds import KINDS
from chalicelib.jobs.worker import Worker
from chalicelib.metadata.database import Database
from tests.client import CoreClient, push_image
from tests.images import make_image
from tests.resolvers.memory import Memory

RESOLVING = [kind for kind in KINDS if kind.name.startswith("resolve")]


def work(context: Context) -> None:
    """Do all jobs of resolving that are due."""
    Worker(context, RESOLVING).drain()


def public(context: Context) -> Context:
    """New repositories are public."""
    return replace(context, settings=replace(context.settings, new_repositories="public"))


@pytest.fixture
def context(jobs_context: Context) -> Context:
    return public(jobs_context)


def states(database: Database) -> list[tuple[str, str]]:
    """(state, error) of all copies."""
    return [
        (state, error)
        for state, error in database.run(
            "SELECT state, error FROM resolver_copies ORDER BY digest, resolver"
        )
    ]


def test_what_is_pushed_is_put(context: Context, database: Database, memory: Memory) -> None:
    image = make_image([100, 2000], seed="put")
    push_image(CoreClient(context), "a/b", image, "latest")
    work(context)
    assert memory.digests() >= {each.digest for each in (*image.blobs, image.manifest)}
    assert states(database) == [("there", "")] * 4
