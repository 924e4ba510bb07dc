"""Blobs that object storage has lost are put back from networks."""

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.jobs import GiveUp, Job, TryAgain
from chalicelib.metadata import blobs, resolver_copies
from chalicelib.resolvers import ResolverError, healing
from chalicelib.resolvers.placing import Corrupt


def perform(context: Context, job: Job) -> None:
    """Heal a blob, if that is necessary."""
    digest = digests.pack(job.data["digest"])
    found = blobs.copy(context.database, digest, context.store.name)
    if found is None or healing.is_there(context, digest, found):
        return
    copies = resolver_copies.there(context.database, [digest])
    if not copies:
        raise GiveUp(f"Storage has lost {job.data['digest']}, and no network has it: push it.")
    try:
        healing.heal(context, digest, found.size, copies)
    except ResolverError as error:
        raise TryAgain(str(error)) from error
    except Corrupt as error:
        raise GiveUp(str(error)) from error
