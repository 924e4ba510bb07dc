"""Filebase: what its double over a real S3 server does, and does late, wrong or not at all."""

import hashlib
import itertools
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import ClassVar

import pytest

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.jobs import orphans, resolving
from chalicelib.metadata import resolver_copies
from chalicelib.resolvers import NotThere, ResolverError, Status, WrongCid, added, blocks, filebase
from chalicelib.resolvers.filebase import Address, Filebase, FilebaseBucket
from chalicelib.resolvers.opening import Resolvers
from chalicelib.resolvers.placing import Bytes, Stored, place
from chalicelib.resolvers.unixfs import UNIXFS_V0_2015, UNIXFS_V1_2025, Profile, Tree, packed, text
from chalicelib.settings import Settings
from chalicelib.storage import StorageError, open_store
from chalicelib.storage.s3 import S3Store
from tests.client import CoreClient, push_image
from tests.contract.stores import aws_credentials, content
from tests.images import Image, make_image
from tests.resolvers.copies import delete, let_go, perform, states, work
from tests.resolvers.doubles import filebase as doubles
from tests.servers import S3
from tests.storage.faults import Fault, FaultyProxy

MIB = 1 << 20
SMALL = b"a manifest"
LARGE = content(9 * MIB, seed=3)
"""Of two parts."""
_prefixes = itertools.count()


@pytest.fixture
def double(s3_server: S3) -> Iterator[doubles.Filebase]:
    with closing(doubles.Filebase(s3_server)) as double:
        yield double


Make = Callable[..., Filebase]


@pytest.fixture
def make(double: doubles.Filebase, s3_server: S3) -> Make:
    """Make a resolver in an unused prefix of the tests' bucket."""

    def make(**address: str) -> Filebase:
        servers = {"endpoint": double.url, "gateway": double.url, "rpc": double.url}
        given = {"bucket": s3_server.bucket, "prefix": f"filebase{next(_prefixes)}", **servers}
        return Filebase(
            "mine", Address.parse({**given, **address}), s3_server.access_key, s3_server.secret_key
        )

    return make


def named(data: bytes) -> Bytes:
    return Bytes(f"sha256:{hashlib.sha256(data).hexdigest()}", data)


def put(resolver: Filebase | FilebaseBucket, data: bytes) -> str:
    return place(resolver, named(data), digests.of(data))


def cid(data: bytes, profile: Profile = UNIXFS_V1_2025) -> str:
    return Tree([data], profile).cid


def everything(resolver: Filebase | FilebaseBucket, found: str, size: int) -> bytes:
    return b"".join(blocks.read([resolver], found, 0, size))


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
@pytest.mark.parametrize("profile", [UNIXFS_V1_2025, UNIXFS_V0_2015], ids=lambda each: each.name)
def test_the_cid_is_ours_however_filebase_cuts_files(
    double: doubles.Filebase, make: Make, profile: Profile, data: bytes
) -> None:
    double.profile = profile
    resolver = make()
    assert put(resolver, data) == cid(data)
    assert resolver.status(named(data).name, cid(data)) == Status("there")
    assert everything(resolver, cid(data), len(data)) == data
    sent = double.operations["PutObject"] + double.operations["UploadPart"]
    assert put(resolver, data) == cid(data)
    assert sent == double.operations["PutObject"] + double.operations["UploadPart"]
    resolver.unpin(named(data).name, cid(data))
    resolver.unpin(named(data).name, cid(data))
    assert resolver.status(named(data).name, cid(data)) == Status("missing")
    with pytest.raises(NotThere):
        resolver.block(cid(data))


def test_a_cid_that_comes_late(double: doubles.Filebase, make: Make) -> None:
    double.lag = 0.6
    assert put(make(), LARGE) == cid(LARGE)
    assert double.operations["HeadObject"] > 2


def test_a_cid_that_comes_later_than_a_job_waits(
    double: doubles.Filebase, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filebase, "_CID_SECONDS", 0.5)
    double.lag = 60
    resolver = make()
    for _ in range(2):
        with pytest.raises(ResolverError, match="has not said its CID yet"):
            put(resolver, LARGE)
    assert resolver.status(named(LARGE).name, cid(LARGE)) == Status("coming")
    [(path, found)] = double.objects.items()
    double.objects[path] = replace(found, said_at=0)
    assert put(resolver, LARGE) == cid(LARGE)
    assert double.operations["CompleteMultipartUpload"] == 1
    # What never gets a CID is sent again some day.
    double.objects[path] = replace(found, cid=None)
    monkeypatch.setattr(filebase, "_GIVEN_UP_SECONDS", 0.0)
    double.lag = 0
    assert put(resolver, LARGE) == cid(LARGE)
    assert double.operations["CompleteMultipartUpload"] == 2


def test_a_cid_that_never_comes_with_the_answer(
    double: doubles.Filebase, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filebase, "_CID_SECONDS", 0.5)
    double.silent = True
    resolver = make()
    with pytest.raises(ResolverError, match="has not said its CID yet"):
        put(resolver, SMALL)
    double.silent = False
    assert put(resolver, SMALL) == cid(SMALL)
    assert double.operations["PutObject"] == 1


def test_a_wrong_cid(double: doubles.Filebase, make: Make) -> None:
    resolver = make()
    double.wrong = cid(b"something else")
    with pytest.raises(WrongCid, match=double.wrong):
        put(resolver, SMALL)
    assert resolver.status(named(SMALL).name, cid(SMALL)) == Status("missing")
    # It is sent anew, which may mend it.
    double.wrong = ""
    assert put(resolver, SMALL) == cid(SMALL)


def test_a_cid_of_another_version_is_the_same(double: doubles.Filebase, make: Make) -> None:
    data = content(2 * MIB)
    ours = cid(data)
    resolver = make()
    double.wrong = text(packed(ours)[2:])
    assert double.wrong.startswith("Qm")
    assert put(resolver, data) == ours


def test_too_many_requests(
    double: doubles.Filebase, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A little too often: as often as they can, eight threads would leave a ninth request no room.
    monkeypatch.setattr(filebase, "_RATE", 22.0)
    double.rate = 20
    resolver = make()
    contents = [b"%d" % number for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda data: put(resolver, data), contents)) == [
            cid(data) for data in contents
        ]
    assert double.refused


def test_a_process_asks_no_more_often_than_it_may(
    double: doubles.Filebase, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filebase, "_RATE", 25.0)
    resolver = make()
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: resolver.check(), range(26)))
    assert time.monotonic() - began >= 1.0


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        ("UploadPart", Fault(status=503)),
        ("UploadPart", Fault(reset=1000)),
        ("CompleteMultipartUpload", Fault(lost=-1)),
        ("CreateMultipartUpload", Fault(lost=-1)),
        ("HeadObject", Fault(lost=-1)),
    ],
    ids=str,
)
def test_faults_that_pass(
    double: doubles.Filebase, make: Make, operation: str, fault: Fault
) -> None:
    with closing(FaultyProxy(double.url)) as faulty:
        resolver = make(endpoint=faulty.endpoint)
        faulty.will(operation, fault)
        assert put(resolver, LARGE) == cid(LARGE)
        assert not faulty.plans[operation]
    assert everything(resolver, cid(LARGE), len(LARGE)) == LARGE


def test_a_network_that_is_down(double: doubles.Filebase, make: Make) -> None:
    with closing(FaultyProxy(double.url)) as faulty:
        resolver = make(endpoint=faulty.endpoint)
        faulty.always.update(
            {each: Fault(reset=0) for each in ("HeadObject", "HeadBucket", "ListMultipartUploads")}
        )
        for failing in (
            lambda: put(resolver, SMALL),
            lambda: resolver.status("sha256:0", cid(SMALL)),
            lambda: resolver.unpin("sha256:0", cid(SMALL)),
            resolver.check,
        ):
            with pytest.raises(ResolverError, match=r"^Filebase is out of reach"):
                failing()


def test_keys_that_are_wrong(double: doubles.Filebase, make: Make, s3_server: S3) -> None:
    wrong = Filebase("mine", Address(s3_server.bucket, endpoint=double.url), "someone", "secret")
    for failing in (wrong.check, lambda: put(wrong, SMALL)):
        with pytest.raises(ResolverError, match="403") as caught:
            failing()
        assert "someone" not in str(caught.value)
    own = make()
    put(own, SMALL)
    other = Filebase("mine", Address("other", rpc=double.url), "someone", "secret")
    with pytest.raises(ResolverError, match="401"):
        other.block(cid(SMALL))


def test_unfinished_uploads_are_swept(double: doubles.Filebase, make: Make, s3_server: S3) -> None:
    resolver = make()
    store: S3Store = resolver._objects._store
    key = resolver._objects.key(named(LARGE).name)

    def begin() -> None:
        store.begin_multipart(key, threading.Event())

    def unfinished() -> list[str]:
        return [found for found, _ in store._multiparts("")]

    begin()
    assert put(resolver, LARGE) == cid(LARGE)
    assert unfinished() == []
    begin()
    resolver.unpin(named(LARGE).name, cid(LARGE))
    assert unfinished() == []


class _Unreadable(Bytes):
    """Content that can be read once, and then half of it."""

    reads: ClassVar[int] = 0

    def open(self) -> Iterator[bytes]:
        type(self).reads += 1
        yield self.data[: 8 * MIB + 5]
        if self.reads > 1:
            raise StorageError("It is gone.")
        yield self.data[8 * MIB + 5 :]


def test_two_resolvers_in_one_bucket(double: doubles.Filebase, make: Make, s3_server: S3) -> None:
    one = make(prefix="shared")
    address = Address(s3_server.bucket, "shared/", *[double.url] * 3)
    other = Filebase("else/mine", address, s3_server.access_key, s3_server.secret_key)
    assert put(one, SMALL) == put(other, SMALL) == cid(SMALL)
    other.unpin(named(SMALL).name, cid(SMALL))
    assert one.status(named(SMALL).name, cid(SMALL)) == Status("there")
    assert everything(one, cid(SMALL), len(SMALL)) == SMALL


def test_content_that_cannot_be_read_to_its_end(double: doubles.Filebase, make: Make) -> None:
    resolver = make()
    with pytest.raises(StorageError, match="It is gone"):
        resolver.put(_Unreadable(named(LARGE).name, LARGE))
    assert double.operations["UploadPart"]
    assert [*resolver._objects._store._multiparts("")] == []
    assert resolver.status(named(LARGE).name, "") == Status("missing")


def test_blocks_from_the_gateway(double: doubles.Filebase, make: Make) -> None:
    data = content(3 * MIB)
    resolver = make(rpc="")
    assert resolver.gateways == (double.url,)
    found = put(resolver, data)
    assert everything(resolver, found, len(data)) == data
    assert double.operations["gateway"] == 4
    asked = urllib.request.Request(f"{double.url}/ipfs/{found}", headers={"Range": "bytes=5-9"})
    with urllib.request.urlopen(asked) as answer:
        assert answer.read() == data[5:10]
    with pytest.raises(NotThere):
        resolver.block(cid(b"nobody has this"))
    with pytest.raises(ResolverError, match="Neither a gateway nor"):
        make(rpc="", gateway="").block(found)


# A bucket of Filebase's as the registry's storage.


@pytest.fixture
def bucket(double: doubles.Filebase, s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    aws_credentials(monkeypatch, s3_server)
    url = s3_server.new_storage_url(endpoint=double.url, filebase="true")
    store = open_store(Settings(storage_url=url, part_size=5 * MIB))
    assert isinstance(store, S3Store)
    assert store.bucket.filebase
    return store


def store_object(store: S3Store, key: str, data: bytes) -> None:
    numbers = itertools.count(1)
    writer = store.writer(None, key, lambda count: min(itertools.islice(numbers, count)))
    for start in range(0, len(data), MIB):
        writer.write([data[start : start + MIB]])
    store.complete(writer.close(final=True))


KUBO_V1 = Profile("kubo-v1", version=1, chunk=256 << 10, width=174, raw=True)


@pytest.mark.parametrize("data", [SMALL, content(6 * MIB)], ids=["small", "large"])
@pytest.mark.parametrize(
    "profile", [UNIXFS_V1_2025, UNIXFS_V0_2015, KUBO_V1], ids=lambda each: each.name
)
def test_what_is_stored_is_there_already(
    double: doubles.Filebase, bucket: S3Store, profile: Profile, data: bytes
) -> None:
    double.profile, double.lag = profile, 0.3
    keys = {named(data).name: "0" * 32}
    resolver = FilebaseBucket(bucket, [double.url], keys.get)
    store_object(bucket, "0" * 32, data)
    before = double.operations["PutObject"] + double.operations["UploadPart"]
    stored = Stored(named(data).name, len(data), "0" * 32, bucket)
    assert place(resolver, stored, digests.of(data)) == cid(data, profile)
    assert double.operations["PutObject"] + double.operations["UploadPart"] == before
    assert resolver.status(stored.name, cid(data, profile)) == Status("there")
    assert everything(resolver, cid(data, profile), len(data)) == data
    resolver.unpin(stored.name, cid(data, profile))
    assert resolver.status(stored.name, cid(data, profile)) == Status("there")
    assert [(key, size) for key, size, _ in bucket.list()] == [("0" * 32, len(data))]


def test_what_storage_does_not_have_is_put_beside_it(
    double: doubles.Filebase, bucket: S3Store
) -> None:
    double.profile = UNIXFS_V0_2015
    resolver = FilebaseBucket(bucket, [double.url], lambda name: None)
    assert put(resolver, SMALL) == cid(SMALL)
    assert resolver.status(named(SMALL).name, cid(SMALL)) == Status("there")
    # No sweep takes it for a blob.
    assert [*bucket.list(), *bucket.list_staged()] == []
    resolver.unpin(named(SMALL).name, cid(SMALL))
    assert resolver.status(named(SMALL).name, cid(SMALL)) == Status("missing")
    resolver.check()


def test_what_is_stored_has_another_cid_than_it_should(
    double: doubles.Filebase, bucket: S3Store
) -> None:
    data = content(MIB + 1)
    store_object(bucket, "2" * 32, data)
    stored = Stored(named(data).name, len(data), "2" * 32, bucket)
    resolver = FilebaseBucket(bucket, [], lambda name: None)
    double.wrong = cid(SMALL)
    with pytest.raises(WrongCid, match=f"{cid(SMALL)}; it has {cid(data)}"):
        place(resolver, stored, digests.of(data))
    # The tree of version 0, by a CID of version 1.
    double.wrong = text(b"\x01\x70" + packed(cid(data, UNIXFS_V0_2015)))
    assert place(resolver, stored, digests.of(data)) == double.wrong


def test_what_storage_has_lost(double: doubles.Filebase, bucket: S3Store) -> None:
    resolver = FilebaseBucket(bucket, [], lambda name: None)
    with pytest.raises(ResolverError, match="no object"):
        resolver.put(Stored(named(SMALL).name, len(SMALL), "1" * 32, bucket))


# Addresses.


def test_addresses() -> None:
    address = Address.parse({"bucket": "blobs"})
    assert address == Address("blobs")
    assert address.is_public
    address = Address.parse({"bucket": "blobs", "prefix": "/a/b/", "gateway": "", "rpc": ""})
    assert address.prefix == "a/b/"
    assert address.is_public
    assert Address.parse(address.as_json()) == address
    assert Address.parse({"bucket": "blobs", "gateway": "https://mine.myfilebase.com"}).is_public


@pytest.mark.parametrize(
    "url",
    [
        "http://s3.filebase.com",
        "https://s3.filebase.com.example.org",
        "https://myfilebase.com",
        "https://s3.filebase.com:8443",
        "https://127.0.0.1",
        "https://[::1]",
    ],
)
def test_addresses_of_others(url: str) -> None:
    assert not Address.parse({"bucket": "blobs", "rpc": url}).is_public


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"bucket": ""},
        {"bucket": "b"},
        {"bucket": 1},
        {"bucket": "blobs", "region": "x"},
        {"bucket": "blobs", "prefix": "a//b"},
        {"bucket": "blobs", "endpoint": ""},
        {"bucket": "blobs", "endpoint": "s3.filebase.com"},
        {"bucket": "blobs", "gateway": "https://user:secret@example.org"},
        {"bucket": "blobs", "gateway": "https://example.org?x"},
        {"bucket": "blobs", "rpc": "file:///etc/passwd"},
        {"bucket": "blobs", "rpc": "https://example.org:x"},
        {"bucket": "blobs", "rpc": "https://[x"},
    ],
)
def test_wrong_addresses(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="address") as caught:
        Address.parse(wrong)
    assert "secret" not in str(caught.value)


# Images.


@pytest.fixture
def context(jobs_context: Context, double: doubles.Filebase) -> Context:
    """New repositories are public. The double is a server that people may add."""
    settings = replace(
        jobs_context.settings,
        new_repositories="public",
        grace=0,
        resolver_origins=(double.url,),
        ipfs_gateways=(double.url,),
    )
    context = replace(jobs_context, settings=settings)
    return replace(
        context,
        resolvers=Resolvers(settings, context.database, context.keys, context.store),
    )


def choose(context: Context, resolver: str) -> None:
    context.database.run(
        "INSERT INTO resolver_choices (resolvers, chosen_by)"
        " VALUES (CAST(:names AS text[]), 'test')",
        names=[resolver],
    )


def is_whole(context: Context, resolver: str, *images: Image) -> None:
    """That a network has all of these, by what the database says and by its blocks."""
    network = context.resolvers.get(resolver)
    assert network is not None
    for image in images:
        for each in (*image.blobs, image.manifest):
            [copy] = resolver_copies.there(context.database, [digests.pack(each.digest)])
            assert copy.resolver == resolver
            found = b"".join(blocks.read([network], copy.cid or "", 0, copy.size))
            assert found == each.data


def test_images_on_a_bucket_that_somebody_added(
    context: Context, double: doubles.Filebase, s3_server: S3
) -> None:
    servers = {"endpoint": double.url, "gateway": double.url, "rpc": double.url}
    address = {"bucket": s3_server.bucket, "prefix": f"filebase{next(_prefixes)}", **servers}
    keys = s3_server.access_key, s3_server.secret_key
    added.add(context, None, "ours", address, *keys, by="test")
    assert added.check(context, "ours") == ""
    choose(context, "ours")
    image = make_image([100, 9 * MIB], seed="filebase")
    push_image(CoreClient(context), "a/b", image, "latest")
    work(context)
    is_whole(context, "ours", image)
    delete(CoreClient(context), "a/b", image.manifest.digest)
    let_go(context)
    assert double.objects == {}


def test_what_nobody_wants_before_its_cid_was_said(
    context: Context,
    double: doubles.Filebase,
    s3_server: S3,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(filebase, "_CID_SECONDS", 0.3)
    double.silent = True
    address = {"bucket": s3_server.bucket, "endpoint": double.url, "gateway": "", "rpc": ""}
    keys = s3_server.access_key, s3_server.secret_key
    added.add(context, None, "ours", address, *keys, by="test")
    choose(context, "ours")
    image = make_image([2 * MIB], seed="coming")
    push_image(CoreClient(context), "a/b", image, "latest")
    work(context)
    assert len(double.objects) == 3
    assert set(states(context.database).values()) == {"waiting"}
    delete(CoreClient(context), "a/b", image.manifest.digest)
    let_go(context)
    assert double.objects == {}


def test_images_of_a_registry_whose_storage_is_filebase(
    context: Context, double: doubles.Filebase, bucket: S3Store
) -> None:
    context = replace(
        context,
        store=bucket,
        resolvers=Resolvers(context.settings, context.database, context.keys, bucket),
    )
    choose(context, "bucket")
    double.profile, double.lag = UNIXFS_V0_2015, 0.2
    image = make_image([100, 6 * MIB], seed="bucket")
    client = CoreClient(context)
    push_image(client, "a/b", image, "latest")
    parts = double.operations["UploadPart"]
    blobs = {key for key, _, _ in bucket.list()}
    assert len(blobs) == 3
    work(context)
    is_whole(context, "bucket", image)
    assert double.operations["UploadPart"] == parts
    assert {key for key, _, _ in bucket.list()} == blobs
    assert orphans.run(context, dry_run=True, force=False).unknown == 0
    perform(context, resolving.check)
    assert set(states(context.database).values()) == {"there"}
    delete(client, "a/b", image.manifest.digest)
    let_go(context)
    # What was put beside the blobs is gone; they are there until they are collected.
    assert len(double.objects) == len(blobs)
