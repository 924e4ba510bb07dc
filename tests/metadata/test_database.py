"""Statements, transactions and the pool, on a real Postgres that is restarted, stopped and killed.

TLS and poolers are in test_connection.py.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from chalicelib.http import Unavailable
from chalicelib.metadata.database import (
    Database,
    DatabaseError,
    ForeignKeyViolation,
    Transaction,
    UniqueViolation,
)
from tests.metadata.relay import Cut, Relay
from tests.servers import Postgres, free_port

Connect = Callable[..., Database]

INSERT = "INSERT INTO t VALUES (:id, 'x')"
"""Prepared at its first use: an answer lost at the second is that of the change itself."""


def backend(runner: Database | Transaction) -> int:
    """The process that serves this connection."""
    return int(runner.run("SELECT pg_backend_pid()")[0][0])


def values(database: Database) -> list[str]:
    return [value for (value,) in database.run("SELECT value FROM t ORDER BY id")]


class TestStatements:
    @pytest.mark.parametrize("prepare", [True, False])
    def test_values_come_back_as_they_went(self, connect: Connect, prepare: bool) -> None:
        database = connect(prepare=prepare)
        every_byte = bytes(range(256))
        sent: dict[str, Any] = {
            "bytea": every_byte,
            "text": "naïve 'quoted' \\ :name $1 漢",
            "bigint": -(2**63),
            "boolean": False,
            "bytea[]": [every_byte, b"", b"\\x00"],
            "text[]": ["a", 'b"c', ""],
            "boolean[]": [True, False],
            "jsonb": {"a": [1, None, "ü"]},
            "uuid": UUID("00112233-4455-6677-8899-aabbccddeeff"),
            "timestamptz": datetime(2024, 2, 29, 23, 59, 59, 123456, UTC),
        }
        for kind, value in sent.items():
            sql = f"SELECT CAST(:value AS {kind}), CAST(NULL AS {kind}), :value = :value::{kind}"
            for _ in range(2):
                assert database.run(sql, value=value) == [[value, None, True]], kind

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_bytes_of_any_kind(self, connect: Connect, kind: type) -> None:
        assert connect().run("SELECT CAST(:b AS bytea)", b=kind(b"\0\xff")) == [[b"\0\xff"]]

    @pytest.mark.parametrize("prepare", [True, False])
    def test_large_values(self, connect: Connect, prepare: bool) -> None:
        payload = os.urandom(5 << 20)
        rows = connect(prepare=prepare).run("SELECT CAST(:b AS bytea), :t", b=payload, t="x" * 1000)
        assert rows == [[payload, "x" * 1000]]

    def test_no_rows_and_rows_without_columns(self, database: Database) -> None:
        assert database.run("SELECT value FROM t") == []
        assert database.run("INSERT INTO t VALUES (1, 'a')") == []
        assert database.run("SELECT FROM t") == [[]]

    def test_enumerations_and_domains_are_text(self, database: Database) -> None:
        database.run("CREATE TYPE state AS ENUM ('open', 'committed')")
        assert database.run("SELECT CAST(:state AS state)", state="open") == [["open"]]

    def test_statements_are_prepared_once(self, connect: Connect) -> None:
        database = connect(pool=1)
        for number in range(3):
            database.run("SELECT :number + 1", number=number)
        count = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT $1%'"
        assert database.run(count) == [[1]]

    def test_prepared_statements_are_bounded(self, connect: Connect) -> None:
        database = connect(pool=1)
        for number in range(300):
            assert database.run(f"SELECT :a + {number}", a=1) == [[number + 1]]
        assert database.run("SELECT count(*) FROM pg_prepared_statements") == [[256]]

    def test_nothing_is_prepared_where_that_is_off(self, connect: Connect) -> None:
        database = connect(pool=1, prepare=False)
        database.run("SELECT :number + 1", number=1)
        database.transaction(lambda transaction: transaction.run("SELECT :number", number=1))
        assert database.run("SELECT count(*) FROM pg_prepared_statements") == [[0]]

    @pytest.mark.parametrize("prepare", [True, False])
    def test_an_error_has_its_fields_and_leaves_the_connection(
        self, connect: Connect, prepare: bool
    ) -> None:
        database = connect(pool=1, prepare=prepare)
        process = backend(database)
        database.run("CREATE TABLE t (id integer CONSTRAINT only_one UNIQUE)")
        database.run("INSERT INTO t VALUES (:id)", id=1)
        with pytest.raises(UniqueViolation) as caught:
            database.run("INSERT INTO t VALUES (:id)", id=1)
        assert caught.value.sqlstate == "23505"
        assert "already exists" in str(caught.value)
        for sql, sqlstate in (("SELEC", "42601"), ("SELECT 1/0", "22012")):
            with pytest.raises(DatabaseError) as refused:
                database.run(sql)
            assert refused.value.sqlstate == sqlstate
        assert backend(database) == process

    def test_a_missing_parameter_sends_nothing(self, connect: Connect) -> None:
        database = connect(pool=1)
        process = backend(database)
        with pytest.raises(KeyError):
            database.run("SELECT :a, :b", a=1)
        assert backend(database) == process

    def test_a_changed_table_is_noticed(self, connect: Connect) -> None:
        database = connect(pool=1)
        database.run("CREATE TABLE t (id integer)")
        database.run("INSERT INTO t VALUES (1)")
        assert database.run("SELECT * FROM t") == [[1]]
        database.run("ALTER TABLE t ADD COLUMN name text DEFAULT 'new'")
        assert database.run("SELECT * FROM t") == [[1, "new"]]
        database.run("ALTER TABLE t ADD COLUMN other text")
        rows = database.transaction(lambda transaction: transaction.run("SELECT * FROM t"))
        assert rows == [[1, "new", None]]

    @pytest.mark.parametrize("prepare", [True, False])
    def test_durability_is_on(self, connect: Connect, prepare: bool) -> None:
        def show(runner: Database | Transaction) -> list[object]:
            names = ("fsync", "synchronous_commit", "full_page_writes")
            return [runner.run(f"SHOW {name}")[0][0] for name in names]

        database = connect(prepare=prepare)
        assert show(database) == ["on", "on", "on"]
        assert database.transaction(show) == ["on", "on", "on"]


class TestTransactions:
    @pytest.mark.parametrize("prepare", [True, False])
    def test_commit(self, connect: Connect, database: Database, prepare: bool) -> None:
        def work(transaction: Transaction) -> int:
            for number in (1, 2):
                transaction.run("INSERT INTO t VALUES (:id, 'x')", id=number)
            [[inside]] = transaction.run("SELECT count(*) FROM t")
            assert values(database) == []
            return int(inside)

        assert connect(prepare=prepare).transaction(work) == 2
        assert values(database) == ["x", "x"]

    def test_an_exception_undoes_it(self, connect: Connect, database: Database) -> None:
        one = connect(pool=1)

        def work(transaction: Transaction) -> None:
            transaction.run("INSERT INTO t VALUES (1, 'x')")
            raise LookupError

        process = backend(one)
        with pytest.raises(LookupError):
            one.transaction(work)
        assert values(one) == []
        assert backend(one) == process

    def test_an_error_undoes_it_even_where_it_is_caught(self, database: Database) -> None:
        def work(transaction: Transaction) -> None:
            transaction.run("INSERT INTO t VALUES (1, 'x')")
            with pytest.raises(UniqueViolation):
                transaction.run("INSERT INTO t VALUES (1, 'y')")

        with pytest.raises(UniqueViolation):
            database.transaction(work)
        assert values(database) == []

    def test_an_error_of_the_first_statement(self, connect: Connect, database: Database) -> None:
        one = connect(pool=1)
        process = backend(one)
        with pytest.raises(DatabaseError, match="42601"):
            one.transaction(lambda transaction: transaction.run("SELEC"))
        assert backend(one) == process

    def test_an_error_at_commit(self, database: Database) -> None:
        database.run("CREATE TABLE r (id integer REFERENCES t DEFERRABLE INITIALLY DEFERRED)")
        with pytest.raises(ForeignKeyViolation):
            database.transaction(lambda transaction: transaction.run("INSERT INTO r VALUES (7)"))
        assert database.run("SELECT FROM r") == []

    def test_without_statements_nothing_is_begun(self, connect: Connect, server: Postgres) -> None:
        database = connect(pool=1)
        process = backend(database)
        last = f"SELECT query FROM pg_stat_activity WHERE pid = {process}"
        assert database.transaction(lambda _: 5) == 5
        [[query]] = server.query(last)
        assert query == "SELECT pg_backend_pid()"

    def test_no_transaction_is_left_open(self, connect: Connect, server: Postgres) -> None:
        database = connect(pool=1)
        process = backend(database)
        database.run("BEGIN")
        [[state]] = server.query(f"SELECT state FROM pg_stat_activity WHERE pid = {process}")
        assert state == "idle"
        assert backend(database) == process

    def test_bytes_travel_as_bytes(self, connect: Connect, url: str) -> None:
        port, name = url.rsplit(":", 1)[1].split("/")
        with closing(Relay(int(port))) as relay:
            database = connect(f"postgresql://postgres@127.0.0.1:{relay.port}/{name}")
            database.run("SELECT CAST(:b AS bytea)", b=b"")
            relay.carried = 0
            database.run("SELECT CAST(:b AS bytea)", b=bytes(1 << 20))
            assert 2 << 20 < relay.carried < (2 << 20) + 1000

    def test_begin_costs_no_round_trip(self, connect: Connect, url: str) -> None:
        port, name = url.rsplit(":", 1)[1].split("/")
        with closing(Relay(int(port))) as relay:
            database = connect(f"postgresql://postgres@127.0.0.1:{relay.port}/{name}")
            backend(database)
            relay.sent = 0
            database.transaction(backend)
            assert relay.sent == 2  # BEGIN with the statement, COMMIT

    @pytest.mark.parametrize(
        ("sqlstate", "attempts", "error"),
        [
            ("40001", 5, Unavailable),
            ("40P01", 5, Unavailable),
            ("55P03", 5, Unavailable),
            ("23503", 3, ForeignKeyViolation),
            ("23505", 1, UniqueViolation),
            ("53100", 1, Unavailable),
            ("22012", 1, DatabaseError),
        ],
    )
    def test_repeated_attempts(
        self, database: Database, sqlstate: str, attempts: int, error: type[Exception]
    ) -> None:
        calls = []

        def work(transaction: Transaction, failures: int) -> str:
            calls.append(backend(transaction))
            transaction.run("INSERT INTO t VALUES (:id, 'x')", id=len(calls))
            if len(calls) <= failures:
                transaction.run(f"DO $$ BEGIN RAISE 'no' USING ERRCODE = '{sqlstate}'; END $$")
            return "done"

        with pytest.raises(error):
            database.transaction(lambda transaction: work(transaction, 100))
        assert len(calls) == attempts
        assert values(database) == []
        calls.clear()
        if attempts > 1:
            assert database.transaction(lambda transaction: work(transaction, 2)) == "done"
            assert len(calls) == 3
            assert values(database) == ["x"]

    def test_a_deadlock_is_resolved(self, database: Database) -> None:
        database.run("INSERT INTO t VALUES (1, ''), (2, '')")
        both_hold_one = threading.Barrier(2)
        calls = []

        def swap(first: int, second: int) -> None:
            def work(transaction: Transaction) -> None:
                update = "UPDATE t SET value = value || 'x' WHERE id = :id"
                transaction.run(update, id=first)
                calls.append(first)
                if len(calls) <= 2:
                    both_hold_one.wait(10)
                transaction.run(update, id=second)

            database.transaction(work)

        with ThreadPoolExecutor() as threads:
            for done in [threads.submit(swap, 1, 2), threads.submit(swap, 2, 1)]:
                done.result(20)
        assert values(database) == ["xx", "xx"]
        assert len(calls) > 2

    def test_a_reference_lost_meanwhile_is_looked_up_again(self, database: Database) -> None:
        database.run("CREATE TABLE r (id integer REFERENCES t)")
        database.run("INSERT INTO t VALUES (1, 'x')")
        calls = []

        def work(transaction: Transaction) -> bool:
            there = transaction.run("SELECT FROM t WHERE id = 1") != []
            calls.append(there)
            if len(calls) == 1:
                database.run("DELETE FROM t")
            if there:
                transaction.run("INSERT INTO r VALUES (1)")
            return there

        assert database.transaction(work) is False
        assert calls == [True, False]


class TestPool:
    def test_nothing_is_opened_before_it_is_needed(self, connect: Connect) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(0.2)
            connect(f"postgresql://127.0.0.1:{listener.getsockname()[1]}/x")
            with pytest.raises(TimeoutError):
                listener.accept()

    def test_it_is_bounded(self, connect: Connect) -> None:
        database = connect(pool=3)

        def use(_: int) -> int:
            return int(database.run("SELECT pg_backend_pid(), pg_sleep(0.02)")[0][0])

        with ThreadPoolExecutor(12) as threads:
            processes = set(threads.map(use, range(60)))
        assert len(processes) == 3

    def test_one_thread_uses_one_connection(self, connect: Connect) -> None:
        database = connect(pool=3)
        assert len({backend(database) for _ in range(10)}) == 1

    def test_who_waits_too_long_is_told(self, connect: Connect, database: Database) -> None:
        one = connect(pool=1, timeout=1)

        def work(transaction: Transaction) -> None:
            transaction.run("SELECT 1")
            with ThreadPoolExecutor() as threads, pytest.raises(Unavailable, match="more to do"):
                threads.submit(one.run, "SELECT 1").result(20)

        one.transaction(work)
        assert one.run("SELECT 1") == [[1]]

    def test_first_come_first_served(self, connect: Connect) -> None:
        database = connect(pool=1)
        waiters = database._pool._waiters
        served: list[int] = []
        with ThreadPoolExecutor(8) as threads:

            def work(transaction: Transaction) -> None:
                transaction.run("SELECT 1")
                for number in range(8):
                    threads.submit(
                        database.transaction, lambda _, number=number: served.append(number)
                    )
                    assert soon(lambda: len(waiters) > number)  # noqa: B023

            database.transaction(work)
            # Coming back at once, this thread is still behind those that wait.
            database.transaction(lambda _: served.append(99))
        assert served == [*range(8), 99]

    def test_a_failed_connection_gives_its_place_back(
        self, connect: Connect, server: Postgres
    ) -> None:
        database = connect("postgresql://nobody@127.0.0.1:1/x", pool=1)
        for _ in range(3):
            with pytest.raises(Unavailable, match="does not answer"):
                database.run("SELECT 1")

    def test_close(self, connect: Connect, server: Postgres) -> None:
        database = connect()
        process = backend(database)
        database.close()
        gone = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {process}"
        assert soon(lambda: server.query(gone) == [[0]])

    def test_a_connection_in_use_is_closed_when_it_comes_back(
        self, connect: Connect, server: Postgres
    ) -> None:
        database = connect()

        def work(transaction: Transaction) -> int:
            process = backend(transaction)
            database.close()
            assert backend(transaction) == process
            return process

        process = database.transaction(work)
        gone = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {process}"
        assert soon(lambda: server.query(gone) == [[0]])

    def test_a_forked_process_has_connections_of_its_own(self, connect: Connect) -> None:
        database = connect(pool=2)
        before = backend(database)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(writing, str(backend(database)).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        inside = int(os.read(reading, 20))
        os.close(reading)
        os.close(writing)
        assert inside != before
        assert backend(database) == before


@pytest.fixture
def paused() -> Iterator[Callable[[int], None]]:
    """Stop a process (SIGSTOP) until the test ends."""
    stopped: list[int] = []

    def pause(process: int) -> None:
        os.kill(process, signal.SIGSTOP)
        stopped.append(process)

    yield pause
    for process in stopped:
        os.kill(process, signal.SIGCONT)


class TestOutages:
    def test_a_long_statement_is_given_up_by_the_server(
        self, connect: Connect, server: Postgres
    ) -> None:
        database = connect(timeout=1)
        began = time.monotonic()
        with pytest.raises(Unavailable):
            database.run("SELECT pg_sleep(60)")
        with pytest.raises(Unavailable):
            database.transaction(lambda transaction: transaction.run("SELECT pg_sleep(60)"))
        assert time.monotonic() - began < 20
        asleep = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(60%'"
        assert soon(lambda: server.query(asleep + " AND state = 'active'") == [[0]])

    def test_without_preparing_a_long_transaction_is_given_up_too(self, connect: Connect) -> None:
        database = connect(prepare=False, timeout=1)
        process = backend(database)
        with pytest.raises(Unavailable):
            database.transaction(lambda transaction: transaction.run("SELECT pg_sleep(60)"))
        assert backend(database) == process

    @pytest.mark.parametrize("prepare", [True, False])
    def test_a_server_that_says_nothing(
        self, connect: Connect, paused: Callable[[int], None], prepare: bool
    ) -> None:
        database = connect(timeout=3, prepare=prepare)
        process = backend(database)
        paused(process)
        began = time.monotonic()
        with pytest.raises(Unavailable):
            database.run("SELECT 1")
        assert 2.9 < time.monotonic() - began < 6, "it waits once"
        assert backend(database) != process

    def test_a_server_that_takes_connections_and_says_nothing(
        self, connect: Connect, server: Postgres, paused: Callable[[int], None]
    ) -> None:
        paused(server.pid)
        began = time.monotonic()
        with pytest.raises(Unavailable):
            connect().run("SELECT 1")
        assert time.monotonic() - began < 10

    def test_no_server(self, connect: Connect) -> None:
        database = connect(f"postgresql://postgres@127.0.0.1:{free_port()}/x")
        began = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            database.check()
        assert 4 < time.monotonic() - began < 20
        assert "Connection refused" in str(caught.value.__cause__)
        began = time.monotonic()
        with pytest.raises(Unavailable):
            database.check()
        assert time.monotonic() - began < 3

    def test_a_server_that_starts_is_waited_for(
        self, connect: Connect, database: Database, server: Postgres
    ) -> None:
        server.stop()
        with ThreadPoolExecutor() as threads:
            answer = threads.submit(database.run, "SELECT 7")
            time.sleep(0.5)
            server.start()
            assert answer.result(10) == [[7]]

    @pytest.mark.parametrize("idle", [0, 1.2])
    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
    def test_a_restart_between_statements_is_not_noticed(
        self,
        connect: Connect,
        database: Database,
        server: Postgres,
        how: signal.Signals,
        idle: float,
    ) -> None:
        uses: list[Callable[[Database, int], object]] = [
            lambda database, _: values(database),
            lambda database, number: database.run(INSERT, id=number),
            lambda database, number: database.transaction(lambda t: t.run(INSERT, id=number)),
        ]
        databases = [connect() for _ in uses]
        for number, (use, each) in enumerate(zip(uses, databases, strict=True)):
            use(each, number)
            hold_connections(each, 3)
        os.kill(server.pid, how)
        assert server.process is not None
        server.process.wait(20)
        server.kill9()
        server.start()
        time.sleep(idle)
        for number, (use, each) in enumerate(zip(uses, databases, strict=True)):
            use(each, number + 10)
        assert values(database) == ["x"] * 4

    def test_a_connection_that_ends_within_a_transaction(
        self, database: Database, server: Postgres
    ) -> None:
        calls = []

        def work(transaction: Transaction) -> None:
            calls.append(backend(transaction))
            transaction.run("INSERT INTO t VALUES (:id, 'x')", id=len(calls))
            if len(calls) == 1:
                server.query(f"SELECT pg_terminate_backend({calls[0]})")
            transaction.run("INSERT INTO t VALUES (:id, 'y')", id=len(calls) + 10)

        database.transaction(work)
        assert len(calls) == 2
        assert values(database) == ["x", "y"]

    def test_a_connection_that_ends_just_before_commit(
        self, database: Database, server: Postgres
    ) -> None:
        calls = []

        def work(transaction: Transaction) -> None:
            calls.append(backend(transaction))
            transaction.run("INSERT INTO t VALUES (:id, 'x')", id=len(calls))
            if len(calls) == 1:
                server.query(f"SELECT pg_terminate_backend({calls[0]}, 1000)")

        database.transaction(work)
        assert len(calls) == 2
        assert values(database) == ["x"]

    def test_another_connection_crashes(
        self, connect: Connect, database: Database, server: Postgres
    ) -> None:
        database.run(INSERT, id=1)
        ours = Path(f"/proc/{backend(database)}")
        os.kill(backend(connect()), signal.SIGKILL)  # at which Postgres ends all others, too
        assert soon(lambda: not ours.exists())
        database.run(INSERT, id=2)
        assert values(database) == ["x", "x"]

    def test_a_unix_socket_that_ends_between_statements(
        self, connect: Connect, database: Database, server: Postgres
    ) -> None:
        other = connect(f"postgresql://postgres@/postgres?host={server.data}&port={server.port}")
        other.run(INSERT, id=1)
        server.query(f"SELECT pg_terminate_backend({backend(other)}, 1000)")
        other.run(INSERT, id=2)
        assert values(database) == ["x", "x"]


@pytest.fixture
def relayed(connect: Connect, database: Database, url: str) -> Iterator[tuple[Database, Relay]]:
    """A database behind a line that can be cut."""
    port, name = url.rsplit(":", 1)[1].split("/")
    with closing(Relay(int(port))) as relay:
        other = connect(f"postgresql://postgres@127.0.0.1:{relay.port}/{name}")
        other.check()
        yield other, relay


class TestLostAnswers:
    def test_an_idle_connection_that_ended_without_a_word(
        self, relayed: tuple[Database, Relay], database: Database
    ) -> None:
        other, relay = relayed
        other.run(INSERT, id=1)
        relay.hang_up()
        time.sleep(1.1)
        other.run(INSERT, id=2)
        assert values(database) == ["x", "x"]

    @pytest.mark.parametrize("delivered", [True, False])
    def test_commit(
        self, relayed: tuple[Database, Relay], database: Database, delivered: bool
    ) -> None:
        other, relay = relayed
        calls = []

        def work(transaction: Transaction) -> None:
            calls.append(1)
            transaction.run("INSERT INTO t VALUES (1, 'x')")

        relay.cut = Cut(b"COMMIT", delivered)
        with pytest.raises(Unavailable):
            other.transaction(work)
        assert calls == [1]
        assert relay.cuts == 1
        assert values(database) == (["x"] if delivered else [])

    @pytest.mark.parametrize("delivered", [True, False])
    def test_a_change(
        self, relayed: tuple[Database, Relay], database: Database, delivered: bool
    ) -> None:
        other, relay = relayed
        insert = "INSERT INTO t (id, value) SELECT count(*), :value FROM t"
        other.run(insert, value="first")
        relay.cut = Cut(b"marked", delivered)
        with pytest.raises(Unavailable):
            other.run(insert, value="marked")
        assert values(database) == ["first", "marked"][: 1 + delivered]

    @pytest.mark.parametrize("delivered", [True, False])
    def test_a_read(self, relayed: tuple[Database, Relay], delivered: bool) -> None:
        other, relay = relayed
        assert other.run("SELECT :value", value="marked") == [["marked"]]
        relay.cut = Cut(b"marked", delivered)
        assert other.run("SELECT :value", value="marked") == [["marked"]]
        assert relay.cuts == 1

    @pytest.mark.parametrize("delivered", [True, False])
    def test_preparing(
        self, relayed: tuple[Database, Relay], database: Database, delivered: bool
    ) -> None:
        other, relay = relayed
        relay.cut = Cut(b"INSERT", delivered)
        other.run("INSERT INTO t VALUES (1, 'x')")
        assert relay.cuts == 1
        assert values(database) == ["x"]

    @pytest.mark.parametrize("delivered", [True, False])
    def test_a_statement_of_a_transaction(
        self, relayed: tuple[Database, Relay], database: Database, delivered: bool
    ) -> None:
        other, relay = relayed
        calls = []

        def work(transaction: Transaction) -> None:
            calls.append(1)
            transaction.run("INSERT INTO t VALUES (1, :value)", value="marked")

        relay.cut = Cut(b"marked", delivered)
        other.transaction(work)
        assert calls == [1, 1]
        assert values(database) == ["marked"]


def hold_connections(database: Database, count: int) -> None:
    """Have that many open connections in the pool."""
    everybody = threading.Barrier(count)
    with ThreadPoolExecutor(count) as threads:
        for _ in range(count):
            threads.submit(database.transaction, lambda t: (backend(t), everybody.wait(10)))


def soon(condition: Callable[[], bool]) -> bool:
    """Whether something comes true within half a minute."""
    end = time.monotonic() + 30
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
