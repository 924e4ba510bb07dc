"""Direct uploads: the bytes go from the client to object storage, in parts (docs/direct-uploads.md
is their specification).

Such an upload is one of ``chalicelib.registry.uploads``, with a row besides. It is begun with
credentials; all else is done by the capability in its Location, whose ``epoch`` tells apart those
who have taken it over one after another. What was sent becomes an object when it is committed, and
a blob when it has been verified: at once where it is small, and else piece by piece, by jobs.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.http import (
    JSON,
    Denied,
    DigestInvalid,
    RegistryError,
    Request,
    Response,
    SizeInvalid,
    Unsupported,
    UploadInvalid,
    UploadUnknown,
)
from chalicelib.identity import Subject
from chalicelib.identity.capabilities import PARAMETER
from chalicelib.metadata import direct, jobs, quotas, uploads
from chalicelib.metadata.blocks import refusal
from chalicelib.metadata.database import Transaction
from chalicelib.metadata.direct import Direct
from chalicelib.metadata.uploads import Upload
from chalicelib.registry import blocks
from chalicelib.registry.blobs import REDIRECTING, is_there
from chalicelib.registry.commit import clear_now, commit
from chalicelib.registry.quotas import told
from chalicelib.registry.uploads import cancel as cancel_upload
from chalicelib.registry.uploads import create as create_upload
from chalicelib.registry.uploads import created
from chalicelib.registry.verifying import PIECE, Claim
from chalicelib.storage import ClientParts, NoSuchObject, Refused, Sent, Staged, new_key

HOLD = 60
"""Seconds for which an upload belongs to who has made the last request of it."""
VERIFY, COMMIT = "direct.verify", "direct.commit"
"""Kinds of jobs: a piece is to be verified; all were."""
_URLS, _FIRST_URLS = 100, 8
_URL_SECONDS = 3600
_POLLERS = 8
_OTHER_PARTS = ("EntityTooSmall", "InvalidPart", "InvalidPartOrder")
"""How storage says that the parts are not those that it was asked to complete. NoSuchUpload is not
among them: another request may be completing them at this moment, and its object not be seen yet.
"""
_HELP_SECONDS = 0.5


class Begin(msgspec.Struct, rename="camel"):
    """What a client wants to send."""

    size: int | None = None
    digest: str | None = None
    algorithm: str = "sha256"
    part_size: int | None = None
    states: list[str] = []


class Part(msgspec.Struct):
    """A part that a client wants to send, and its size in bytes."""

    number: int
    size: int


class More(msgspec.Struct):
    """What a client wants in the middle of an upload, and what it tells."""

    parts: list[Part] = []
    states: dict[int, str] = {}
    release: bool = False


class Commit(msgspec.Struct):
    """What a client says of what it has sent."""

    size: int
    states: list[str] = []


def begin(context: Context, request: Request) -> Response:
    """Begin an upload, or take one over that was cut."""
    parts = _client_parts(context)
    wanted = _decoded(request, Begin)
    digest = None if wanted.digest is None else digests.pack(wanted.digest)
    algorithm = digests.checked_algorithm(
        digests.algorithm(digest) if digest is not None else wanted.algorithm
    )
    _check_size(wanted.size)
    if len(wanted.states) > parts.most:
        raise UploadInvalid("There are more states than parts.", {"states": len(wanted.states)})
    told_states = {n: _state(state, algorithm) for n, state in enumerate(wanted.states, 1)}
    repository = request.params["repository"]
    if digest is not None and is_there(context, request, digest):
        return _answer(200, {"state": "committed", "digest": wanted.digest})
    if digest is not None and (response := _being_verified(context, request, digest)):
        return response
    taken = direct.take_over(
        context.database,
        repository,
        request.subject.id,
        digest=digest,
        size=wanted.size,
        first=told_states.get(1),
        most=parts.most,
        seconds=context.capabilities.seconds,
        hold=HOLD,
    )
    if taken is None:
        found, epoch = _create(context, request, parts, wanted, digest, algorithm), 1
        if told_states:
            direct.add_states(context.database, found.upload_id, told_states)
    else:
        # Its states are those of the bytes that are there.
        found, epoch = taken
    sent = _sent(context, parts, found) if taken else []
    more = {
        "state": "open",
        "partSize": found.part_size,
        "maxParts": parts.most,
        "parts": sent,
        "urls": _first_urls(context, repository, parts, found, {part["number"] for part in sent}),
    }
    return _located(context, repository, found.upload_id, request.subject, epoch, more, 201)


def more(context: Context, request: Request) -> Response:
    """Give URLs of parts, remember states, hold the upload or let go of it."""
    parts = _client_parts(context)
    wanted = _decoded(request, More)
    upload, found = _found(context, request)
    if not _hold(context, request, upload, 0 if wanted.release else HOLD):
        raise _unknown()
    states = {part: _state(text, upload.algorithm) for part, text in wanted.states.items()}
    if not all(0 < part <= parts.most for part in states):
        raise UploadInvalid("There is no such part.", {"states": max(states)})
    given = _allowed(context, request, upload, found, wanted.parts, parts.most)
    if given:
        numbers = [part.number for part in given]
        direct.forget_states(context.database, upload.id, numbers)
    if states:
        direct.add_states(context.database, upload.id, states)
    urls = [_url(context, parts, found, part.number, part.size) for part in given]
    return _located(
        context, upload.repository, upload.id, request.subject, upload.epoch,
        {"state": "open", "parts": urls},
    )  # fmt: skip


def status(context: Context, request: Request) -> Response:
    """How far an upload is."""
    parts = _client_parts(context)
    upload, found = _found(context, request)
    if _hold(context, request, upload, HOLD):
        more = {
            "state": "open",
            "partSize": found.part_size,
            "maxParts": parts.most,
            "parts": _sent(context, parts, found),
        }
        return _located(context, upload.repository, upload.id, request.subject, upload.epoch, more)
    upload, found = _found(context, request)
    if upload.state == "committing" and found.pieces is not None:
        _help(context)
        upload, found = _found(context, request)
    return _told(context, request, upload, found)


def put(context: Context, request: Request) -> Response:
    """Commit: have what was sent verified, and made a blob."""
    _client_parts(context)
    if "digest" not in request.query:
        raise DigestInvalid("The PUT that ends an upload names the blob: add digest=.")
    digest = digests.pack(request.query["digest"])
    upload, found = _found(context, request)
    if _hold(context, request, upload, HOLD):
        said = _decoded(request, Commit)
        if response := _settle(context, request, upload, found, digest, said):
            return response
    upload, found = _found(context, request)
    if found.refusal is not None and upload.state != "committed":
        raise RegistryError(**found.refusal)
    if upload.state == "cancelled" or upload.digest != digest:
        raise _unknown()
    if upload.state == "committing" and found.pieces is None:
        # Here, or in the request before, which was cut.
        _begin_verifying(context, request, upload, found)
        upload, found = _found(context, request)
    if upload.state == "committed":
        if not is_there(context, request, digest):
            raise _unknown()
        return created(context, upload.repository, digest)
    return _told(context, request, upload, found, 202)


def cancel(context: Context, request: Request) -> Response:
    """Give an upload up, unless somebody else has taken it over."""
    upload, _ = _found(context, request)
    _hold(context, request, upload, HOLD)
    return cancel_upload(context, request)


def claim(upload: Upload, found: Direct) -> Claim:
    """What the client has said of an upload that it has committed."""
    if upload.digest is None or found.size is None:
        raise ValueError("the upload was not committed")
    return Claim(found.key, found.size, found.part_size, upload.digest, found.states or b"")


def offered(context: Context) -> bool:
    """Whether clients may send parts to storage themselves: it takes them, clients reach it, and
    hashes can be resumed here."""
    return (
        context.store.client_parts is not None
        and context.settings.downloads in REDIRECTING
        and all(map(digests.resumable, digests.ALGORITHMS))
    )


@contextmanager
def _refused_if_denied(context: Context, request: Request, upload: Upload) -> Iterator[None]:
    try:
        with told(context, upload.repository, request.subject):
            yield
    except Denied as error:
        refuse(context, upload, error)
        raise


def refuse(context: Context, upload: Upload, error: RegistryError) -> None:
    """End an upload that cannot become a blob, and tell why to who asks."""
    refusal = {"message": error.message, "detail": error.detail, "code": error.code}
    direct.refuse(context.database, upload.id, {**refusal, "status": error.status})
    uploads.cancel(context.database, upload.id, upload.repository)
    clear_now(context, upload.id)


def _create(
    context: Context,
    request: Request,
    parts: ClientParts,
    wanted: Begin,
    digest: bytes | None,
    algorithm: str,
) -> Direct:
    part_size = parts.size(wanted.size, wanted.part_size)
    if part_size is None:
        raise SizeInvalid(
            "The blob is larger than any can be here.", {"size": wanted.size}, status=413
        )
    repository, key = request.params["repository"], new_key()
    seconds = context.capabilities.seconds
    upload_id = create_upload(context, request, repository, algorithm, digest, wanted.size or 0)
    upload = uploads.begin(context.database, upload_id, repository, 0, key, seconds, digest)
    if upload is None:
        raise _unknown()
    if digest is not None:
        blocks.check(upload.refusal, digest)
    found = Direct(
        upload_id,
        request.subject.id,
        key,
        parts.begin(key),
        part_size,
        digest,
        wanted.size,
    )
    direct.add(context.database, found, HOLD)
    return found


def _being_verified(context: Context, request: Request, digest: bytes) -> Response | None:
    """What is so of an upload that was sent whole before, by a client that did not wait."""
    repository, subject = request.params["repository"], request.subject
    pair = direct.committing(context.database, repository, subject.id, digest)
    if pair is None:
        return None
    blocks.check(refusal(context.database, digest), digest)
    upload, found = pair
    if found.pieces is None:
        _begin_verifying(context, request, upload, found)
        upload, found = _found_by(context, upload.id, repository)
    return _told(context, request, upload, found)


def _first_urls(
    context: Context, repository: str, parts: ClientParts, found: Direct, there: set[int]
) -> list[dict[str, Any]]:
    """URLs of the first parts that are to be sent, as far as the quota allows."""
    limit = quotas.check(context.database, repository, found.digest, 0)
    urls: list[dict[str, Any]] = []
    for number in range(1, parts.most + 1):
        start = (number - 1) * found.part_size
        size = found.part_size
        if found.size is not None:
            size = min(size, found.size - start)
        allowed = limit is None or start + size <= limit
        if size <= 0 or not allowed or len(urls) == _FIRST_URLS:
            break
        if number not in there:
            urls.append(_url(context, parts, found, number, size))
    return urls


def _url(
    context: Context, parts: ClientParts, found: Direct, number: int, size: int
) -> dict[str, Any]:
    """A part, and where it is put."""
    seconds = min(_URL_SECONDS, context.capabilities.seconds)
    url = parts.presign(found.key, found.multipart_id, number, size, seconds)
    return {"number": number, "size": size, "url": url}


def _help(context: Context) -> None:
    """Do a share of what has to be done to verify uploads: whoever waits for it lends a function,
    where workers are asleep, or busy with other things."""
    from chalicelib.jobs.kinds import KINDS
    from chalicelib.jobs.worker import Worker

    kinds = [kind for kind in KINDS if kind.name in (VERIFY, COMMIT)]
    Worker(context, kinds, threads=2).drain(time.monotonic() + _HELP_SECONDS)


def _settle(
    context: Context,
    request: Request,
    upload: Upload,
    found: Direct,
    digest: bytes,
    said: Commit,
) -> Response | None:
    """Hold the client to what it says of an upload, for good. Gives the answer where the blob is
    small, and None where it is not and the upload is settled."""
    _check_size(said.size)
    if digests.algorithm(digest) != upload.algorithm:
        raise DigestInvalid(
            f"This upload was begun with {upload.algorithm}.", {"digest": digests.unpack(digest)}
        )
    try:
        staged = _staged(context, found, said.size)
    except (SizeInvalid, UploadUnknown):
        if _state_now(context, upload) == "open":
            raise
        # Another request has settled it, and made an object of its parts.
        return None
    asked = Claim(found.key, said.size, found.part_size, digest, b"")
    states = b"".join(_state(text, upload.algorithm) for text in said.states)
    if len(said.states) != asked.parts - 1:
        raise UploadInvalid(
            "There is a state at the end of each part but the last.",
            {"parts": asked.parts, "states": len(said.states)},
        )
    with _refused_if_denied(context, request, upload):
        blocks.check(refusal(context.database, digest), digest)
        quotas.check(context.database, upload.repository, digest, said.size)
    if said.size <= PIECE:
        done = _commit_now(context, request, upload, digest, staged)
        return created(context, upload.repository, digest) if done else None

    def work(transaction: Transaction) -> None:
        seconds = context.capabilities.seconds
        if uploads.settle(transaction, upload, digest, staged, False, seconds):
            direct.settle(transaction, upload.id, digest, said.size, states)

    context.database.transaction(work)
    return None


def _commit_now(
    context: Context, request: Request, upload: Upload, digest: bytes, staged: Staged
) -> bool:
    """Read all of it, and make a blob of it; False where another request does."""
    try:
        return commit(context, request, upload, digest, staged, None)
    except (DigestInvalid, Denied) as error:
        refuse(context, upload, error)
        raise
    except NoSuchObject:
        if _state_now(context, upload) != "committed":
            raise
        # Another request has, and dropped the object where the blob had one already.
        return False
    except Refused as error:
        if error.code in _OTHER_PARTS:
            raise _changed(context, upload) from error
        raise


def _begin_verifying(context: Context, request: Request, upload: Upload, found: Direct) -> None:
    """Make an object of what was sent, and have its pieces verified."""
    if upload.staged is None or upload.digest is None:
        raise _unknown()
    if found.states is None:
        # It was settled as a small one, by a request that was cut.
        _commit_now(context, request, upload, upload.digest, upload.staged)
        return
    try:
        context.store.complete(upload.staged)
    except Refused as error:
        if error.code in _OTHER_PARTS:
            raise _changed(context, upload) from error
        raise
    # Each says which parts it is: whoever does it may have another opinion of a piece's size.
    pieces = [
        {"upload": upload.id, "repository": upload.repository, "parts": [parts.start, parts.stop]}
        for parts in claim(upload, found).pieces
    ]

    def work(transaction: Transaction) -> None:
        if direct.begin_verifying(transaction, upload.id, len(pieces)):
            jobs.add_all(transaction, VERIFY, pieces)

    context.database.transaction(work)
    context.wake()


def _state_now(context: Context, upload: Upload) -> str:
    """What has become of an upload since it was looked at."""
    now = uploads.find(context.database, upload.id, upload.repository)
    return "" if now is None else now.state


def _staged(context: Context, found: Direct, size: int) -> Staged:
    """What was sent, of a blob of that size. Raises ``SizeInvalid`` where it is not all there."""
    parts = _client_parts(context)
    count = -(-size // found.part_size)
    try:
        sent = [part for part in parts.list(found.key, found.multipart_id) if part.number <= count]
    except Refused:
        raise _unknown() from None
    there = {part.number: part.size for part in sent}
    for number in range(1, count + 1):
        wanted = min(found.part_size, size - (number - 1) * found.part_size)
        if there.get(number) != wanted:
            raise SizeInvalid(
                "A part is missing, or has another size than it must have.",
                {"part": number, "size": there.get(number), "expected": wanted},
            )
    return parts.staged(found.key, found.multipart_id, found.part_size, sent)


def _allowed(
    context: Context,
    request: Request,
    upload: Upload,
    found: Direct,
    wanted: list[Part],
    most: int,
) -> list[Part]:
    """The parts whose URLs are given: of those that are asked for, all that the quota allows, which
    may not need the last of them. Refuses what can be no part of this upload, and where the quota
    does not even allow the first."""
    if len(wanted) > _URLS:
        raise UploadInvalid(f"URLs are given for {_URLS} parts at once.", {"parts": len(wanted)})
    ends = [(part.number - 1) * found.part_size + part.size for part in wanted]
    for part in wanted:
        if not (0 < part.number <= most and 0 < part.size <= found.part_size):
            raise UploadInvalid(
                f"Parts are numbered from 1 to {most}, and have {found.part_size} bytes or, the"
                " last one, fewer.",
                {"number": part.number, "size": part.size},
            )
    if not wanted:
        return []
    if found.size is not None and max(ends) > found.size:
        raise SizeInvalid("That is more than the blob has.", {"size": found.size, "end": max(ends)})
    with _refused_if_denied(context, request, upload):
        limit = quotas.check(context.database, upload.repository, found.digest, min(ends))
    return [part for part, end in zip(wanted, ends, strict=True) if limit is None or end <= limit]


def _found(context: Context, request: Request) -> tuple[Upload, Direct]:
    return _found_by(context, request.params["upload"], request.params["repository"])


def _found_by(context: Context, upload_id: str, repository: str) -> tuple[Upload, Direct]:
    upload = uploads.find(context.database, upload_id, repository)
    found = None if upload is None else direct.find(context.database, upload_id)
    if upload is None or found is None:
        raise _unknown()
    return upload, found


def _hold(context: Context, request: Request, upload: Upload, seconds: int) -> bool:
    """Put off the expiry of an open upload and hold it for so long; False where it is not open.
    Raises ``UploadInvalid`` where somebody else has taken it over."""
    now: Upload | None = upload
    if upload.state == "open" and request.query.get("epoch") == str(upload.epoch):
        expiry = context.capabilities.seconds
        if direct.touch(context.database, upload.id, upload.epoch, expiry, seconds):
            return True
        now = uploads.find(context.database, upload.id, upload.repository)
    if now is None or now.state != "open":
        return False
    raise UploadInvalid(
        "Another client has taken this upload over; begin again.",
        {"upload": upload.id},
        status=409,
    )


def _sent(context: Context, parts: ClientParts, found: Direct) -> list[dict[str, Any]]:
    """The parts that are there, as a client is told of them."""
    states = direct.states(context.database, found.upload_id)

    def shown(part: Sent) -> dict[str, Any]:
        state = {"state": states[part.number].hex()} if part.number in states else {}
        return {"number": part.number, "size": part.size, **state}

    try:
        return [shown(part) for part in parts.list(found.key, found.multipart_id)]
    except Refused:
        raise _unknown() from None


def _told(
    context: Context, request: Request, upload: Upload, found: Direct, answer: int = 200
) -> Response:
    """What is to be known of an upload that is not open any more."""
    more: dict[str, Any]
    if upload.state == "committed" and upload.digest is not None:
        more = {"state": "committed", "digest": digests.unpack(upload.digest)}
    elif found.refusal is not None:
        error = {name: value for name, value in found.refusal.items() if name != "status"}
        more = {"state": "refused", "error": error}
    elif upload.state == "committing":
        more = {
            "state": "verifying",
            "size": found.size or upload.received,
            "verified": found.bytes_verified,
            "pollers": _POLLERS,
        }
    else:
        raise _unknown()
    return _located(
        context, upload.repository, upload.id, request.subject, upload.epoch, more, answer
    )


def _located(
    context: Context,
    repository: str,
    upload_id: str,
    subject: Subject,
    epoch: int,
    more: dict[str, Any],
    answer: int = 200,
) -> Response:
    token = context.capabilities.issue(repository, upload_id, subject.id)
    path = f"/uploads/{repository}/{upload_id}?{PARAMETER}={token}&epoch={epoch}"
    location = context.location(path)
    body = {
        **more,
        "location": location[1],
        "expiresIn": context.capabilities.seconds,
        "holdSeconds": HOLD,
    }
    return _answer(answer, body, [location])


def _answer(
    status: int, body: dict[str, Any], fields: list[tuple[str, str]] | None = None
) -> Response:
    headers = [("Content-Type", JSON), ("Cache-Control", "no-store"), *(fields or [])]
    return Response(status, headers, json.dumps(body).encode())


_Body = TypeVar("_Body", Begin, More, Commit)


def _decoded(request: Request, kind: type[_Body]) -> _Body:
    try:
        return msgspec.json.decode(request.body or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UploadInvalid(
            "The body is not the JSON that docs/direct-uploads.md tells of.", str(error)
        ) from None


def _state(text: str, algorithm: str) -> bytes:
    try:
        state = bytes.fromhex(text)
    except ValueError:
        state = b""
    if len(state) != (length := digests.state_size(algorithm)):
        raise UploadInvalid(
            f"A state of {algorithm} is {2 * length} hexadecimal digits.", {"state": text[:200]}
        )
    return state


def _check_size(size: int | None) -> None:
    if size is not None and not 0 < size < 1 << 62:
        raise SizeInvalid("The size is that of the blob in bytes, one at least.", {"size": size})


def _client_parts(context: Context) -> ClientParts:
    parts = context.store.client_parts
    if parts is None or not offered(context):
        raise Unsupported(
            "This registry takes no direct uploads: use those of the distribution specification."
        )
    return parts


def _changed(context: Context, upload: Upload) -> UploadInvalid:
    error = UploadInvalid(
        "Storage could not make an object of these parts: were they sent again meanwhile? This"
        " upload has ended, begin another."
    )
    refuse(context, upload, error)
    return error


def _unknown() -> UploadUnknown:
    return UploadUnknown(
        "There is no such upload: it was committed, cancelled, or has expired. Begin another."
    )
