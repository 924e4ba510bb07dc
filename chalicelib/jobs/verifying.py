"""Direct uploads that were committed: each piece is verified, and then the blob is linked."""

from chalicelib.context import Context
from chalicelib.http import Denied, DigestInvalid, Request
from chalicelib.identity import Subject
from chalicelib.jobs import Job, Later, TryAgain
from chalicelib.metadata import direct, jobs, uploads
from chalicelib.metadata.database import Transaction
from chalicelib.metadata.direct import Direct
from chalicelib.metadata.uploads import Upload
from chalicelib.registry.commit import commit
from chalicelib.registry.direct import COMMIT, claim, refuse
from chalicelib.registry.verifying import verify
from chalicelib.storage import StorageError

PATIENCE = (100, 1, 60)
"""Tries, and the seconds before the first and at most between them: somebody waits, and for longer
than an upload is kept by default, which a client would have to send once more."""


def piece(context: Context, job: Job) -> Later | None:
    """Verify one piece. Whoever verifies the last one has the blob linked."""
    found = _committing(context, job)
    if found is None:
        return None
    upload, uploaded = found
    try:
        length = verify(context, claim(upload, uploaded), range(*job.data["parts"]))
    except DigestInvalid as error:
        refuse(context, upload, error)
        return None
    except StorageError as error:
        if _committing(context, job) is None:
            # Another piece was wrong, and the object is gone.
            return None
        raise TryAgain(str(error)) from error

    def end(transaction: Transaction) -> None:
        if direct.count_verified(transaction, upload, length, context.capabilities.seconds):
            data = {"upload": upload.id, "repository": upload.repository}
            jobs.add(transaction, COMMIT, data)

    return end


def whole(context: Context, job: Job) -> None:
    """Make a blob of an upload all of whose pieces were verified."""
    found = _committing(context, job)
    if found is None:
        return
    upload, uploaded = found
    if not upload.verified or upload.digest is None or upload.staged is None:
        raise ValueError("the upload was not verified")
    request = Request("PUT", "", subject=Subject.of(uploaded.subject))
    try:
        commit(context, request, upload, upload.digest, upload.staged, None)
    except Denied as error:
        refuse(context, upload, error)
    except StorageError as error:
        raise TryAgain(str(error)) from error


def _committing(context: Context, job: Job) -> tuple[Upload, Direct] | None:
    """The upload, unless it has ended."""
    upload = uploads.find(context.database, job.data["upload"], job.data["repository"])
    if upload is None or upload.state != "committing":
        return None
    found = direct.find(context.database, upload.id)
    return None if found is None else (upload, found)
