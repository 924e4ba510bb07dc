"""Scopes: their grammar, and what their globs are about."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.identity.scopes import ACTIONS, Scope, ScopeError, allowed, matches, parse
from chalicelib.metadata import permissions
from chalicelib.metadata.database import Database
from tests.servers import Postgres

GLOBS = st.text("ab/_%.*", min_size=1, max_size=12)
NAMES = st.text("ab/_%.\\", max_size=14)


def reference(glob: str, text: str) -> bool:
    """What a glob is about, by the book."""
    return re.fullmatch(".*".join(map(re.escape, glob.split("*"))), text, re.DOTALL) is not None


@given(GLOBS, NAMES)
def test_a_star_stands_for_any_characters(glob: str, text: str) -> None:
    assert matches(glob, text) is reference(glob, text)


@given(NAMES, st.data())
def test_a_glob_is_about_what_it_was_made_from(text: str, data: st.DataObject) -> None:
    """Any parts of a text may be starred."""
    first = data.draw(st.integers(0, len(text)))
    last = data.draw(st.integers(first, len(text)))
    assert matches(f"{text[:first]}*{text[last:]}", text)


@pytest.mark.parametrize(
    ("glob", "text", "found"),
    [
        ("alice/*", "alice/app", True),
        ("alice/*", "alice/app/part", True),
        ("alice/*", "alice", False),
        ("alice/*", "alicex/app", False),
        ("alice*", "alicex/app", True),
        ("*", "anything/at/all", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("*/app", "bob/app", True),
        ("alice/app", "alice/appx", False),
        ("alice/a.p", "alice/axp", False),
    ],
)
def test_globs(glob: str, text: str, found: bool) -> None:
    assert matches(glob, text) is found


def test_a_hostile_glob_is_as_fast_as_any() -> None:
    assert not matches("a*" * 127 + "b", "a" * 100_000)


@given(st.lists(st.sampled_from(ACTIONS["repository"]), min_size=1), GLOBS)
def test_what_is_written_is_read_again(actions: list[str], glob: str) -> None:
    glob = glob.replace("%", "-").replace("b", "b+")
    scope = Scope("repository", glob, frozenset(actions))
    assert parse([str(scope)]) == (scope,)
    assert parse([f" {scope}  {scope} "]) == (scope, scope)


def test_a_star_is_every_action() -> None:
    [scope] = parse(["repository:alice/app:*"])
    assert scope.actions == {"pull", "push", "delete", "admin"}
    assert str(parse(["account:alice:*"])[0]) == "account:alice:read,admin"


def test_scopes_add_up_for_one_kind_of_thing() -> None:
    found = parse(["repository:a/*:pull repository:a/b:push", "account:*:admin"])
    assert allowed(found, "repository", "a/b") == {"pull", "push"}
    assert allowed(found, "repository", "a/c") == {"pull"}
    assert allowed(found, "repository", "b") == frozenset()
    assert allowed(found, "account", "a/b") == {"admin"}


@pytest.mark.parametrize(
    "text",
    [
        "pull",
        "repository:alice/app",
        "repository:alice/app:",
        "repository::pull",
        "repository:alice/app:pull,",
        "repository:alice/app:fetch",
        "repository:Alice/app:pull",
        "repository:alice/ünï:pull",
        "repository:alice\0:pull",
        "registry:catalog:*",
        "account:alice:pull",
        f"repository:{'a' * 256}:pull",
        "repository:a:b:pull",
    ],
)
def test_what_is_no_scope(text: str) -> None:
    with pytest.raises(ScopeError) as error:
        parse([text])
    assert len(str(error.value)) < 500


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> Database:
    return Database(postgres.new_database())


@given(st.lists(st.tuples(GLOBS, NAMES), min_size=1, max_size=50))
def test_lists_are_filtered_alike(database: Database, pairs: list[tuple[str, str]]) -> None:
    """By Postgres's LIKE."""
    patterns = permissions.patterns([glob for glob, _ in pairs])
    rows = database.run(
        "SELECT text LIKE pattern FROM"
        " unnest(CAST(:texts AS text[]), CAST(:patterns AS text[])) AS pairs (text, pattern)",
        texts=[text for _, text in pairs],
        patterns=patterns,
    )
    assert [row[0] for row in rows] == [matches(glob, text) for glob, text in pairs]
    assert permissions.patterns(None) is None
