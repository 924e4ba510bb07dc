"""Retention: each rule, what it leaves alone, and what is pushed while it runs."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.identity import organisations, users
from chalicelib.identity.users import Refused
from chalicelib.jobs import retention
from chalicelib.jobs.kinds import KINDS
from chalicelib.jobs.worker import Worker
from chalicelib.metadata import audit, jobs, repositories, tags
from chalicelib.metadata import retention as rows
from chalicelib.metadata.database import Database, Transaction
from chalicelib.metadata.grants import Place
from chalicelib.metadata.immutable_tags import Rule
from chalicelib.metadata.retention import Policy, Tag
from chalicelib.registry import immutable_tags
from tests.client import CoreClient, push_image, push_manifest
from tests.images import Image, make_image, make_index

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def tag(name: str, age: float, pulled: float | None = None) -> Tag:
    """A tag that was pushed, and perhaps pulled, so many seconds ago."""
    at = None if pulled is None else NOW - timedelta(seconds=pulled)
    return Tag(name, b"", NOW - timedelta(seconds=age), at)


def kept(policy: Policy, found: list[Tag], *rules: Rule) -> list[str]:
    return [each.tag.name for each in retention.judge(policy, rules, found, NOW) if each.kept]


FOUND = [tag("latest", 10), tag("v2", 20, 5), tag("dev", 30), tag("v1", 40, 35)]


@pytest.mark.parametrize(
    ("policy", "stay"),
    [
        (Policy(keep_last=1), ["latest"]),
        (Policy(keep_last=9), ["latest", "v2", "dev", "v1"]),
        (Policy(keep_newer=25), ["latest", "v2"]),
        (Policy(keep_matching=["v*"]), ["v2", "v1"]),
        (Policy(keep_matching=["v1", "dev"]), ["dev", "v1"]),
        (Policy(keep_pulled=6), ["v2"]),
        (Policy(keep_pulled=60), ["v2", "v1"]),
        (Policy(keep_last=1, keep_pulled=60), ["latest", "v2", "v1"]),
        (Policy(keep_newer=1), []),
        (Policy(), ["latest", "v2", "dev", "v1"]),
        (Policy(untagged_after=7), ["latest", "v2", "dev", "v1"]),
    ],
)
def test_rules(policy: Policy, stay: list[str]) -> None:
    assert kept(policy, FOUND) == stay


def test_immutable_tags_stay() -> None:
    rule = Rule(7, "*", ["latest", "dev"], "", None)
    assert kept(Policy(keep_newer=1), FOUND, rule) == ["v2", "v1"]


def test_why() -> None:
    policy = Policy(2, 15, ["l*"], 60)
    verdicts = retention.judge(policy, [Rule(7, "v1", [], "", None)], FOUND, NOW)
    assert [each.why for each in verdicts] == [
        ["among the last 2", "pushed since 2025-12-31 23:59:45", "matches l*"],
        ["among the last 2", "pulled since 2025-12-31 23:59:00"],
        ["no rule keeps it"],
        ["pulled since 2025-12-31 23:59:00", "immutable by rule 7 (v1)"],
    ]
    assert retention.judge(Policy(), [], FOUND[:1], NOW)[0].why == [
        "no rule of the policy is about tags"
    ]


class Home:
    """A repository."""

    def __init__(self, context: Context, name: str = "acme/app") -> None:
        self.context, self.name = context, name
        self.database: Database = context.database
        self.client = CoreClient(context)
        self.images: dict[str, Image] = {}

    def push(self, *names: str) -> None:
        """Push an image for each tag, the later the newer."""
        for name in names:
            image = self.images[name] = make_image((10,), f"{self.name}:{name}")
            push_image(self.client, self.name, image)
            assert push_manifest(self.client, self.name, image.manifest, name).status == 201

    @property
    def id(self) -> int:
        found = repositories.find(self.database, self.name)
        assert found is not None
        return found.id

    @property
    def place(self) -> Place:
        return Place(repository=self.id)

    @property
    def tags(self) -> list[str]:
        return tags.page(self.database, self.name, "", 1000)

    def has(self, name: str) -> bool:
        """Whether the manifest is there that was pushed with that tag."""
        path = f"/v2/{self.name}/manifests/{self.images[name].manifest.digest}"
        return self.client.request("GET", path).status == 200

    def set(self, policy: Policy, place: Place | None = None) -> None:
        retention.set_policy(self.database, place or self.place, None, policy, by="operator")

    def run(self) -> tuple[list[str], list[str]]:
        """The tags that went, and the manifests."""
        done = list(retention.batches(self.context, self.id))
        names = [each.tag.name for report in done for each in report.tags]
        return names, [digests.unpack(each) for report in done for each in report.manifests]

    def age(self, seconds: float, what: str = "true") -> None:
        """Let tags have been pushed, and manifests untagged, so long ago."""
        ago = f"interval '{seconds} seconds'"
        self.database.run(f"UPDATE tags SET pushed_at = pushed_at - {ago} WHERE {what}")

    def age_untagged(self, seconds: float) -> None:
        ago = f"interval '{seconds} seconds'"
        self.database.run(f"UPDATE manifests SET unreferenced_since = unreferenced_since - {ago}")


@pytest.fixture
def home(jobs_context: Context) -> Home:
    return Home(jobs_context)


def test_tags_go_and_their_manifests_after_the_grace(home: Home) -> None:
    home.push("v1", "v2", "v3")
    home.set(Policy(keep_last=1))
    assert home.run() == (["v2", "v1"], [])
    assert home.tags == ["v3"]
    assert home.has("v1")
    home.age_untagged(home.context.settings.grace + 1)
    gone = sorted(home.images[name].manifest.digest for name in ("v1", "v2"))
    assert home.run() == ([], gone)
    assert [home.has(name) for name in ("v1", "v2", "v3")] == [False, False, True]
    assert home.run() == ([], [])
    moves = home.database.run("SELECT name, subject FROM tag_history WHERE digest IS NULL")
    assert moves == [["v1", "system"], ["v2", "system"]]


def test_what_was_pushed_again_is_new(home: Home) -> None:
    """By the same bytes too: they are the last that were pushed."""
    home.push("v1", "v2")
    home.push("v1")
    home.set(Policy(keep_last=1))
    assert home.run()[0] == ["v2"]


def test_the_time_of_a_push(home: Home) -> None:
    home.push("old", "new")
    home.age(100, "name = 'old'")
    home.set(Policy(keep_newer=50))
    assert home.run()[0] == ["old"]


def test_what_was_pulled_stays(home: Home) -> None:
    home.push("v1", "v2", "v3")
    home.database.run(
        "INSERT INTO tag_pulls (repository_id, name, pulls, pulled_at)"
        " VALUES (:id, 'v1', 1, now()), (:id, 'v2', 1, now() - interval '2 hours')",
        id=home.id,
    )
    home.set(Policy(keep_pulled=3600))
    assert home.run()[0] == ["v3", "v2"]
    home.age_untagged(home.context.settings.grace + 1)
    home.database.run(
        "INSERT INTO manifest_pulls (repository_id, digest, pulls, pulled_at)"
        " VALUES (:id, :digest, 1, now())",
        id=home.id,
        digest=digests.pack(home.images["v2"].manifest.digest),
    )
    assert home.run()[1] == [home.images["v3"].manifest.digest]


def test_untagged_manifests_may_stay(home: Home) -> None:
    home.push("v1", "v2")
    home.set(Policy(keep_last=1, untagged_after=None))
    home.run()
    home.age_untagged(home.context.settings.grace * 100)
    assert home.run() == ([], [])
    home.set(Policy(keep_last=1, untagged_after=home.context.settings.grace * 200))
    assert home.run() == ([], [])
    home.age_untagged(home.context.settings.grace * 200)
    assert home.run() == ([], [home.images["v1"].manifest.digest])


def test_what_an_index_names_goes_after_it(home: Home) -> None:
    images = [make_image((10,), f"of an index {number}", str(number)) for number in range(2)]
    for image in images:
        push_image(home.client, home.name, image)
    index = make_index(images)
    push_manifest(home.client, home.name, index, "multi")
    home.push("v1")
    home.set(Policy(keep_matching=["v1"]))
    assert home.run() == (["multi"], [])
    home.age_untagged(home.context.settings.grace + 1)
    assert home.run() == ([], [index.digest])
    home.age_untagged(home.context.settings.grace + 1)
    assert home.run() == ([], sorted(image.manifest.digest for image in images))


def test_immutable_tags_are_left_alone(home: Home) -> None:
    home.push("v1", "v2", "latest")
    immutable_tags.create(home.database, home.place, None, "v*", ["v2"], by="operator")
    home.set(Policy(keep_last=1))
    assert home.run()[0] == ["v2"]
    assert home.tags == ["latest", "v1"]


def test_without_a_policy_nothing_goes(home: Home) -> None:
    home.push("v1")
    assert home.run() == ([], [])
    assert retention.plan(home.context, home.id) is None
    home.set(Policy(keep_matching=["none"]))
    assert retention.remove_policy(home.database, home.place, None, by="operator")
    assert not retention.remove_policy(home.database, home.place, None, by="operator")
    assert home.run() == ([], [])
    assert home.tags == ["v1"]


def test_a_repositorys_policy_replaces_its_accounts(home: Home) -> None:
    owner = users.create(
        home.database, "alice", "alice@example.org", "a password", by="operator",
        email_verified=True,
    )  # fmt: skip
    acme = organisations.create(home.database, "acme", owner, by="operator")
    other, third = Home(home.context, "acme/b/c"), Home(home.context, "bcme/app")
    for each in (home, other, third):
        each.push("v1", "v2")
    home.set(Policy(keep_last=1), Place(namespace=acme))
    home.set(Policy(keep_last=2))
    assert [name for _, name in rows.repositories(home.database)] == ["acme/app", "acme/b/c"]
    assert [each.run()[0] for each in (home, other, third)] == [[], ["v1"], []]
    retention.remove_policy(home.database, home.place, None, by="operator")
    assert home.run()[0] == ["v1"]
    assert rows.find(home.database, Place(namespace=acme)) == Policy(1, None, [], None, 0)


def test_a_plan_changes_nothing_and_is_what_goes(home: Home) -> None:
    home.push("v1", "v2", "v3")
    home.set(Policy(keep_last=2))
    plan = retention.plan(home.context, home.id)
    assert plan is not None
    assert [(each.tag.name, each.kept) for each in plan.tags] == [
        ("v3", True), ("v2", True), ("v1", False),
    ]  # fmt: skip
    assert plan.manifests == []
    assert home.tags == ["v1", "v2", "v3"]
    assert home.run()[0] == ["v1"]
    home.age_untagged(home.context.settings.grace + 1)
    plan = retention.plan(home.context, home.id)
    assert plan is not None
    assert [digests.unpack(each) for each in plan.manifests] == home.run()[1]


def test_what_goes_is_noted(home: Home) -> None:
    home.push("v1", "v2")
    home.set(Policy(keep_last=1))
    home.run()
    home.age_untagged(home.context.settings.grace + 1)
    home.run()
    digest = home.images["v1"].manifest.digest
    events = [
        (each.event, each.subject, each.detail)
        for each in reversed(audit.page(home.database, 10))
        if each.event != "repository.create"
    ]
    assert events == [
        (
            "retention.set",
            "operator",
            {
                "keep_last": 1, "keep_newer": None, "keep_matching": [], "keep_pulled": None,
                "untagged_after": 0,
            },
        ),
        ("retention.tags", "system", {"tags": {"v1": digest}}),
        ("manifest.delete", "system", {"digest": digest, "reason": retention._REASON}),
    ]  # fmt: skip


def test_batches(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    home.push(*(f"v{number}" for number in range(6)))
    home.set(Policy(keep_last=1))
    assert home.run()[0] == ["v4", "v3", "v2", "v1", "v0"]
    home.age_untagged(home.context.settings.grace + 1)
    assert len(home.run()[1]) == 5


# While it runs.


def during(home: Home, monkeypatch: pytest.MonkeyPatch, act: Any) -> tuple[list[str], list[str]]:
    """Run, and do something else once tags are judged and before they are removed."""
    remove = rows.remove_tags
    once = iter([act])

    def slowly(*arguments: Any) -> Any:
        for each in once:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(each).result(10)
        return remove(*arguments)

    monkeypatch.setattr(rows, "remove_tags", slowly)
    return home.run()


@pytest.mark.parametrize("same", [True, False])
def test_a_push_of_a_tag_meanwhile_wins(
    home: Home, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    home.push("v1", "v2", "v3")
    home.age(100)
    home.set(Policy(keep_last=1, keep_newer=50))
    image = home.images["v1" if same else "v2"]

    def push() -> None:
        assert push_manifest(home.client, home.name, image.manifest, "v1").status == 201

    assert during(home, monkeypatch, push)[0] == ["v2"]
    assert home.tags == ["v1", "v3"]


def test_a_push_that_holds_a_tag_is_waited_for(home: Home) -> None:
    home.push("v1", "v2")
    home.age(100)
    home.set(Policy(keep_newer=50))
    digest = digests.pack(home.images["v1"].manifest.digest)
    begun, ended = threading.Event(), threading.Event()

    def push(transaction: Transaction) -> None:
        tags.move(transaction, home.id, "v1", digest, "account:1")
        begun.set()
        assert not ended.wait(0.3), "it has to wait"

    with ThreadPoolExecutor(2) as pool:
        pushing = pool.submit(home.database.transaction, push)
        assert begun.wait(5)
        running = pool.submit(home.run)
        running.add_done_callback(lambda _: ended.set())
        pushing.result()
        assert running.result()[0] == ["v2"]
    assert home.tags == ["v1"]


def test_a_rule_that_makes_a_tag_immutable_meanwhile_wins(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.push("v1", "v2", "v3")
    home.set(Policy(keep_last=1))

    def keep() -> None:
        immutable_tags.create(home.database, home.place, None, "v1", [], by="operator")

    assert during(home, monkeypatch, keep)[0] == ["v2"]
    assert home.tags == ["v1", "v3"]


def test_a_policy_that_is_taken_away_is_waited_for(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once that is answered, nothing goes by it any more."""
    monkeypatch.setattr(retention, "BATCH", 1)
    home.push("v1", "v2", "v3")
    home.set(Policy(keep_last=1))
    removing: list[Any] = []
    pool = ThreadPoolExecutor(1)

    def unset() -> None:
        place = home.place
        removing.append(
            pool.submit(retention.remove_policy, home.database, place, None, by="operator")
        )
        with pytest.raises(TimeoutError):
            removing[0].result(0.3)

    with pool:
        gone, _ = during(home, monkeypatch, unset)
        assert removing[0].result(10)
    assert gone in (["v2"], ["v2", "v1"])
    left = home.tags
    assert home.run() == ([], [])
    assert home.tags == left


# As jobs.


def work(context: Context) -> int:
    kinds = [kind for kind in KINDS if kind.name.startswith("retention")]
    return Worker(context, kinds).drain()


def test_jobs(home: Home) -> None:
    other, third = Home(home.context, "acme/other"), Home(home.context, "acme/third")
    for each in (home, other, third):
        each.push("v1", "v2")
    for each in (home, other):
        each.set(Policy(keep_last=1))
    assert work(home.context) == 3
    assert [each.tags for each in (home, other, third)] == [["v2"], ["v2"], ["v1", "v2"]]
    assert work(home.context) == 0, "not again before its time"


def test_one_job_of_a_repository_at_a_time(home: Home) -> None:
    home.push("v1")
    home.set(Policy(keep_last=1))
    for _ in range(2):
        rows.schedule(home.database, retention.KIND)
    [job] = jobs.page(home.database, 0, 10)
    assert (job.subject, job.data) == (f"retention:{home.id}", {"repository": home.id})
    home.database.run("UPDATE jobs SET dead_at = now()")
    for _ in range(2):
        rows.schedule(home.database, retention.KIND)
    assert [entry.state for entry in jobs.page(home.database, 0, 10)] == ["waiting"]


def test_what_takes_long_goes_on_in_another_job(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 1)
    monkeypatch.setattr(retention, "_JOB_SECONDS", -1)
    home.push("v1", "v2", "v3")
    home.set(Policy(keep_last=1))
    rows.schedule(home.database, retention.KIND)
    [job] = jobs.take(home.database, [retention.KIND], 1, 30)
    later = retention.perform(home.context, job)
    assert later is not None
    assert home.tags == ["v1", "v3"]
    home.database.transaction(later)
    assert [entry.data for entry in jobs.page(home.database, 0, 10)] == [job.data] * 2


@pytest.mark.parametrize(
    "policy",
    [
        Policy(keep_last=0),
        Policy(keep_newer=0),
        Policy(keep_pulled=-1),
        Policy(untagged_after=-1),
        Policy(keep_matching=["a b"]),
        Policy(keep_matching=["a"] * 51),
        Policy(keep_newer=retention.LONGEST + 1),
    ],
)
def test_what_is_no_policy(jobs_context: Context, policy: Policy) -> None:
    with pytest.raises(Refused):
        retention.set_policy(
            jobs_context.database, Place(repository=1), None, policy, by="operator"
        )
