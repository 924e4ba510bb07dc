"""The status page: probes of a registry that serves, and what the page makes of them."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from chalicelib.client.probe import _compare
from chalicelib.client.remote import RemoteError, Reply
from chalicelib.context import Context
from chalicelib.hosts import build_context
from chalicelib.http import Headers
from chalicelib.jobs import GiveUp, probing
from chalicelib.jobs.expiry import uploads
from chalicelib.metadata import accounts, pool, status
from chalicelib.metadata.database import Database
from chalicelib.metadata.jobs import Job
from chalicelib.metadata.status import DAYS, Probe
from chalicelib.settings import Settings
from tests.accounts import add_user
from tests.client import CoreClient, HTTPClient
from tests.hosts.lambda_registry import LambdaRegistry
from tests.servers import Postgres, Registry, free_port, wait_until

JOB = Job(1, probing.KIND, "", {}, 1, 1)
SECRET = "a secret for the tests alone"


@pytest.fixture
def context(core_settings: Settings, postgres: Postgres, tmp_path: Path) -> Iterator[Context]:
    """The functions over an empty database; nothing serves them."""
    with ExitStack() as stack:
        url = stack.enter_context(postgres.migrated_database())
        address = core_settings.listen._replace(port=free_port())
        built = build_context(
            replace(
                core_settings, database_url=url, storage_url=tmp_path.as_uri(), listen=address,
                status_probes=True,
            )
        )  # fmt: skip
        stack.callback(built.database.close)
        yield built


@pytest.fixture
def probed(serve: Callable[..., Registry]) -> Registry:
    """A registry with accounts that tries itself."""
    return serve(
        OPENREGISTRY_ACCESS="accounts", OPENREGISTRY_STATUS_PROBES="true",
        OPENREGISTRY_SECRET_KEY=SECRET,
    )  # fmt: skip


def perform(context: Context) -> Probe:
    """Try it once, as a worker would; what was kept of that."""
    context.database.transaction(probing.perform(context, JOB))
    found = status.newest(context.database)
    assert found is not None
    return found[0]


def beside(registry: Registry, **settings: str) -> Context:
    """The functions of a registry, in this process."""
    return build_context(Settings.from_environment({**registry.settings, **settings}))


def add(database: Database, failed: str | None = None, ago: str = "0 s", ms: float = 10) -> None:
    """Have a probe have been made."""
    steps = ("sign-in", "push", "pull")
    worked = steps[: steps.index(failed)] if failed else steps
    status.add(database, dict.fromkeys(worked, ms), failed, 503, "UNAVAILABLE", "a secret host")
    database.run(
        f"UPDATE status_probes SET at = at - interval '{ago}' WHERE id ="
        " (SELECT max(id) FROM status_probes)"
    )


def test_the_worker_tries_a_registry_with_accounts(probed: Registry) -> None:
    add_user(probed.settings, "root", "correct horse battery", administrator=True)
    database = Database(probed.settings["OPENREGISTRY_DATABASE_URL"], pool=1)
    try:
        # By itself for the first time after five minutes; by hand at once.
        assert status.newest(database) is None
        due = "SELECT due_at > now() FROM schedules WHERE kind = 'status.probe'"
        assert database.run(due) == [[True]]
        database.run("INSERT INTO jobs (kind, data) VALUES ('status.probe', '{}')")
        wait_until(lambda: status.newest(database) is not None, 20, lambda: "a probe")
        client = HTTPClient(probed.host)
        page = client.request("GET", "/status")
        assert page.status == 200
        assert b"Everything works" in page.body, page.body.decode()
        told = client.request("GET", "/status.json").json
        assert told["state"] == "works"
        assert all(took > 0 for took in told["last_probe"]["milliseconds"].values())
        assert told["periods"]["24 hours"] | {"possible": 0} == {
            "probes": 1, "failed": 0, "possible": 0, "uptime": 1.0,
        }  # fmt: skip

        # It leaves nothing that a catalog shows, or that stays.
        assert database.run("SELECT count(*) FROM manifests") == [[0]]
        assert database.run("SELECT public, name FROM repositories") == [
            [False, "openregistry-status/probe"]
        ]
        # Nothing but rows that say so, and a token that nobody else can read.
        [[token]] = database.run("SELECT token FROM status_robot")
        assert b"orp_" not in bytes(token)
    finally:
        database.close()


def test_one_robot_and_one_token_for_all_probes(probed: Registry) -> None:
    context = beside(probed)
    try:
        for _ in range(2):
            assert perform(context).failed is None
        count = "SELECT (SELECT count(*) FROM accounts), (SELECT count(*) FROM access_tokens)"
        assert context.database.run(count) == [[2, 1]]
        epoch = context.database.run("SELECT epoch FROM access_epoch")
        assert perform(context).failed is None
        assert context.database.run("SELECT epoch FROM access_epoch") == epoch

        # Another where somebody has revoked it, or another key has sealed it.
        context.database.run("UPDATE access_tokens SET revoked_at = now()")
        assert perform(context).failed is None
        assert context.database.run(count) == [[2, 2]]
        # An hour later nothing is left of where the tag was.
        context.database.run("UPDATE tag_history SET moved_at = now() - interval '2 hours'")
        perform(context)
        assert context.database.run("SELECT count(*) <= 2 FROM tag_history") == [[True]]
        uploads(context, JOB)
    finally:
        context.database.close()


def test_a_catalog_does_not_show_what_is_tried(serve: Callable[..., Registry]) -> None:
    """Not even while a probe is under way, to nobody."""
    registry = serve()
    client = HTTPClient(registry.host)
    name = probing.REPOSITORY
    config = b"{}"
    digest = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    put = client.request("POST", f"/v2/{name}/blobs/uploads/?digest={digest}", config)
    assert put.status == 201
    media_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": media_type, "layers": [],
         "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest, "size": 2}}
    ).encode()  # fmt: skip
    for repository in (name, "other/app"):
        client.request("POST", f"/v2/{repository}/blobs/uploads/?digest={digest}", config)
        put = client.request(
            "PUT", f"/v2/{repository}/manifests/x", manifest, {"Content-Type": media_type}
        )
        assert put.status == 201
    assert client.request("GET", "/v2/_catalog").json == {"repositories": ["other/app"]}


def test_an_open_registry_is_tried_without_signing_in(serve: Callable[..., Registry]) -> None:
    registry = serve(OPENREGISTRY_SECRET_KEY=SECRET)
    context = beside(registry, OPENREGISTRY_STATUS_PROBES="true")
    try:
        assert perform(context).failed is None
        assert context.database.run("SELECT count(*) FROM accounts") == [[0]]
        # Its storage is gone: the push fails, and the page says which step, and not where.
        blobs = Path(registry.data_dir, "blobs")
        blobs.rename(blobs.with_name("lost"))
        blobs.write_text("no folder")
        probe = perform(context)
        assert (probe.failed, probe.status, probe.code) == ("push", 503, "UNAVAILABLE")
        page = HTTPClient(registry.host).request("GET", "/status").body.decode()
        assert "Something does not work" in page
        assert "Push failed: 503 UNAVAILABLE." in page
        assert str(blobs) not in page
    finally:
        context.database.close()


def test_functions_are_tried_through_the_gateway(lambda_registry: LambdaRegistry) -> None:
    """Where the challenge comes from another function, and storage sends the layer."""
    settings = Settings.from_environment(lambda_registry.settings)
    context = build_context(settings, exposed=True)
    try:
        assert perform(context).failed is None
        client = HTTPClient(lambda_registry.host)
        page = client.request("GET", "/status")
        assert (page.status, b"Everything works" in page.body) == (200, True)
        assert client.request("HEAD", "/status").status == 200
        assert client.request("GET", "/status.json").json["state"] == "works"
        style = client.request("GET", "/status.css")
        assert (style.status, style.headers["Content-Type"]) == (200, "text/css; charset=utf-8")
    finally:
        context.database.close()


def test_a_registry_that_does_not_answer(context: Context) -> None:
    probe = perform(context)
    assert (probe.failed, probe.status, probe.sign_in) == ("sign-in", 0, None)
    assert "cannot be reached" in probe.error
    page = CoreClient(context).request("GET", "/status").body.decode()
    assert "Sign in failed: no answer." in page
    assert "cannot be reached" not in page


def test_what_is_not_to_be_tried_is_not(context: Context) -> None:
    settings = context.settings
    unwanted = replace(settings, status_probes=False)
    assert not probing.wanted(unwanted)
    with pytest.raises(GiveUp):
        probing.perform(replace(context, settings=unwanted), JOB)
    assert probing.wanted(settings)
    # The name in its certificate is not known.
    assert probing.target(replace(settings, tls_certificate=Path("x"), tls_key=Path("y"))) is None
    assert probing.target(replace(settings, acme_domains=("registry.example.org",))) is None
    found = probing.target(
        replace(settings, tls_certificate=Path("x"), public_url="https://registry.example.org")
    )
    assert found is not None
    assert found.url == "https://registry.example.org"
    everywhere = replace(settings, listen=settings.listen._replace(host="0.0.0.0"))
    found = probing.target(everywhere)
    assert found is not None
    assert found.url == f"http://127.0.0.1:{settings.listen.port}"
    ipv6 = probing.target(replace(settings, listen=settings.listen._replace(host="::")))
    assert ipv6 is not None
    assert ipv6.url == f"http://[::1]:{settings.listen.port}"


def test_the_robots_name_is_somebody_elses(core_settings: Settings, context: Context) -> None:
    assert accounts.add(context.database, "user", "openregistry-status", email="a@example.org")
    theirs = build_context(replace(context.settings, access="accounts"))
    try:
        with pytest.raises(GiveUp, match="OPENREGISTRY_STATUS_PROBES=false"):
            probing.perform(theirs, JOB)
        assert theirs.database.run("SELECT count(*) FROM access_tokens") == [[0]]
    finally:
        theirs.database.close()


# The page.


def document(context: Context) -> dict[str, object]:
    answer = CoreClient(context).request("GET", "/status.json")
    assert answer.status == 200
    found: dict[str, object] = answer.json
    return found


def test_nothing_is_known_at_first(context: Context) -> None:
    found = document(context)
    assert (found["state"], found["last_probe"]) == ("unknown", None)
    page = CoreClient(context).request("GET", "/status")
    assert b"Not known" in page.body
    assert "works" not in re.findall(r'<rect class="(\w+)"', page.body.decode())


def test_a_stale_probe_says_nothing_of_now(context: Context) -> None:
    add(context.database, ago="15 minutes")
    assert document(context)["state"] == "works"
    add(context.database)
    context.database.run("UPDATE status_probes SET at = at - interval '17 minutes'")
    assert document(context)["state"] == "unknown"


def test_days_and_percentiles(context: Context) -> None:
    database = context.database
    for number in range(1, 101):
        add(database, ms=number)
    for step in ("push", "push", "pull"):
        add(database, step)
    found = document(context)
    assert found["state"] == "fails"
    steps: dict[str, dict[str, float]] = found["steps"]  # type: ignore[assignment]
    assert (steps["pull"]["tried"], steps["pull"]["failed"]) == (101, 1)
    assert (steps["push"]["tried"], steps["push"]["failed"]) == (103, 2)
    assert steps["pull"]["median_ms"] == pytest.approx(50.5)
    assert steps["pull"]["percentile_95_ms"] == pytest.approx(95.05, abs=0.1)
    days: list[dict[str, object]] = found["days"]  # type: ignore[assignment]
    assert len(days) == DAYS
    assert [day["probes"] for day in days[-2:]] == [0, 103]
    assert days[-1]["state"] == "partly"
    assert {(day["state"], day["possible"]) for day in days[:-1]} == {("unknown", 0)}
    # What was not tried is not called up.
    assert found["periods"]["90 days"]["uptime"] == pytest.approx(100 / 103)  # type: ignore[index]
    failures: list[dict[str, object]] = found["failures"]  # type: ignore[assignment]
    assert [each["failed"] for each in failures] == ["pull", "push", "push"]


def test_days_are_kept_longer_than_probes(context: Context) -> None:
    database = context.database
    add(database, "pull")
    database.run("UPDATE status_probes SET at = at - interval '4 days'")
    database.run("UPDATE status_days SET day = day - 4")
    database.run(
        "INSERT INTO status_days (day, step, tried, failed) SELECT day - 86, step, 1, 0"
        " FROM status_days"
    )
    add(database)
    assert database.run("SELECT count(*) FROM status_probes") == [[1]]
    found = document(context)
    span = found["periods"]["90 days"]  # type: ignore[index]
    assert (span["probes"], span["failed"], span["uptime"]) == (2, 1, 0.5)
    assert database.run("SELECT count(DISTINCT day) FROM status_days") == [[2]]


def test_what_was_not_made_is_counted_from_the_first_day_on(context: Context) -> None:
    database = context.database
    for ago, made, failed in ((0, 1, 0), (1, 288, 0), (2, 100, 0), (3, 288, 200), (4, 50, 0)):
        database.run(
            "INSERT INTO status_days (day, step, tried, failed) SELECT"
            f" CAST(now() AT TIME ZONE 'UTC' AS date) - {ago}, 'sign-in', {made}, {failed}"
        )
    days = [(day["state"], day["possible"]) for day in document(context)["days"]]  # type: ignore[attr-defined]
    assert days[-6:-1] == [
        ("unknown", 0), ("works", 50), ("fails", 288), ("unknown", 288), ("works", 288),
    ]  # fmt: skip
    # Today, as much of it as has gone.
    today, gone = status.today(database)
    assert 0 <= days[-1][1] - int(gone / 300) <= 1, today


def test_the_page_needs_nothing_from_elsewhere(context: Context) -> None:
    add(context.database, "push")
    client = CoreClient(context)
    page = client.request("GET", "/status")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    text = page.body.decode()
    assert re.findall(r'(?:src|href)="([^"]+)"', text) == ["/status.css", "/status.json"]
    # The policy forbids both.
    assert "style=" not in text
    assert "<script" not in text
    style = client.request("GET", "/status.css")
    assert style.headers["Content-Type"] == "text/css; charset=utf-8"
    head = client.request("HEAD", "/status")
    assert (head.status, head.body) == (200, b"")


def test_without_a_database_the_page_says_so(
    core_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_PATIENCE", 0.1)
    settings = replace(
        core_settings,
        database_url=f"postgresql://nobody@127.0.0.1:{free_port()}/none",
        storage_url=tmp_path.as_uri(),
    )
    context = build_context(settings)
    client = CoreClient(context)
    page = client.request("GET", "/status")
    assert page.status == 503
    assert b"its database does not answer" in page.body
    assert page.headers["Retry-After"] == "60"
    told = client.request("GET", "/status.json")
    assert (told.status, told.json["state"]) == (503, "fails")


def test_other_bytes_than_were_pushed_are_a_failure() -> None:
    reply = Reply("http://localhost/v2/x/blobs/y", 200, Headers(), b"other")
    with pytest.raises(RemoteError, match="The bytes of the layer are not those"):
        _compare(reply, b"pushed", "the layer")
