"""Copies on a network in memory: they are brought about, looked at, and taken away."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.jobs import Job, resolving
from chalicelib.jobs.kinds import KINDS
from chalicelib.jobs.worker import Worker
from chalicelib.metadata import jobs
from chalicelib.metadata.database import Database
from chalicelib.metadata.resolver_copies import IMAGE, PUT, UNPIN
from tests.client import CoreClient
from tests.images import Image
from tests.resolvers.memory import Memory

RESOLVING = [kind for kind in KINDS if kind.name.startswith("resolve") and kind.every is None]
"""What is done once it is written."""


@pytest.fixture
def context(jobs_context: Context) -> Context:
    """New repositories are public, and there is no grace."""
    settings = replace(jobs_context.settings, new_repositories="public", grace=0)
    return replace(jobs_context, settings=settings)


@pytest.fixture
def client(context: Context) -> CoreClient:
    return CoreClient(context)


def work(context: Context, *kinds: str) -> None:
    """Do the jobs of these kinds that are due; of all that were written where none is named."""
    Worker(context, [k for k in RESOLVING if not kinds or k.name in kinds]).drain()


def perform(context: Context, function: Callable[[Context, Job], object]) -> None:
    """Do what recurs."""
    function(context, Job(0, "test", "", {}, 1, 1))


def hurry(database: Database) -> None:
    """Let what was put off be due."""
    database.run("UPDATE jobs SET due_at = now() WHERE NOT taken")


def states(database: Database) -> dict[str, str]:
    """The state of each copy, by digest."""
    rows = database.run("SELECT digest, state FROM resolver_copies")
    return {digests.unpack(digest): state for digest, state in rows}


def errors(database: Database) -> list[str]:
    return [error for (error,) in database.run("SELECT error FROM resolver_copies") if error]


def left(database: Database) -> list[tuple[str, str]]:
    """(kind, state) of the jobs that put copies and take them away."""
    found = jobs.page(database, 0, 1000)
    return [(entry.kind, entry.state) for entry in found if entry.kind in (IMAGE, PUT, UNPIN)]


def content_of(*images: Image) -> set[str]:
    return {each.digest for image in images for each in (*image.blobs, image.manifest)}


def kept(memory: Memory, *images: Image) -> set[str]:
    """What the network has of these."""
    return memory.digests() & content_of(*images)


def delete(client: CoreClient, repository: str, digest: str) -> None:
    answer = client.request("DELETE", f"/v2/{repository}/manifests/{digest}")
    assert answer.status == 202, answer


def let_go(context: Context) -> None:
    """Judge what is doubted, and tell the network."""
    perform(context, resolving.release)
    work(context, UNPIN)
