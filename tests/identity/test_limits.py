import math
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from chalicelib.http import Headers
from chalicelib.identity.limits import (
    KNOWN_SECONDS,
    SIGN_IN_BY_ACCOUNT,
    SIGN_IN_BY_ADDRESS,
    SIGN_IN_BY_ADDRESS_AND_ACCOUNT,
    Limit,
    Limits,
    TooManyRequests,
)
from chalicelib.metadata import rates
from chalicelib.metadata.database import Database
from chalicelib.metadata.migrate import migrate
from chalicelib.settings import DAY, Rate, Settings
from tests.servers import Postgres

SECRET = b"a secret for the tests alone"
PAIR = SIGN_IN_BY_ADDRESS_AND_ACCOUNT


class Counting:
    """A database that counts what it is asked."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.asked = 0

    def run(self, sql: str, **parameters: Any) -> list[list[Any]]:
        self.asked += 1
        return self._database.run(sql, **parameters)


class Process(Limits):
    """The limits as one process has them."""

    def __init__(self, database: Database, settings: Settings, **limits: Limit) -> None:
        self.database = Counting(database)
        super().__init__(self.database, settings, SECRET, **limits)

    def sign_in(self, address: str, account: str, *, right: bool = False) -> int:
        """The status that a client gets, as an endpoint makes it."""
        try:
            self.check_sign_in(address, account)
            if right:
                self.succeeded(address, account)
            else:
                self.failed(address, account)
        except TooManyRequests as error:
            return error.status
        return 200 if right else 401

    def asks(self, work: Callable[[], object]) -> int:
        """How many queries something takes."""
        before = self.database.asked
        work()
        return self.database.asked - before


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> Iterator[Database]:
    url = postgres.new_database()
    migrate(url)
    made = Database(url)
    yield made
    made.close()


@pytest.fixture
def process(database: Database) -> Callable[..., Process]:
    """Processes on one database: `process(pull_limit=Rate(9, 60), by_account=…)`."""

    def start(
        pull_limit: Rate | None = None, anonymous_pull_limit: Rate | None = None, **limits: Limit
    ) -> Process:
        settings = Settings(pull_limit=pull_limit, anonymous_pull_limit=anonymous_pull_limit)
        return Process(database, settings, **limits)

    return start


@pytest.fixture
def account() -> str:
    """An account that nobody has signed in to."""
    return f"account-{secrets.token_hex(8)}"


@pytest.fixture
def addresses() -> Iterator[str]:
    """Addresses that nobody has used, each in a /64 of its own."""

    def new() -> Iterator[str]:
        while True:
            words = [secrets.token_hex(2) for _ in range(7)]
            yield ":".join(["2001", *words])

    return new()


@pytest.fixture
def address(addresses: Iterator[str]) -> str:
    return next(addresses)


def neighbour(address: str) -> str:
    """Another address of the same /64."""
    return ":".join([*address.split(":")[:4], "a", "b", "c", "d"])


def exhaust(process: Process, address: str, account: str) -> None:
    for _ in range(PAIR.count):
        assert process.sign_in(address, account) == 401
    assert process.sign_in(address, account) == 429


# Failures.


def test_so_many_guesses_at_one_address(
    process: Callable[..., Process], address: str, account: str
) -> None:
    limits = process()
    exhaust(limits, address, account)
    assert limits.sign_in(address, account, right=True) == 429
    assert limits.sign_in(neighbour(address), account, right=True) == 429
    assert limits.sign_in(address, account + "-other", right=True) == 200


def test_the_owner_gets_in_elsewhere(
    process: Callable[..., Process], addresses: Iterator[str], account: str
) -> None:
    limits = process()
    exhaust(limits, next(addresses), account)
    assert limits.sign_in(next(addresses), account, right=True) == 200
    assert limits.sign_in(next(addresses), account) == 401


def test_a_password_sprayed_over_accounts(
    process: Callable[..., Process], addresses: Iterator[str], account: str
) -> None:
    limits = process()
    address = next(addresses)
    assert limits.sign_in(address, "resident" + account, right=True) == 200
    for number in range(SIGN_IN_BY_ADDRESS.count):
        assert limits.sign_in(address, f"{number}{account}") == 401
    assert limits.sign_in(neighbour(address), account) == 429
    assert limits.sign_in(address, account, right=True) == 429
    assert limits.sign_in(next(addresses), account, right=True) == 200
    # Whoever has signed in here before is not shut out by a neighbour.
    assert limits.sign_in(address, "resident" + account, right=True) == 200


def test_an_account_that_is_guessed_at_from_everywhere(
    process: Callable[..., Process], addresses: Iterator[str], account: str
) -> None:
    limits = process()
    home, mobile = next(addresses), next(addresses)
    assert limits.sign_in(home, account, right=True) == 200
    for _ in range(SIGN_IN_BY_ACCOUNT.count):
        assert limits.sign_in(next(addresses), account) == 401
    assert limits.sign_in(next(addresses), account) == 429
    assert limits.sign_in(next(addresses), account, right=True) == 429
    assert limits.sign_in(mobile, account, right=True) == 429
    assert limits.sign_in(home, account, right=True) == 200
    assert limits.sign_in(home, account) == 401
    # The same in a process that remembers nothing.
    assert process().sign_in(home, account, right=True) == 200
    assert process().sign_in(mobile, account, right=True) == 429
    # A passkey opens the way for the password.
    limits.trust(mobile, account)
    assert limits.sign_in(mobile, account, right=True) == 200
    assert process().sign_in(mobile, account, right=True) == 200


def test_a_known_address_has_its_own_limit(
    process: Callable[..., Process], addresses: Iterator[str], account: str
) -> None:
    limits = process()
    home, elsewhere = next(addresses), next(addresses)
    assert limits.sign_in(home, account, right=True) == 200
    exhaust(limits, home, account)
    assert limits.sign_in(home, account, right=True) == 429
    assert process().sign_in(home, account, right=True) == 429
    assert limits.sign_in(elsewhere, account, right=True) == 200


def test_failures_of_the_owner_do_not_count_against_the_account(
    process: Callable[..., Process], addresses: Iterator[str], account: str
) -> None:
    limits = process(by_account=replace(SIGN_IN_BY_ACCOUNT, count=3))
    home = next(addresses)
    assert limits.sign_in(home, account, right=True) == 200
    for _ in range(5):
        assert limits.sign_in(home, account) == 401
    assert limits.sign_in(next(addresses), account, right=True) == 200


def test_two_processes_agree(process: Callable[..., Process], address: str, account: str) -> None:
    one, two = process(), process()
    statuses = [
        each.sign_in(address, account) for _ in range(PAIR.count // 2) for each in (one, two)
    ]
    assert statuses == [401] * PAIR.count
    assert one.sign_in(address, account) == 429
    assert two.sign_in(address, account) == 429


def test_a_process_that_has_seen_no_failure_tells_right_from_wrong_no_more(
    process: Callable[..., Process], address: str, account: str
) -> None:
    exhaust(process(), address, account)
    assert process().sign_in(address, account, right=True) == 429
    assert process().sign_in(address, account, right=False) == 429
    fresh = process()
    assert fresh.asks(lambda: fresh.check_sign_in(address, account)) == 0
    with pytest.raises(TooManyRequests):
        fresh.failed(address, account)
    with pytest.raises(TooManyRequests):
        fresh.check_sign_in(address, account)


def test_guesses_all_at_once(process: Callable[..., Process], address: str, account: str) -> None:
    limits = process()
    together = threading.Barrier(16)

    def guess() -> int:
        limits.check_sign_in(address, account)
        together.wait()
        try:
            limits.failed(address, account)
        except TooManyRequests:
            return 429
        return 401

    with ThreadPoolExecutor(16) as threads:
        statuses = sorted(each.result() for each in [threads.submit(guess) for _ in range(16)])
    assert statuses == [401] * PAIR.count + [429] * (16 - PAIR.count)
    assert limits.sign_in(address, account, right=True) == 429


def test_a_right_password_that_comes_while_others_fail(
    process: Callable[..., Process], address: str, account: str
) -> None:
    limits = process()
    assert limits.sign_in(address, account, right=True) == 200
    limits.check_sign_in(address, account)
    exhaust(limits, address, account)
    with pytest.raises(TooManyRequests):
        limits.succeeded(address, account)


def test_the_window_passes(process: Callable[..., Process], address: str, account: str) -> None:
    limits = process(by_address_and_account=Limit("short", 2, 1))
    assert [limits.sign_in(address, account) for _ in range(3)] == [401, 401, 429]
    time.sleep(1.05)
    assert [limits.sign_in(address, account) for _ in range(3)] == [401, 401, 429]
    time.sleep(1.05)
    elsewhere = "2001:db8::1"
    assert limits.asks(lambda: limits.check_sign_in(elsewhere, account)) == 1
    assert limits.asks(lambda: limits.check_sign_in(address, account + "-other")) == 1
    assert limits.sign_in(address, account, right=True) == 200
    assert limits.asks(lambda: limits.check_sign_in(address, account)) == 0


def test_refusals_do_not_lengthen_the_window(
    process: Callable[..., Process], address: str, account: str
) -> None:
    limits = process(by_address_and_account=Limit("short", 1, 1))
    begun = time.monotonic()
    assert limits.sign_in(address, account) == 401
    while limits.sign_in(address, account) == 429:
        assert time.monotonic() < begun + 5
        time.sleep(0.05)


def test_what_a_client_is_told(process: Callable[..., Process], address: str, account: str) -> None:
    limits = process()
    exhaust(limits, address, account)
    with pytest.raises(TooManyRequests) as refused:
        limits.check_sign_in(address, account)
    response = refused.value.response()
    headers = Headers(response.headers)
    assert response.status == 429
    assert b'"TOOMANYREQUESTS"' in response.body
    wait = int(headers["Retry-After"])
    assert PAIR.seconds - 60 < wait <= PAIR.seconds
    assert headers["RateLimit"] == f'"sign-in-by-address-and-account";r=0;t={wait}'
    assert headers["RateLimit-Policy"] == '"sign-in-by-address-and-account";q=10;w=900'


# What it costs.


def test_signing_in_costs_nothing_while_nobody_fails(
    process: Callable[..., Process], address: str, account: str
) -> None:
    limits = process()
    assert limits.asks(lambda: limits.check_sign_in(address, account)) == 0
    assert limits.asks(lambda: limits.succeeded(address, account)) == 2
    assert limits.asks(lambda: limits.sign_in(address, account, right=True)) == 0
    # Failures of others change nothing: not elsewhere, and for whom is known here not here either.
    limits.failed("192.0.2.1", account + "-other")
    assert limits.asks(lambda: limits.check_sign_in("192.0.2.2", account)) == 0
    limits.failed("192.0.2.1", account)
    limits.failed(address, account + "-other")
    assert limits.asks(lambda: limits.sign_in(address, account, right=True)) == 0
    # In another process one read finds that the address is known.
    other = process()
    assert other.asks(lambda: other.sign_in(address, account, right=True)) == 1
    assert other.asks(lambda: other.sign_in(address, account, right=True)) == 0


def test_a_failure_costs_a_read_and_a_write_and_then_a_read(
    process: Callable[..., Process], address: str, account: str
) -> None:
    limits = process()
    assert limits.asks(lambda: limits.failed(address, account)) == 2
    assert limits.asks(lambda: limits.check_sign_in(address, account)) == 1
    for _ in range(PAIR.count - 1):
        limits.failed(address, account)
    assert limits.asks(lambda: limits.sign_in(address, account)) == 1


def test_a_known_address_is_remembered_anew_before_it_is_forgotten(
    process: Callable[..., Process], database: Database, address: str, account: str
) -> None:
    def ends() -> float:
        rows = database.run("SELECT max(extract(epoch FROM resets_at - now())::float8) FROM rates")
        return float(rows[0][0])

    process().succeeded(address, account)
    assert KNOWN_SECONDS - 60 < ends() <= KNOWN_SECONDS
    database.run("UPDATE rates SET resets_at = resets_at - interval '2 days'")
    assert ends() < KNOWN_SECONDS - DAY
    process().succeeded(address, account)
    assert KNOWN_SECONDS - 60 < ends() <= KNOWN_SECONDS


# What is kept.


def test_keys_say_nothing(
    process: Callable[..., Process], database: Database, account: str
) -> None:
    database.run("DELETE FROM rates")
    limits = process(Rate(5, 60), Rate(5, 60))
    limits.failed("192.0.2.77", account)
    limits.succeeded("192.0.2.77", account + "2")
    limits.pull(account, "192.0.2.77")
    limits.pull("", "192.0.2.77")
    keys = {bytes(key) for (key,) in database.run("SELECT key FROM rates")}
    assert len(keys) == 6
    assert {len(key) for key in keys} == {32}
    # Under another secret all of them are others.
    other = Limits(database, Settings(), b"another secret of the tests")
    other.failed("192.0.2.77", account)
    assert len(database.run("SELECT FROM rates")) == 9


@pytest.mark.parametrize("account", ["a\0b", "\N{SNOWMAN}", "\ud800", "", "a" * 100_000])
def test_any_text_for_an_account(
    process: Callable[..., Process], address: str, account: str
) -> None:
    limits = process()
    assert limits.sign_in(address, account) == 401
    assert limits.sign_in(address, account, right=True) == 200


def test_no_two_pairs_share_a_counter(process: Callable[..., Process], account: str) -> None:
    limits = process(by_address=replace(SIGN_IN_BY_ADDRESS, count=10**6))
    exhaust(limits, "x", f"y\0{account}")
    assert limits.sign_in("x\0y", account, right=True) == 200
    exhaust(limits, "x", f'y", "{account}')
    assert limits.sign_in('x", "y', account, right=True) == 200


def test_expired_counters_are_removed(database: Database) -> None:
    database.run("DELETE FROM rates")
    rates.add(database, {b"old": 1, b"new": 60}, 1)
    time.sleep(1.05)
    assert set(rates.find(database, [b"old", b"new"])) == {b"new"}
    assert rates.remove_expired(database) == 1
    assert rates.remove_expired(database) == 0
    assert [bytes(key) for (key,) in database.run("SELECT key FROM rates")] == [b"new"]


def test_a_counter(database: Database) -> None:
    database.run("DELETE FROM rates")
    assert rates.find(database, [b"a"]) == {}
    first = rates.add(database, {b"a": 1, b"b": 60}, 2)
    assert {key: counter.count for key, counter in first.items()} == {b"a": 2, b"b": 2}
    assert 0.5 < first[b"a"].seconds <= 1
    assert 59 < first[b"b"].seconds <= 60
    second = rates.add(database, {b"b": 5, b"a": 60}, 3)
    assert {key: counter.count for key, counter in second.items()} == {b"a": 5, b"b": 5}
    assert second[b"a"].seconds <= first[b"a"].seconds
    time.sleep(1.05)
    third = rates.add(database, {b"a": 60}, 1)[b"a"]
    assert third.count == 1
    assert 59 < third.seconds <= 60


# Pulls.

FIELD = re.compile(r'"([a-z-]+)";r=(\d+);t=(\d+)')


def pulled(limits: Limits, account: str, address: str = "192.0.2.1") -> int:
    """How many pulls are left after another one; -1: none was."""
    try:
        found = FIELD.fullmatch(Headers(limits.pull(account, address))["RateLimit"])
    except TooManyRequests:
        return -1
    assert found is not None
    return int(found[2])


def test_pulls_are_not_counted_unless_they_are_limited(
    process: Callable[..., Process], address: str, account: str
) -> None:
    limits = process()
    assert limits.asks(lambda: limits.pull(account, address)) == 0
    assert limits.pull(account, address) == ()
    accounts_alone = process(pull_limit=Rate(1, 60))
    assert accounts_alone.pull("", address) == ()
    assert accounts_alone.pull(account, address) != ()
    addresses_alone = process(anonymous_pull_limit=Rate(1, 60))
    assert addresses_alone.pull(account, address) == ()
    assert addresses_alone.pull("", address) != ()


def test_pulls_of_an_account(process: Callable[..., Process], account: str) -> None:
    limits = process(pull_limit=Rate(5, 60))
    assert [pulled(limits, account) for _ in range(7)] == [4, 3, 2, 1, 0, -1, -1]
    assert pulled(limits, account, "192.0.2.2") == -1
    assert pulled(limits, account + "-other") == 4
    assert limits.asks(lambda: pulled(limits, account)) == 0


def test_pulls_of_an_address(process: Callable[..., Process], addresses: Iterator[str]) -> None:
    limits = process(anonymous_pull_limit=Rate(2, 60))
    address = next(addresses)
    assert pulled(limits, "", address) == 1
    assert pulled(limits, "", neighbour(address)) == 0
    assert pulled(limits, "", address) == -1
    assert pulled(limits, "", next(addresses)) == 1


def test_what_a_client_is_told_of_pulls(process: Callable[..., Process], account: str) -> None:
    limits = process(pull_limit=Rate(2, 21600))
    headers = Headers(limits.pull(account, ""))
    assert headers["RateLimit-Policy"] == '"pull-by-account";q=2;w=21600'
    assert headers["RateLimit"] == '"pull-by-account";r=1;t=21600'
    limits.pull(account, "")
    with pytest.raises(TooManyRequests) as refused:
        limits.pull(account, "")
    headers = Headers(refused.value.response().headers)
    assert headers["RateLimit"] == f'"pull-by-account";r=0;t={headers["Retry-After"]}'
    assert 21590 < int(headers["Retry-After"]) <= 21600


def test_pulls_far_from_the_limit_cost_few_queries(
    process: Callable[..., Process], account: str
) -> None:
    limits = process(pull_limit=Rate(10_000, 3600))
    left: list[int] = []
    asked = limits.asks(lambda: left.extend(pulled(limits, account) for _ in range(5_000)))
    assert left == list(range(9_999, 4_999, -1))
    assert asked < 40


def test_processes_never_grant_more_than_there_is_and_lose_little(
    process: Callable[..., Process], account: str
) -> None:
    total = 1000
    processes = [process(pull_limit=Rate(total, 3600)) for _ in range(4)]

    def pull_until_refused(limits: Process) -> int:
        granted = 0
        while pulled(limits, account) >= 0:
            granted += 1
        return granted

    with ThreadPoolExecutor(8) as threads:
        granted = sum(threads.map(pull_until_refused, processes * 2))
    assert granted == total


def test_a_process_that_goes_silent_costs_little(
    process: Callable[..., Process], account: str
) -> None:
    total = 1000
    silent = process(pull_limit=Rate(total, 3600))
    for _ in range(65):
        assert pulled(silent, account) >= 0
    busy = process(pull_limit=Rate(total, 3600))
    granted = 0
    while pulled(busy, account) >= 0:
        granted += 1
    assert total - 65 - math.ceil(total / 32) <= granted <= total - 65


def test_the_window_of_pulls_passes(process: Callable[..., Process], account: str) -> None:
    one, two = process(pull_limit=Rate(2, 1)), process(pull_limit=Rate(2, 1))
    assert [pulled(one, account), pulled(two, account), pulled(one, account)] == [1, 0, -1]
    time.sleep(1.05)
    assert [pulled(two, account), pulled(one, account), pulled(two, account)] == [1, 0, -1]
