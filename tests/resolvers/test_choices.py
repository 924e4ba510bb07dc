"""Who chooses to which networks images go, which networks there are to choose, and what follows."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from chalicelib.context import Context
from chalicelib.hosts import build_context
from chalicelib.identity import repositories as moving
from chalicelib.identity import users
from chalicelib.identity.keys import Keys
from chalicelib.identity.users import Refused
from chalicelib.jobs import Job, resolving
from chalicelib.jobs.kinds import KINDS
from chalicelib.jobs.worker import Worker
from chalicelib.metadata import (
    accounts,
    repositories,
    resolver_choices,
    resolver_progress,
    resolvers,
)
from chalicelib.metadata.database import Database
from chalicelib.metadata.grants import Place
from chalicelib.metadata.resolver_choices import ALL
from chalicelib.resolvers import added, choices, opening
from chalicelib.resolvers.choices import INSISTENCE
from chalicelib.resolvers.filebase import Filebase
from tests.client import CoreClient, push_image
from tests.images import make_image
from tests.resolvers.memory import Memory

ADDRESS = {"bucket": "images"}
KEYS = ("AN ACCESS KEY".replace(" ", "-"), "A-SECRET-KEY-OF-FILEBASE")


@pytest.fixture
def context(jobs_context: Context) -> Context:
    return jobs_context


@pytest.fixture
def memory(context: Context) -> Memory:
    """A network that can be chosen, and is not."""
    network = Memory()
    context.resolvers.own["memory"] = network
    return network


def user(database: Database, name: str) -> int:
    return users.create(
        database, name, f"{name}@example.org", None, by="operator", email_verified=True
    )


@pytest.fixture
def acme(context: Context) -> Place:
    """An account, whose repository acme/app there is."""
    account = user(context.database, "acme")
    push_image(CoreClient(context), "acme/app", make_image([10], seed="acme"), "v1")
    return Place(namespace=account)


def place(context: Context, name: str) -> Place:
    found = repositories.find(context.database, name)
    assert found is not None
    return Place(repository=found.id)


def holds(context: Context, name: str) -> tuple[list[str], bool]:
    """What is kept with a repository."""
    rows = context.database.run(
        "SELECT resolvers, insisted FROM repositories WHERE name = :name", name=name
    )
    return rows[0][0], rows[0][1]


def work(context: Context) -> None:
    """Do all jobs of resolving that are due."""
    for _ in range(5):
        Worker(context, [kind for kind in KINDS if kind.name.startswith("resolve")]).drain()
        context.database.run("UPDATE jobs SET due_at = now() WHERE kind NOT LIKE 'resolve.%-%'")


def fills(database: Database) -> int:
    """How many repositories are to be looked at; they are not."""
    rows = database.run("DELETE FROM jobs WHERE kind = 'resolve.fill' RETURNING 1")
    return len(rows)


def bucket(context: Context, account: int | None, name: str = "filebase", **address: str) -> str:
    made = added.add(context, account, name, {**ADDRESS, **address}, *KEYS, by="operator")
    return made.name


def test_a_repositorys_choice_holds_before_its_accounts_before_that_for_all(
    context: Context, memory: Memory, acme: Place
) -> None:
    context.resolvers.own["other"] = Memory("other")
    push_image(CoreClient(context), "zebra/app", make_image([10]), "v1")
    app = place(context, "acme/app")
    choices.put(context, ALL, ["memory"], by="operator")
    assert [holds(context, each) for each in ("acme/app", "zebra/app")] == [(["memory"], False)] * 2
    choices.put(context, acme, ["other", "memory", "other"], INSISTENCE, by="operator")
    assert holds(context, "acme/app") == (["other", "memory"], True)
    assert holds(context, "zebra/app") == (["memory"], False)
    choices.put(context, app, [], by="operator")
    assert holds(context, "acme/app") == ([], False)
    push_image(CoreClient(context), "acme/new", make_image([10]), "v1")
    assert holds(context, "acme/new") == (["other", "memory"], True)

    found = resolver_choices.holding(context.database, app.repository or 0)
    assert found == ([], False, False, "repository")
    assert choices.remove(context, app, by="operator")
    assert not choices.remove(context, app, by="operator")
    assert resolver_choices.holding(context.database, app.repository or 0) == (
        ["other", "memory"],
        True,
        False,
        "account",
    )
    assert choices.remove(context, acme, by="operator")
    assert holds(context, "acme/app") == holds(context, "acme/new") == (["memory"], False)
    assert choices.remove(context, ALL, by="operator")
    assert holds(context, "acme/app") == holds(context, "zebra/app") == ([], False)


def test_what_is_there_is_looked_at_again(context: Context, memory: Memory, acme: Place) -> None:
    database, app = context.database, place(context, "acme/app")
    repository = app.repository or 0
    choices.put(context, ALL, ["memory"], by="operator")
    assert fills(database) == 1
    choices.put(context, acme, ["memory"], by="operator")
    assert fills(database) == 0, "nothing has changed"
    choices.put(context, acme, ["memory"], INSISTENCE, by="operator")
    assert fills(database) == 1
    for public in (True, False):
        repositories.set_public(database, repository, public)
        assert fills(database) == 1
    choices.put(context, app, [], by="operator")
    assert fills(database) == 1
    repositories.set_public(database, repository, True)
    assert fills(database) == 0, "it goes nowhere"


def test_private_images_go_where_they_are_insisted_on(
    context: Context, memory: Memory, acme: Place
) -> None:
    choices.put(context, acme, ["memory"], by="operator")
    work(context)
    assert memory.kept == {}
    choices.put(context, acme, ["memory"], INSISTENCE, by="operator")
    work(context)
    assert len(memory.digests()) >= 3
    choices.put(context, acme, ["memory"], by="operator")
    work(context)
    assert memory.kept == {}
    repositories.set_public(context.database, place(context, "acme/app").repository or 0, True)
    work(context)
    assert len(memory.digests()) >= 3
    repositories.set_public(context.database, place(context, "acme/app").repository or 0, False)
    work(context)
    assert memory.kept == {}


def test_to_insist_takes_the_very_words(context: Context, memory: Memory, acme: Place) -> None:
    for words in ["yes", "Anyone can fetch these layers", f"{INSISTENCE}.", " "]:
        with pytest.raises(Refused, match=INSISTENCE) as refused:
            choices.put(context, acme, ["memory"], words, by="operator")
        assert refused.value.field == "insistence"
    assert resolver_choices.find(context.database, acme) is None


def test_nobody_insists_for_all_where_there_are_owners(
    context: Context, memory: Memory, acme: Place
) -> None:
    choices.put(context, ALL, ["memory"], INSISTENCE, by="operator")
    owned = build_context(replace(context.settings, access="accounts"))
    owned.resolvers.own["memory"] = memory
    with pytest.raises(Refused, match="Nobody can insist for all"):
        choices.put(owned, ALL, ["memory"], INSISTENCE, by="operator")
    choices.put(owned, acme, ["memory"], INSISTENCE, by="operator")
    owned.database.close()


def test_others_resolvers_cannot_be_chosen(context: Context, acme: Place) -> None:
    database = context.database
    zebra = user(database, "zebra")
    mine, theirs = bucket(context, acme.namespace), bucket(context, zebra)
    common = bucket(context, None, "common")
    assert (mine, theirs, common) == ("acme/filebase", "zebra/filebase", "common")
    app = place(context, "acme/app")
    for where in (acme, app):
        choices.put(context, where, [mine, common], by="operator")
        for name in (theirs, "ipfs", "nothing", "", "acme/", "\N{SNOWMAN}"):
            with pytest.raises(Refused, match="no resolver"):
                choices.put(context, where, [mine, name], by="operator")
    for name in (mine, theirs):
        with pytest.raises(Refused, match="no resolver"):
            choices.put(context, ALL, [name], by="operator")
    choices.put(context, ALL, [common], by="operator")


def test_a_repository_that_moves_leaves_its_choice_behind(
    context: Context, memory: Memory, acme: Place
) -> None:
    """The account that it comes to neither pays for it nor insists."""
    user(context.database, "zebra")
    mine = bucket(context, acme.namespace)
    choices.put(context, place(context, "acme/app"), [mine], INSISTENCE, by="operator")
    moving.rename(context.database, "acme/app", "acme/other", by="operator")
    assert holds(context, "acme/other") == ([mine], True)
    choices.put(context, acme, ["memory"], by="operator")
    fills(context.database)
    moving.rename(context.database, "acme/other", "zebra/app", by="operator")
    assert holds(context, "zebra/app") == ([], False)
    assert fills(context.database) >= 1
    assert resolver_choices.find(context.database, place(context, "zebra/app")) is None
    moving.rename(context.database, "zebra/app", "acme/app", by="operator")
    assert holds(context, "acme/app") == (["memory"], False)


def test_repositories_that_are_made_meanwhile_are_not_missed(
    context: Context, memory: Memory
) -> None:
    """One that is made while something is chosen has the choice, whichever commits first."""
    database = context.database
    make = "INSERT INTO repositories (name, public, created_by) VALUES (:name, true, 'test')"
    other = build_context(context.settings)
    other.resolvers.own["memory"] = memory
    with ThreadPoolExecutor(1) as pool:

        def making(transaction: Any) -> Any:
            transaction.run(make, name="acme/meanwhile")
            chosen = pool.submit(choices.put, other, ALL, ["memory"], by="operator")
            with pytest.raises(TimeoutError):
                chosen.result(timeout=0.3)
            return chosen

        database.transaction(making).result(timeout=10)
    assert holds(context, "acme/meanwhile") == (["memory"], False)
    other.database.close()


def test_a_removed_resolver_goes_once_it_has_nothing_more(
    context: Context, memory: Memory, acme: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = context.database
    monkeypatch.setattr(context.resolvers, "_open", lambda name, row: memory)
    monkeypatch.setattr(opening, "_SECONDS", 0)
    mine = bucket(context, acme.namespace)
    choices.put(context, acme, [mine], INSISTENCE, by="operator")
    work(context)
    assert len(memory.digests()) >= 3
    assert not added.remove(context, None, mine, by="operator"), "it is not there for all"
    assert not added.remove(context, acme.namespace, "acme/nothing", by="operator")
    assert added.remove(context, acme.namespace, mine, by="operator")
    found = resolvers.find(database, mine)
    assert found is not None
    assert (found.copies, found.removed_at is not None) == (3, True)
    assert holds(context, "acme/app") == ([], True)
    with pytest.raises(Refused, match="no resolver"):
        choices.put(context, acme, [mine], by="operator")
    with pytest.raises(Refused, match="already"):
        bucket(context, acme.namespace)
    work(context)
    assert memory.kept == {}
    added.tend(context)
    assert resolvers.find(database, mine) is None
    assert context.resolvers.get(mine) is None
    bucket(context, acme.namespace)


def test_what_a_forgotten_resolver_has_stays_there(
    context: Context, memory: Memory, acme: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context.resolvers, "_open", lambda name, row: memory)
    mine = bucket(context, acme.namespace)
    choices.put(context, acme, [mine], INSISTENCE, by="operator")
    work(context)
    kept = dict(memory.kept)
    assert added.remove(context, acme.namespace, mine, forget=True, by="operator")
    work(context)
    assert (memory.kept, memory.unpinned) == (kept, [])
    assert resolvers.find(context.database, mine) is None
    assert resolver_progress.totals(context.database) == []


def test_the_resolvers_of_a_deleted_account_are_emptied(
    context: Context, memory: Memory, acme: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context.resolvers, "_open", lambda name, row: memory)
    mine = bucket(context, acme.namespace)
    choices.put(context, acme, [mine], INSISTENCE, by="operator")
    work(context)
    moving.delete(context.database, "acme/app", by="operator")
    accounts.delete(context.database, acme.namespace or 0)
    found = resolvers.find(context.database, mine)
    assert found is not None
    assert found.removed_at is not None
    hasty = replace(context, settings=replace(context.settings, grace=0))
    release = Job(0, "resolve.release", "", {}, 1, 1)
    resolving.release(hasty, release)
    work(context)
    assert memory.kept == {}
    resolving.release(context, release)
    assert resolvers.find(context.database, mine) is None


def test_changed_keys_are_noticed(
    context: Context, acme: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = bucket(context, acme.namespace)
    first = context.resolvers.get(mine)
    assert isinstance(first, Filebase)
    asked = 0
    sealed = resolvers.sealed

    def counted(database: Any, name: str) -> Any:
        nonlocal asked
        asked += 1
        return sealed(database, name)

    monkeypatch.setattr(resolvers, "sealed", counted)
    assert context.resolvers.get(mine) is first
    assert asked == 0, "Postgres is not asked each time"
    assert added.set_keys(context, acme.namespace, mine, "ANOTHER", "SECRET", by="operator")
    assert not added.set_keys(context, None, mine, "ANOTHER", "SECRET", by="operator")
    assert context.resolvers.get(mine) is first, "for a few seconds"
    opened = context.resolvers._added
    opened[mine] = opened[mine]._replace(until=0)
    second = context.resolvers.get(mine)
    assert isinstance(second, Filebase)
    assert second is not first
    opened[mine] = opened[mine]._replace(until=0)
    assert context.resolvers.get(mine) is second, "its connections are kept"
    assert asked == 2


ELSEWHERE: list[dict[str, str]] = [
    {"endpoint": "http://169.254.169.254"},
    {"endpoint": "https://169.254.169.254/latest"},
    {"endpoint": "http://localhost:5001"},
    {"endpoint": "https://127.0.0.1"},
    {"endpoint": "https://[::1]"},
    {"endpoint": "http://s3.filebase.com"},
    {"endpoint": "https://s3.filebase.com:5432"},
    {"endpoint": "https://s3.filebase.com.example.org"},
    {"endpoint": "https://evilfilebase.com"},
    {"endpoint": "https://10.0.0.1#.filebase.com"},
    {"endpoint": "https://10.0.0.1\\.filebase.com"},
    {"endpoint": "https://user@s3.filebase.com"},
    {"endpoint": "https://s3.filebase.com@10.0.0.1"},
    {"endpoint": "file:///etc/passwd"},
    {"endpoint": ""},
    {"gateway": "http://127.0.0.1:8080"},
    {"gateway": "https://rebinding.example.org"},
    {"rpc": "http://127.0.0.1:5001"},
    {"rpc": "https://metadata.google.internal"},
    {"bucket": ""},
    {"bucket": "../x"},
    {"host": "https://s3.filebase.com"},
]


def test_an_address_elsewhere_is_refused(context: Context, acme: Place) -> None:
    """However the name of a server resolves, and whenever: only those that are Filebase's are
    asked, and those of the settings."""
    for address in ELSEWHERE:
        with pytest.raises(Refused) as refused:
            bucket(context, acme.namespace, **address)
        assert refused.value.field == "address", address
    assert resolvers.listed(context.database, acme.namespace, "", 10) == []


def test_what_became_refused_is_not_asked(
    context: Context, acme: Place, caplog: pytest.LogCaptureFixture
) -> None:
    origins = ("http://127.0.0.1:8333",)
    allowing = build_context(replace(context.settings, resolver_origins=origins))
    mine = bucket(allowing, acme.namespace, endpoint=origins[0], gateway=f"{origins[0]}/x", rpc="")
    with pytest.raises(Refused):
        bucket(allowing, acme.namespace, "other", endpoint="http://127.0.0.1:83331")
    assert isinstance(allowing.resolvers.get(mine), Filebase)
    allowing.database.close()
    with caplog.at_level(logging.WARNING):
        assert context.resolvers.get(mine) is None
    assert f"the resolver {mine} is not asked: its endpoint is refused" in caplog.text


def test_names_that_cannot_be(context: Context, acme: Place) -> None:
    for name in ["", "A", "a/b", "ipfs", "bucket", "none", "a b", "-a", "a" * 65, "ä", "a\n"]:
        with pytest.raises(Refused) as refused:
            bucket(context, acme.namespace, name)
        assert refused.value.field == "name", name


def test_keys_that_cannot_be(context: Context, acme: Place) -> None:
    """Without keys the registry's own would be used."""
    mine = bucket(context, acme.namespace)
    for keys in [("", "x"), ("x", ""), ("x y", "x"), ("x", "ü"), ("x" * 257, "x")]:
        with pytest.raises(Refused):
            added.add(context, acme.namespace, "x", ADDRESS, *keys, by="operator")
        with pytest.raises(Refused):
            added.set_keys(context, acme.namespace, mine, *keys, by="operator")


def test_there_are_so_many_at_most(
    context: Context, acme: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(added, "MOST", 1)
    bucket(context, acme.namespace)
    with pytest.raises(Refused, match="at most 1 resolvers"):
        bucket(context, acme.namespace, "other")
    bucket(context, None)
    with pytest.raises(Refused, match="At most 8"):
        choices.put(context, acme, [f"r{number}" for number in range(9)], by="operator")


def test_keys_are_in_no_place_but_sealed(
    context: Context, acme: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    mine = bucket(context, acme.namespace)
    resolver = context.resolvers.get(mine)
    shown = [repr(resolver), repr(vars(resolver)), repr(resolvers.find(context.database, mine))]
    added.set_keys(context, acme.namespace, mine, *reversed(KEYS), by="operator")
    added.remove(context, acme.namespace, mine, by="operator")
    tables = context.database.run(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
    )
    for (table,) in tables:
        rows = context.database.run(f"SELECT CAST(t AS text) FROM {table} t")
        shown += [text for (text,) in rows]
        shown += [bytes.fromhex(part).decode("latin-1") for (text,) in rows if table == "resolvers"
                  for part in text.split('"') if part.startswith("\\\\x")
                  for part in [part.removeprefix("\\\\x")]]  # fmt: skip
    shown.append(caplog.text)
    for key in KEYS:
        assert not [text for text in shown if key in text]


def test_keys_open_for_their_resolver_alone_and_are_sealed_anew(
    context: Context, acme: Place, caplog: pytest.LogCaptureFixture
) -> None:
    database = context.database
    mine = bucket(context, acme.namespace)
    other = bucket(context, None, "common")
    database.run(
        "UPDATE resolvers SET sealed = (SELECT sealed FROM resolvers WHERE name = :mine)"
        " WHERE name = :other",
        mine=mine,
        other=other,
    )
    assert context.resolvers.get(other) is None
    later = replace(context, keys=Keys("another secret", context.settings.secret_key))
    row = resolvers.sealed(database, mine)
    assert row is not None
    added.tend(later)
    after = resolvers.sealed(database, mine)
    assert after is not None
    assert after.keys != row.keys
    assert added.unsealed(Keys("another secret"), mine, after.keys) == KEYS
    assert f"the secret of {other} is lost" in caplog.text
