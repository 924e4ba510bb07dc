"""Sending blobs to a registry elsewhere, over lines that break and by processes that are killed."""

import hashlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from chalicelib.client.direct_upload import ENDPOINT
from chalicelib.client.ordinary_upload import pieces
from chalicelib.client.progress import Progress
from chalicelib.client.remote import Remote, RemoteError
from chalicelib.client.sending import MEMORY, Sender, Sending
from chalicelib.digests import Hash
from chalicelib.storage.parts import BLOCK, Memory, Part
from tests.accounts import command
from tests.bench.servers import PEER, DockerRegistry
from tests.client import sha256, sha512
from tests.conftest import need
from tests.hosts.lambda_registry import LambdaRegistry
from tests.hosts.wire import until
from tests.images import make_bytes
from tests.registry_client.script import Answer, Asked, Script
from tests.registry_client.sender import content
from tests.servers import S3, Postgres, Registry, stopping
from tests.storage.faults import Fault, FaultyProxy
from tests.witness import Witness

MIB = 1 << 20
PART = 8 * MIB
FIRST = make_bytes(PART, 99)


@dataclass
class Far:
    """A registry with direct uploads: what it is asked is witnessed, and its storage stands behind
    a line with faults."""

    registry: Registry
    witness: Witness
    storage: FaultyProxy
    postgres: Postgres

    @property
    def remote(self) -> Remote:
        return Remote(self.witness.host)

    def parts(self) -> int:
        """How many parts have been sent to storage, counted as often as each was sent."""
        return self.storage.count("UploadPart")

    def query(self, sql: str) -> list[list[object]]:
        database = self.registry.settings["OPENREGISTRY_DATABASE_URL"].rpartition("/")[2]
        return self.postgres.query(sql, database)

    def forget(self) -> None:
        """As if nothing had been asked and no fault been planned."""
        self.storage.plans.clear()
        self.storage.always.clear()
        self.storage.seen.clear()
        self.witness.requests.clear()


@pytest.fixture(scope="module")
def _far(directory: Path, postgres: Postgres, s3_server: S3) -> Iterator[Far]:
    with closing(FaultyProxy(s3_server.endpoint)) as storage:
        settings = {
            "OPENREGISTRY_DATABASE_URL": postgres.new_database(),
            "OPENREGISTRY_STORAGE_URL": s3_server.new_storage_url(public_endpoint=storage.endpoint),
            **s3_server.environment(),
        }
        registry = Registry(Path(tempfile.mkdtemp(prefix="far-", dir=directory)), settings)
        with stopping(registry):
            registry.start()
            with closing(Witness(registry.host)) as witness:
                yield Far(registry, witness, storage, postgres)


@pytest.fixture
def far(_far: Far) -> Far:
    _far.forget()
    return _far


@pytest.fixture
def sending(far: Far) -> Iterator[Sending]:
    with Sending(far.remote) as made:
        yield made
        assert made.memory.lent == 0


def send(sending: Sending, repository: str, data: bytes, **known: object) -> str:
    """Send a blob; its digest."""
    sender = Sender(sending, repository, **known)  # type: ignore[arg-type]
    try:
        for at in range(0, len(data), MIB):
            sender.write([data[at : at + MIB]])
        return sender.finish()
    except BaseException:
        sender.abort()
        raise


def bytes_of(sending: Sending, repository: str, digest: str) -> bytes:
    """The bytes that the registry has under a digest."""
    with sending.remote.send("GET", f"/v2/{repository}/blobs/{digest}", stream=True) as reply:
        return b"".join(reply.check(200).pieces())


def is_sent(sending: Sending, repository: str, data: bytes, **known: object) -> None:
    digest = send(sending, repository, data, **known)
    assert digest == sha256(data)
    assert sha256(bytes_of(sending, repository, digest)) == digest


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("size", [0, 1, 4 * MIB, 4 * MIB + 1, PART, PART + 1, 3 * PART])
def test_every_size_takes_its_road(
    far: Far, sending: Sending, repository: str, size: int, known: bool
) -> None:
    data = make_bytes(size, size)
    told = {"size": size, "digest": sha256(data)} if known else {}
    is_sent(sending, repository, data, **told)
    assert far.parts() == (-(-size // PART) if size > PART else 0)
    chunks = len(far.witness.asked("PATCH", repository))
    assert chunks == (1 if 4 * MIB < size <= PART else 0)


def test_a_quota_counts_no_more_than_there_is(far: Far, sending: Sending) -> None:
    """Also where nobody knew how much that would be."""
    command(far.registry.settings, "quota", "set", "--account", "narrow", "--bytes", "18M")
    data = make_bytes(2 * PART + 5, 30)
    is_sent(sending, "narrow/image", data)
    with pytest.raises(RemoteError, match="The quota of narrow is"):
        send(sending, "narrow/image", make_bytes(2 * PART, 31))


def test_progress_counts_what_is_there(sending: Sending, repository: str) -> None:
    data = make_bytes(2 * PART + 5, 1)
    with Progress(quiet=True).bar("a layer", len(data)) as bar:
        send(sending, repository, data, bar=bar)
        assert bar.done == len(data)


def test_what_is_there_already_is_not_sent(far: Far, sending: Sending, repository: str) -> None:
    data = make_bytes(PART + 1, 2)
    digest = send(sending, repository, data)
    far.forget()
    with Progress(quiet=True).bar("a layer", len(data)) as bar:
        assert send(sending, repository, data, digest=digest, bar=bar) == digest
        assert bar.done == len(data)
    assert far.parts() == 0


def test_a_registry_that_wants_larger_parts_gets_them(far: Far, repository: str) -> None:
    data = make_bytes(12 * MIB, 3)
    with Sending(far.remote, part_size=2 * MIB) as sending:
        is_sent(sending, repository, data)
        assert sending.memory.lent == 0
    assert [seen.length for seen in far.storage.seen if seen.length].count(5 * MIB) == 2


def test_another_digest_than_was_named_is_not_committed(
    far: Far, sending: Sending, repository: str
) -> None:
    data, other = make_bytes(2 * PART, 4), sha256(b"other")
    for known in ({"digest": other}, {"size": len(data) + 1}):
        with pytest.raises(RemoteError) as caught:
            send(sending, repository, data, **known)
        assert caught.value.code in ("DIGEST_INVALID", "SIZE_INVALID")
    sender = Sender(sending, repository)
    sender.write([data])
    with pytest.raises(RemoteError, match="sha512"):
        sender.finish(sha512(data))
    sender.cancel()
    assert not far.witness.asked("PUT", repository)


def test_sha512_is_sent_like_sha256(far: Far, sending: Sending, repository: str) -> None:
    data = make_bytes(2 * PART + 1, 5)
    assert send(sending, repository, data, digest=sha512(data)) == sha512(data)
    assert far.parts() == 3


# Faults


def test_parts_are_sent_until_they_are_there(far: Far, sending: Sending, repository: str) -> None:
    far.storage.will(
        "UploadPart",
        Fault(reset=100_000),
        Fault(status=500),
        Fault(lost=-1),
        Fault(status=503),
        Fault(reset=0),
        Fault(lost=-1),
    )
    is_sent(sending, repository, make_bytes(4 * PART + 1, 6))
    assert far.parts() == 5 + 6


def test_an_expired_url_is_replaced(far: Far, sending: Sending, repository: str) -> None:
    far.storage.will("UploadPart", Fault(status=403), Fault(status=403))
    is_sent(sending, repository, make_bytes(2 * PART, 7))
    asked = len(far.witness.asked("POST", f"/uploads/{repository}"))
    far.forget()
    is_sent(sending, repository, make_bytes(2 * PART, 8))
    assert asked > len(far.witness.asked("POST", f"/uploads/{repository}"))


def test_a_part_that_is_never_taken_ends_the_attempt(
    far: Far, sending: Sending, repository: str
) -> None:
    far.storage.always["UploadPart"] = Fault(status=403)
    with pytest.raises(RemoteError, match="answered 403: AccessDenied"):
        send(sending, repository, make_bytes(3 * PART, 9))
    assert sending.memory.lent == 0


def test_an_upload_that_was_cancelled_meanwhile_says_so(
    far: Far, sending: Sending, repository: str
) -> None:
    sender = Sender(sending, repository)
    sender.write([make_bytes(PART + 1, 10)])
    location = far.witness.asked("POST", f"/uploads/{repository}")
    for _ in until():
        if location := far.witness.asked("POST", f"/uploads/{repository}"):
            break
    sending.remote.send("DELETE", location[0]).check(204)
    with pytest.raises(RemoteError, match="BLOB_UPLOAD_UNKNOWN"):
        sender.write([make_bytes(10 * PART, 10)])
    sender.abort()


# Going on


@pytest.mark.parametrize("known", [False, True])
def test_an_upload_that_was_cut_goes_on(
    far: Far, sending: Sending, repository: str, known: bool
) -> None:
    data = make_bytes(6 * PART, 11)
    told = {"digest": sha256(data), "size": len(data)} if known else {}
    sender = Sender(sending, repository, **told)  # type: ignore[arg-type]
    sender.write([data[: 4 * PART + 1]])
    for _ in until():
        if sending.memory.lent <= 2 * PART // BLOCK + 1 and far.parts() == 4:
            break
    sender.abort()
    assert sending.memory.lent == 0
    far.forget()
    with Sending(far.remote) as another, Progress(quiet=True).bar("", None) as bar:
        sender = Sender(another, repository, bar=bar, **told)  # type: ignore[arg-type]
        sender.write([data])
        assert sender.finish() == sha256(data)
        assert sender.skipped >= 2 * PART
        assert bar.done == len(data)
    assert far.parts() == (len(data) - sender.skipped) // PART
    assert bytes_of(sending, repository, sha256(data)) == data


def test_what_is_being_verified_already_is_waited_for() -> None:
    """Its client has left; nothing is sent again."""
    data = make_bytes(PART + 1, 40)
    states = iter(["verifying", "committed"])

    def answer(asked: Asked) -> Answer:
        state = {"location": "/uploads/image/1", "expiresIn": 60, "size": len(data), "verified": 0}
        if asked.path.endswith("/discover"):
            extension = {"name": "_openregistry", "endpoints": [ENDPOINT]}
            return 200, {}, json.dumps({"extensions": [extension]}).encode()
        if asked.path.endswith(ENDPOINT):
            return 200, {}, json.dumps({**state, "state": "verifying"}).encode()
        assert (asked.method, asked.path) == ("GET", "/uploads/image/1")
        return 200, {}, json.dumps({**state, "state": next(states)}).encode()

    with closing(Script(answer)) as server, Sending(Remote(server.url)) as sending:
        assert send(sending, "image", data, digest=sha256(data), size=len(data)) == sha256(data)
        assert next(states, None) is None


def test_other_bytes_with_the_same_beginning_become_what_they_are(
    far: Far, sending: Sending, repository: str
) -> None:
    one = FIRST + make_bytes(3 * PART, 12)
    other = one[: 2 * PART] + make_bytes(3 * PART, 13)
    sender = Sender(sending, repository)
    sender.write([one])
    for _ in until():
        if sending.memory.lent == PART // BLOCK:  # that of the last part
            break
    sender.abort()
    time.sleep(1.1)  # SeaweedFS tells by the second which of two parts is the newer
    is_sent(sending, repository, other)
    is_sent(sending, repository, one)


def test_two_who_send_the_same_at_once_do_not_meet(
    far: Far, sending: Sending, repository: str
) -> None:
    data = make_bytes(3 * PART, 25)
    one, other = Sender(sending, repository), Sender(sending, repository)
    for at in range(0, len(data), PART):
        one.write([data[at : at + PART]])
        other.write([data[at : at + PART]])
    assert one.finish() == other.finish() == sha256(data)
    assert one.skipped == other.skipped == 0


@pytest.mark.long
def test_who_was_overtaken_is_told(far: Far, sending: Sending, repository: str) -> None:
    data = make_bytes(12 * PART, 26)
    late = Sender(sending, repository)
    late.write([data[: 2 * PART]])
    for _ in until():
        if far.parts() == 1:
            break
    far.query("UPDATE direct_uploads SET held_until = now()")
    first = Sender(sending, repository)
    first.write([data])

    def go_on() -> None:
        late.write([data[2 * PART :]])
        late.finish()

    with pytest.raises(RemoteError, match="Another client has taken this upload over"):
        go_on()
    late.abort()
    assert first.finish() == sha256(data)


def test_who_was_away_for_long_asks_before_he_writes(
    far: Far, sending: Sending, repository: str
) -> None:
    one = FIRST + make_bytes(9 * PART, 27)
    late = Sender(sending, repository)
    late.write([one[: 2 * PART]])
    for _ in until():
        if far.parts() == 1 and sending.memory.lent == PART // BLOCK:
            break
    far.query("UPDATE direct_uploads SET held_until = now()")
    other = FIRST + make_bytes(5 * PART, 28)
    first = Sender(sending, repository)
    first.write([other])
    late._road._hold = 0  # type: ignore[union-attr]
    with pytest.raises(RemoteError, match="Another client has taken this upload over"):
        late.write([one[2 * PART :]])
    late.abort()
    assert first.finish() == sha256(other)
    assert first.skipped == PART


def test_bytes_in_storage_that_are_not_what_was_said_are_refused_and_sent_anew(
    far: Far, sending: Sending, repository: str
) -> None:
    data = make_bytes(4 * PART + 1, 14)
    sender = Sender(sending, repository)
    sender.write([data])
    for _ in until():
        if sending.memory.lent == 1:  # that of the last byte
            break
    # Somebody who has a URL writes something else over the second part, and tells the same state.
    sender.abort()
    location = far.witness.asked("POST", f"/uploads/{repository}")[0]
    hashing = Hash()
    hashing.update(data[: 2 * PART])
    told = hashing.words().hex()
    wanted = json.dumps({"parts": [{"number": 2, "size": PART}], "states": {"2": told}}).encode()
    url = far.remote.send("POST", location, body=wanted).json()["parts"][0]["url"]
    time.sleep(1.1)  # SeaweedFS tells by the second which of two is the newer
    far.remote.send("PUT", url, body=make_bytes(PART, 15)).check(200)
    far.remote.send("POST", location, body=b'{"release": true}').check(200)
    far.forget()
    with pytest.raises(RemoteError) as caught:
        send(sending, repository, data)
    assert caught.value.code == "DIGEST_INVALID"
    assert "the next attempt sends all of it anew" in caught.value.sentence
    assert far.parts() < 5
    far.forget()
    is_sent(sending, repository, data)
    assert far.parts() == 5


def test_cancelling_removes_what_was_sent(far: Far, sending: Sending, repository: str) -> None:
    sender = Sender(sending, repository)
    sender.write([make_bytes(2 * PART, 16)])
    sender.cancel()
    rows = far.query(f"SELECT state FROM uploads WHERE repository = '{repository}'")
    assert rows == [["cancelled"]]
    far.forget()
    sender = Sender(sending, repository)
    sender.write([make_bytes(2 * PART, 16)])
    sender.finish()
    assert sender.skipped == 0


def program(far: Far, repository: str, seed: int, count: int, seconds: float) -> list[str]:
    words = [far.witness.host, repository, str(seed), str(count), str(seconds)]
    return [sys.executable, "-m", "tests.registry_client.sender", *words]


@pytest.mark.long
def test_another_process_goes_on_where_one_was_killed(far: Far, repository: str) -> None:
    count = 160
    killed = subprocess.Popen(program(far, repository, 17, count, 0.1))
    for _ in until(60):
        if far.parts() == 12:
            break
    killed.kill()
    killed.wait()
    before = far.parts()
    # As after a minute, when nobody holds it any more.
    far.query("UPDATE direct_uploads SET held_until = now()")
    done = subprocess.run(
        program(far, repository, 17, count, 0), capture_output=True, text=True, check=True
    )
    skipped, digest, _ = done.stdout.split()
    hashing = hashlib.sha256()
    for piece in content(17, count):
        hashing.update(piece)
    assert digest == f"sha256:{hashing.hexdigest()}"
    # Of twelve, those are sent again that were on their way, or whose states were not told yet.
    assert int(skipped) >= 4 * PART
    assert far.parts() - before == count * MIB // PART - int(skipped) // PART


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_writer_that_stalls_keeps_its_upload(
    serve: Callable[..., Registry], s3_server: S3, repository: str
) -> None:
    registry = serve(
        OPENREGISTRY_STORAGE_URL=s3_server.new_storage_url(),
        OPENREGISTRY_UPLOAD_EXPIRY="60",
        OPENREGISTRY_BODY_TIMEOUT="30",
        **s3_server.environment(),
    )
    data = make_bytes(4 * PART, 18)
    with Sending(Remote(registry.host)) as sending:
        sender = Sender(sending, repository)
        sender.write([data[: PART + 1]])
        time.sleep(75)  # the upload would have expired, and its first URLs have
        sender.write([data[PART + 1 :]])
        assert sender.finish() == sha256(data)


# Memory, and many at once


def test_who_writes_waits_for_the_network(far: Far, sending: Sending, repository: str) -> None:
    far.storage.always["UploadPart"] = Fault(hang=True)
    sender = Sender(sending, repository)

    def write() -> None:
        with pytest.raises(RemoteError):
            sender.write(FIRST for _ in range(100))

    thread = threading.Thread(target=write)
    thread.start()
    time.sleep(3)
    received = sender.received
    time.sleep(1)
    assert sender.received == received <= 6 * PART
    far.storage.always.clear()
    far.storage.stopped.set()
    sender._abandoned.set()
    thread.join()
    far.storage.stopped.clear()
    sender.abort()


def test_parts_that_wait_for_a_thread_are_given_up_too(far: Far, repository: str) -> None:
    far.storage.always["UploadPart"] = Fault(hang=True)
    with Sending(far.remote, memory=25 * PART) as sending:
        senders = [Sender(sending, repository) for _ in range(5)]
        for sender in senders:
            sender.write([FIRST, FIRST, FIRST, FIRST, b"more"])
        assert sending.threads._work_queue.qsize() >= 4
        lent = sending.memory.lent
        began = time.monotonic()
        senders.pop().abort()
        assert time.monotonic() - began < 10
        assert sending.memory.lent < lent - 4 * PART // BLOCK
        far.storage.stopped.set()
        for sender in senders:
            sender.abort()
        far.storage.stopped.clear()
        assert sending.memory.lent == 0


def test_senders_that_stall_keep_no_other_waiting(far: Far, repository: str) -> None:
    with Sending(far.remote, memory=2 * PART) as sending:
        stalled = [Sender(sending, repository) for _ in range(4)]
        for sender in stalled:
            sender.write([FIRST[:-1]])
        assert sending.memory.take() is None
        is_sent(sending, repository, make_bytes(3 * PART, 19))
        for sender in stalled:
            sender.abort()
        assert sending.memory.lent == 0


@pytest.mark.long
def test_twenty_at_once_share_the_memory(far: Far, repository: str) -> None:
    with Sending(far.remote) as sending:
        most = 0

        def one(number: int) -> None:
            nonlocal most
            sender = Sender(sending, f"{repository}/{number}")
            hashing = hashlib.sha256()
            for piece in content(number, 45):
                sender.write([piece])
                hashing.update(piece)
                most = max(most, sending.memory.lent)
            assert sender.finish() == f"sha256:{hashing.hexdigest()}"

        with ThreadPoolExecutor(20) as threads:
            list(threads.map(one, range(20)))
        assert most <= MEMORY // BLOCK
        assert sending.memory.lent == 0


@pytest.mark.long
def test_a_large_blob_takes_little_memory(far: Far, repository: str) -> None:
    done = subprocess.run(
        program(far, repository, 20, 512, 0), capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[2]) < 120


# Registries without direct uploads


@pytest.fixture
def line(registry: Registry) -> Iterator[FaultyProxy]:
    """A registry that takes no direct uploads, behind a line with faults."""
    with closing(FaultyProxy(registry.url)) as made:
        yield made


def test_chunks_go_where_parts_cannot(line: FaultyProxy, repository: str) -> None:
    data = make_bytes(21 * MIB, 21)
    with Sending(Remote(line.endpoint)) as sending:
        is_sent(sending, repository, data)
    chunks = [seen.length for seen in line.seen if seen.operation == "PATCH"]
    assert chunks == [4 * MIB] * 5


@pytest.mark.parametrize(
    "fault", [Fault(reset=3 * MIB), Fault(reset=0), Fault(status=503), Fault(lost=-1)]
)
def test_chunks_are_sent_until_they_are_there(
    line: FaultyProxy, repository: str, fault: Fault
) -> None:
    data = make_bytes(14 * MIB, 22)
    line.will("PATCH", None, fault, fault)
    line.will("PutObject", fault)
    with Sending(Remote(line.endpoint)) as sending:
        is_sent(sending, repository, data)
        assert sending.memory.lent == 0
    assert line.count("PATCH") == (3 if fault.lost else 5)


@pytest.fixture
def another(directory: Path) -> Iterator[FaultyProxy]:
    """Other people's registry, behind a line with faults. Each Location is good once there, so
    that it knows an upload no longer once the answer to a chunk was lost."""
    need(PEER, "docker-registry")
    server = DockerRegistry(Path(tempfile.mkdtemp(prefix="another-", dir=directory)), None)
    with stopping(server):
        server.start()
        with closing(FaultyProxy(f"http://{server.host}")) as line:
            yield line


def test_another_registry_takes_chunks_after_faults(another: FaultyProxy, repository: str) -> None:
    data = make_bytes(22 * MIB, 29)
    another.will("PATCH", None, Fault(reset=3 * MIB), Fault(status=503))
    with Sending(Remote(another.endpoint)) as sending:
        is_sent(sending, repository, data)
        assert sending.memory.lent == 0


@pytest.mark.parametrize("start", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_a_part_is_sent_from_any_byte_on(start: int) -> None:
    data = make_bytes(3 * BLOCK + 5, 30)
    part = Part(Memory(2 * BLOCK), len(data))  # the rest of it in a file
    part.fill(memoryview(data), spill=True)
    assert b"".join(pieces(part, start, threading.Event())) == data[start:]
    part.release()


def test_chunks_go_to_the_host_for_uploads(
    serve: Callable[..., Registry], repository: str, directory: Path
) -> None:
    data = make_bytes(10 * MIB, 23)
    uploads = Witness("")
    registry = serve(OPENREGISTRY_UPLOAD_URL=f"http://{uploads.host}")
    uploads.target = registry.host
    with closing(uploads), Sending(Remote(registry.host)) as sending:
        is_sent(sending, repository, data)
    assert len(uploads.asked("PATCH")) == 2
    assert len(uploads.asked("PUT")) == 1


@pytest.mark.long
def test_functions_take_what_is_larger_than_they_can(
    lambda_registry: LambdaRegistry, repository: str
) -> None:
    from chalicelib.client.credentials import Credentials
    from tests.hosts.lambda_registry import PASSWORD, USER

    remote = Remote(lambda_registry.host, Credentials(USER, PASSWORD))
    with Sending(remote) as sending:
        for size in (7 * MIB, 20 * MIB, 150 * MIB):
            data = make_bytes(size, 24)
            assert send(sending, f"{USER}/{repository}", data) == sha256(data)
