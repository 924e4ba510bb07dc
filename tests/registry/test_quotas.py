"""Quotas: what is counted, what is refused and when, and that the counter is the true sum."""

import json
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chalicelib.context import Context
from chalicelib.hosts import build_context
from chalicelib.http import Denied, NameUnknown
from chalicelib.identity import repositories as renaming
from chalicelib.identity.users import Refused
from chalicelib.jobs.kinds import KINDS
from chalicelib.jobs.worker import Worker
from chalicelib.metadata import jobs, repositories
from chalicelib.metadata import quotas as rows
from chalicelib.registry import quotas
from chalicelib.settings import Settings
from tests.accounts import command
from tests.client import (
    Answer,
    Client,
    CoreClient,
    HTTPClient,
    begin,
    pieces,
    push_blob,
    push_image,
    push_manifest,
    sha256,
    with_query,
)
from tests.conftest import need
from tests.images import make_bytes, make_image, write_layout
from tests.jobs.test_events import add_account, add_webhook, deliveries
from tests.servers import Postgres, Registry

MESSAGE = (
    "The quota of {} is {} bytes: it has {}, and this needs {} more. Delete what is no longer"
    " wanted, or ask an administrator of the registry for a larger quota."
)


@pytest.fixture
def account() -> str:
    """A namespace that nobody has used."""
    return f"quota{uuid.uuid4().hex[:12]}"


@pytest.fixture
def limit(request: pytest.FixtureRequest, client: Client, account: str) -> Iterator[Any]:
    """Set the quota of the account, in whichever registry the client speaks to."""
    if isinstance(client, CoreClient):
        yield partial(put, client.context, account)
    elif "harness" in request.node.callspec.id:
        registry: Registry = request.getfixturevalue("registry")

        def through_the_command_line(size: int | None, count: int | None = None) -> None:
            words = ["--account", account]
            words += ["--bytes", str(size)] if size is not None else []
            words += ["--repositories", str(count)] if count is not None else []
            command(registry.settings, "quota", "set", *words)

        yield through_the_command_line
    else:
        found = request.getfixturevalue("lambda_registry")
        context = build_context(Settings.from_environment(found.settings))
        yield partial(put, context, account)
        context.database.close()


def put(context: Context, account: str, size: int | None, count: int | None = None) -> None:
    quotas.put(context.database, account, size, count, by="test")


def used(context: Context, account: str) -> tuple[int, int]:
    found = rows.find(context.database, account)
    return found.used_bytes, found.used_repositories


def true_sum(context: Context, account: str) -> tuple[int, int]:
    """What an account uses, counted without the counters."""
    [[size, count]] = context.database.run(
        "WITH mine AS (SELECT id FROM repositories WHERE split_part(name, '/', 1) = :account)"
        " SELECT CAST((SELECT coalesce(sum(size), 0) FROM blobs WHERE digest IN (SELECT digest"
        " FROM repository_blobs WHERE repository_id IN (SELECT id FROM mine)))"
        " + (SELECT coalesce(sum(length(payload)), 0) FROM manifests"
        " WHERE repository_id IN (SELECT id FROM mine)) AS bigint), (SELECT count(*) FROM mine)",
        account=account,
    )
    return size, count


def put_blob(client: Client, repository: str, data: bytes) -> Answer:
    """Push a blob with one PUT of its bytes."""
    location = begin(client, repository)
    return client.request("PUT", with_query(location, digest=sha256(data)), data)


def refused(answer: Answer) -> Any:
    """The detail of a refusal."""
    assert (answer.status, answer.code) == (403, "DENIED"), answer
    return answer.json["errors"][0]["detail"]


def staged(context: Context) -> set[str]:
    """Names of the files in the store."""
    folder = context.store.folder  # type: ignore[attr-defined]
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_a_push_beyond_the_quota_is_denied_with_the_figures(
    client: Client, account: str, limit: Any
) -> None:
    first, second = make_bytes(600, account), make_bytes(500, account + "2")
    limit(1000)
    push_blob(client, f"{account}/app", first)
    answer = put_blob(client, f"{account}/app", second)
    detail = {"account": account, "quota": "bytes", "limit": 1000, "used": 600, "needed": 500}
    assert refused(answer) == detail
    assert answer.json["errors"][0]["message"] == MESSAGE.format(account, 1000, 600, 500)
    # As Docker does: a stream, then an empty PUT.
    location = client.request("PATCH", begin(client, f"{account}/app"), pieces(second)).location
    answer = client.request("PUT", with_query(location, digest=sha256(second)))
    assert refused(answer) == detail
    # The upload has ended.
    assert client.request("PUT", with_query(location, digest=sha256(second))).status == 404
    limit(1100)
    push_blob(client, f"{account}/app", second)


def test_what_an_account_has_already_costs_nothing(
    client: Client, account: str, limit: Any
) -> None:
    data = make_bytes(600, account)
    limit(1000)
    digest = push_blob(client, f"{account}/a", data)
    push_blob(client, f"{account}/a", data)
    push_blob(client, f"{account}/b", data)
    path = f"/v2/{account}/c/blobs/uploads/?mount={digest}&from={account}/a"
    assert client.request("POST", path).status == 201
    # But of another account it costs as if it were new.
    other = make_bytes(500, account + "2")
    digest = push_blob(client, "elsewhere/a", other)
    path = f"/v2/{account}/c/blobs/uploads/?mount={digest}&from=elsewhere/a"
    assert refused(client.request("POST", path))["needed"] == 500


def test_repositories_are_counted_too(client: Client, account: str, limit: Any) -> None:
    limit(None, 1)
    push_blob(client, f"{account}/a", b"one")
    push_blob(client, f"{account}/a", b"two")
    answer = client.request("POST", f"/v2/{account}/b/blobs/uploads/")
    assert refused(answer) == {
        "account": account, "quota": "repositories", "limit": 1, "used": 1, "needed": 1,
    }  # fmt: skip
    mount = f"/v2/{account}/b/blobs/uploads/?mount={sha256(b'one')}&from={account}/a"
    assert refused(client.request("POST", mount))["quota"] == "repositories"


def test_manifests_count_in_each_repository(file_context: Context, account: str) -> None:
    client, image = CoreClient(file_context), make_image(seed=account)
    put(file_context, account, None)
    for name in ("a", "b"):
        push_image(client, f"{account}/{name}", image, "latest")
        push_image(client, f"{account}/{name}", image, "latest")
    blobs = sum(len(blob.data) for blob in image.blobs)
    assert used(file_context, account) == (blobs + 2 * len(image.manifest.data), 2)
    path = f"/v2/{account}/a/manifests/{image.manifest.digest}"
    assert client.request("DELETE", path).status == 202
    assert used(file_context, account) == (blobs + len(image.manifest.data), 2)


def test_a_quota_of_a_manifest(file_context: Context, account: str) -> None:
    client, image = CoreClient(file_context), make_image(seed=account)
    for blob in image.blobs:
        push_blob(client, f"{account}/a", blob.data)
    size = sum(len(blob.data) for blob in image.blobs)
    put(file_context, account, size + len(image.manifest.data) - 1)
    answer = push_manifest(client, f"{account}/a", image.manifest, "latest")
    assert refused(answer)["needed"] == len(image.manifest.data)
    assert client.request("GET", f"/v2/{account}/a/manifests/latest").status == 404
    put(file_context, account, size + len(image.manifest.data))
    assert push_manifest(client, f"{account}/a", image.manifest, "latest").status == 201


def test_a_refused_upload_leaves_nothing(file_context: Context, account: str) -> None:
    client, data = CoreClient(file_context), make_bytes(3000, account)
    put(file_context, account, 2000)
    before = staged(file_context)
    # One that is larger than all of the quota is refused while it comes,
    answer = client.request("PATCH", begin(client, f"{account}/a"), pieces(data))
    assert refused(answer)["needed"] == 3000
    # where its length is known before it comes,
    answer = client.request("PATCH", begin(client, f"{account}/a"), data)
    assert refused(answer)["needed"] == 3000
    path = f"/v2/{account}/a/blobs/uploads/?digest={sha256(data)}"
    assert refused(client.request("POST", path, data))["needed"] == 3000
    # and in parts when they are too many.
    location = client.request("PATCH", begin(client, f"{account}/a"), data[:1500]).location
    assert refused(client.request("PATCH", location, data[1500:]))["needed"] == 3000
    # Else when it is committed.
    push_blob(client, f"{account}/a", data[:1000])
    location = client.request("PATCH", begin(client, f"{account}/a"), data[:1500]).location
    answer = client.request("PUT", with_query(location, digest=sha256(data[:1500])))
    assert refused(answer)["used"] == 1000
    assert len(staged(file_context) - before) == 1
    assert used(file_context, account) == (1000, 1)


def test_two_at_once_cannot_both_pass(file_context: Context, account: str) -> None:
    """Eight commits of which the quota has room for two, in new repositories of which there may be
    any number."""
    put(file_context, account, 2500)
    answers: list[Answer] = []
    start = threading.Barrier(8)

    def push(number: int) -> None:
        client, data = CoreClient(file_context), make_bytes(1000, f"{account}{number}")
        location = begin(client, f"{account}/{number % 3}")
        location = client.request("PATCH", location, data).location
        start.wait()
        answers.append(client.request("PUT", with_query(location, digest=sha256(data))))

    threads = [threading.Thread(target=push, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status for answer in answers) == [201] * 2 + [403] * 6
    assert used(file_context, account) == true_sum(file_context, account)
    assert used(file_context, account)[0] == 2000


def test_the_last_links_of_a_blob_go_at_once(file_context: Context, account: str) -> None:
    """And one comes: whichever is first, the counter is right."""
    client, data = CoreClient(file_context), make_bytes(100, account)
    put(file_context, account, 10_000)
    for turn in range(10):
        digest = sha256(data)
        for name in ("a", "b"):
            push_blob(client, f"{account}/{name}", data)
        calls = [("DELETE", f"/v2/{account}/{name}/blobs/{digest}") for name in ("a", "b")]
        calls.append(("POST", f"/v2/{account}/c/blobs/uploads/?digest={digest}"))
        start = threading.Barrier(len(calls))

        def call(method: str, path: str, start: threading.Barrier = start) -> None:
            start.wait()
            body = data if method == "POST" else b""
            CoreClient(file_context).request(method, path, body)

        threads = [threading.Thread(target=call, args=each) for each in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert used(file_context, account) == true_sum(file_context, account) == (100, 3), turn
        client.request("DELETE", f"/v2/{account}/c/blobs/{digest}")
        assert used(file_context, account) == (0, 3)


def test_a_quota_that_is_set_while_pushes_come(file_context: Context, account: str) -> None:
    """What was committed before is counted, and what comes after too."""
    stop = threading.Event()

    def push(number: int) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            push_blob(CoreClient(file_context), f"{account}/{number}", f"{number} {turn}".encode())

    threads = [threading.Thread(target=push, args=[number]) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            put(file_context, account, 10_000)
            quotas.remove(file_context.database, account, by="test")
        put(file_context, account, 10_000)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert used(file_context, account) == true_sum(file_context, account)
    assert used(file_context, account)[0] > 0


ACCOUNTS = ("drift1", "drift2", "drift3")
REPOSITORIES = [f"{account}/{name}" for account in ACCOUNTS for name in "ab"]
DATA = [make_bytes(size, "drift") for size in (10, 200, 3000)]


def push_if_may(context: Context, repository: str, data: bytes) -> None:
    CoreClient(context).request(
        "POST", f"/v2/{repository}/blobs/uploads/?digest={sha256(data)}", data
    )


def push_number(context: Context, repository: str, number: int) -> None:
    image = make_image((10,), seed=number)
    for blob in image.blobs:
        push_if_may(context, repository, blob.data)
    push_manifest(CoreClient(context), repository, image.manifest, f"tag{number}")


def mount(context: Context, repository: str, data: bytes) -> None:
    path = f"/v2/{repository}/blobs/uploads/?mount={sha256(data)}"
    CoreClient(context).request("POST", path)


def unlink(context: Context, repository: str, data: bytes) -> None:
    CoreClient(context).request("DELETE", f"/v2/{repository}/blobs/{sha256(data)}")


def delete_number(context: Context, repository: str, number: int) -> None:
    digest = make_image((10,), seed=number).manifest.digest
    CoreClient(context).request("DELETE", f"/v2/{repository}/manifests/{digest}")


def rename(context: Context, before: str, after: str) -> None:
    with suppress(Denied, Refused, NameUnknown):
        renaming.rename(context.database, before, after, by="test")


def drop(context: Context, repository: str, _: None = None) -> None:
    with suppress(NameUnknown):
        renaming.delete(context.database, repository, by="test")


def collect(context: Context, _repository: str, _: None) -> None:
    context.database.run(
        "DELETE FROM repository_blobs l WHERE NOT EXISTS (SELECT FROM manifest_references f"
        " WHERE f.repository_id = l.repository_id AND f.blob = l.digest)"
    )


def limit_to(context: Context, account: str, size: int | None) -> None:
    quotas.put(context.database, account, size, None, by="test")


def free(context: Context, account: str, _: None) -> None:
    quotas.remove(context.database, account, by="test")


IN, DATUM, NUMBER = st.sampled_from(REPOSITORIES), st.sampled_from(DATA), st.integers(0, 2)
WHOSE = st.sampled_from([*ACCOUNTS, rows.DEFAULT])
STEP = st.one_of(
    st.tuples(st.just(push_if_may), IN, DATUM),
    st.tuples(st.just(mount), IN, DATUM),
    st.tuples(st.just(unlink), IN, DATUM),
    st.tuples(st.just(push_number), IN, NUMBER),
    st.tuples(st.just(delete_number), IN, NUMBER),
    st.tuples(st.just(rename), IN, IN),
    st.tuples(st.just(drop), IN, st.none()),
    st.tuples(st.just(collect), IN, st.none()),
    st.tuples(st.just(limit_to), WHOSE, st.sampled_from([None, 3500])),
    st.tuples(st.just(free), WHOSE, st.none()),
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(STEP, max_size=25))
def test_the_counter_is_the_true_sum(quota_context: Context, steps: list[Any]) -> None:
    database = quota_context.database
    for name in REPOSITORIES:
        drop(quota_context, name)
    for account in (*ACCOUNTS, rows.DEFAULT):
        quotas.remove(database, account, by="test")
    quotas.put(database, ACCOUNTS[0], 3500, 2, by="test")
    for act, *arguments in steps:
        act(quota_context, *arguments)
        for account in ACCOUNTS:
            found = rows.find(database, account)
            told = (found.used_bytes, found.used_repositories)
            assert told == true_sum(quota_context, account), (act, arguments, account)


@pytest.fixture
def quota_context(core_settings: Settings, postgres: Postgres, tmp_path: Path) -> Iterator[Context]:
    """The functions over a database of their own, since a default is for all accounts."""
    with postgres.migrated_database() as url:
        context = build_context(
            replace(core_settings, database_url=url, storage_url=tmp_path.as_uri())
        )
        yield context
        context.database.close()


def test_a_default_is_for_accounts_without_their_own(quota_context: Context) -> None:
    client, database = CoreClient(quota_context), quota_context.database
    push_blob(client, "old/a", make_bytes(600))
    quotas.put(database, rows.DEFAULT, 1000, None, by="test")
    quotas.put(database, "rich", None, None, by="test")
    assert rows.find(database, "old") == ("old", False, 1000, None, 600, 1)
    assert refused(put_blob(client, "old/b", make_bytes(500, 1)))["used"] == 600
    # One that comes after it was set has it too,
    push_blob(client, "new/a", make_bytes(600))
    assert refused(put_blob(client, "new/a", make_bytes(500, 1)))["used"] == 600
    # and who has a quota of their own has that alone.
    push_blob(client, "rich/a", make_bytes(2000))
    assert [each.namespace for each in rows.listed(database) if each.own] == ["rich"]
    assert {"new", "old", "rich"} <= {each.namespace for each in rows.listed(database)}
    assert quotas.remove(database, rows.DEFAULT, by="test")
    assert not quotas.remove(database, rows.DEFAULT, by="test")
    push_blob(client, "new/a", make_bytes(5000))
    assert rows.find(database, "new") == ("new", False, None, None, 5600, 1)
    assert [each.namespace for each in rows.listed(database)] == ["rich"]


def test_an_account_is_warned_once(quota_context: Context) -> None:
    client, database = CoreClient(quota_context), quota_context.database
    quotas.put(database, "warned", 1000, None, by="test")

    def warnings() -> list[dict[str, Any]]:
        return [each.data for each in jobs.page(database, 0, 10, kind="quotas.warn")]

    push_blob(client, "warned/a", make_bytes(899))
    assert warnings() == []
    push_blob(client, "warned/a", b"0")
    expected = {
        "account": "warned", "repository": "warned/a", "bytes": 900, "bytes_limit": 1000,
        "repositories": 1, "repositories_limit": None,
    }  # fmt: skip
    assert warnings() == [expected]
    push_blob(client, "warned/a", b"1")
    assert warnings() == [expected]
    Worker(quota_context, [kind for kind in KINDS if kind.name == "quotas.warn"]).drain()
    assert warnings() == []
    # Once it is less it may be told again.
    client.request("DELETE", f"/v2/warned/a/blobs/{sha256(make_bytes(899))}")
    push_blob(client, "warned/a", make_bytes(899))
    assert len(warnings()) == 1


def test_a_rename_into_a_full_account_is_denied(quota_context: Context) -> None:
    client, database = CoreClient(quota_context), quota_context.database
    push_blob(client, "mover/a", make_bytes(500))
    quotas.put(database, "full", 400, None, by="test")
    with pytest.raises(Denied) as denied:
        renaming.rename(database, "mover/a", "full/a", by="test")
    assert denied.value.detail["needed"] == 500
    assert repositories.find(database, "mover/a")
    quotas.put(database, "full", 500, None, by="test")
    renaming.rename(database, "mover/a", "full/a", by="test")
    assert used(quota_context, "full") == (500, 1)


def test_names_of_accounts_are_checked(quota_context: Context) -> None:
    with pytest.raises(Refused):
        quotas.put(quota_context.database, "No/Name", 1, 1, by="test")


def test_without_a_quota_nothing_is_counted(quota_context: Context) -> None:
    client, database = CoreClient(quota_context), quota_context.database
    push_image(client, "free/a", make_image())
    assert database.run("SELECT FROM quota_usage WHERE namespace = 'free'") == []
    assert database.run("SELECT FROM quota_blobs WHERE namespace = 'free'") == []


def test_json_of_a_refusal_through_http(registry: Registry, account: str) -> None:
    """The whole of what a client's program reads."""
    command(registry.settings, "quota", "set", "--account", account, "--bytes", "1K")
    answer = HTTPClient(registry.host).request(
        "POST",
        f"/v2/{account}/a/blobs/uploads/?digest={sha256(make_bytes(2000))}",
        make_bytes(2000),
    )
    [error] = json.loads(answer.body)["errors"]
    assert error["code"] == "DENIED"
    assert error["message"] == MESSAGE.format(account, 1024, 0, 2000)


def test_webhooks_are_told_of_refusals_and_warnings(quota_context: Context) -> None:
    woken: list[bool] = []
    client = CoreClient(replace(quota_context, wake=lambda: woken.append(True)))
    database = quota_context.database
    add_webhook(database, "quota", account=add_account(database, "told"))
    quotas.put(database, "told", 1000, None, by="test")
    push_blob(client, "told/a", make_bytes(950))
    assert woken == []
    assert refused(put_blob(client, "told/a", make_bytes(51)))
    assert woken == [True]
    Worker(quota_context, [kind for kind in KINDS if kind.name == "quotas.warn"]).drain()
    refusal, warning = [event for _, event in deliveries(database)]
    assert (refusal["kind"], refusal["repository"]) == ("quota", "told/a")
    assert refusal["detail"] == {
        "refused": True, "account": "told", "quota": "bytes", "limit": 1000, "used": 950,
        "needed": 51,
    }  # fmt: skip
    assert (warning["kind"], warning["subject"]) == ("quota", "system")
    assert warning["detail"] == {
        "refused": False, "account": "told", "bytes": 950, "bytes_limit": 1000,
        "repositories": 1, "repositories_limit": None,
    }  # fmt: skip


@pytest.mark.long
def test_skopeo_tells_why(registry: Registry, account: str, tmp_path: Path) -> None:
    """A person reads the figures, and the reason, as a client shows them."""
    need("skopeo", "skopeo")
    image = make_image((100_000,), account)
    layout = write_layout(tmp_path / "layout", [image])
    words = ["skopeo", "copy", "--dest-tls-verify=false", f"oci:{layout}:latest"]

    def copied() -> str:
        done = subprocess.run(
            [*words, f"docker://{registry.host}/{account}/a:1"], capture_output=True, text=True
        )
        return "" if done.returncode == 0 else done.stderr

    command(registry.settings, "quota", "set", "--account", account, "--bytes", "50K")
    assert f"The quota of {account} is 51200 bytes: it has " in copied()
    command(registry.settings, "quota", "unset", "--account", account)
    [layer] = image.layers
    command(registry.settings, "block", "add", layer.digest, "--reason", "malware", "--public")
    assert f"{layer.digest} is blocked at this registry: malware" in copied()
    command(registry.settings, "block", "remove", layer.digest)
    assert copied() == ""
