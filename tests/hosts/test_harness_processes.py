"""The harness as processes: workers, signals, deaths, TLS."""

import contextlib
import fcntl
import http.client
import os
import signal
import ssl
import subprocess
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.hosts.functions import content
from tests.hosts.program import Program
from tests.hosts.wire import Wire, until


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    with Program(tmp_path, 2).started() as running:
        yield running


def ended(program: Program, within: float) -> int:
    assert program.process is not None
    return program.process.wait(within)


def until_refused(program: Program) -> None:
    """Wait until it takes no more connections, which is the first that a signal does."""
    for _ in until():
        try:
            Wire(program.port).close()
        except ConnectionResetError:  # it was about to be accepted
            continue
        except ConnectionRefusedError:
            break


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# Workers.


def test_workers_share_the_connections(program: Program) -> None:
    """A client with many connections has all processors at work for it."""
    for _ in until():  # one may serve before there is another
        if len(program.workers()) == 2:
            break
    for _ in range(5):
        wires = [Wire(program.port) for _ in range(32)]
        counts = Counter(wire.get("/a").json()["worker"] for wire in wires)
        for wire in wires:
            wire.close()
        if min(counts[worker] for worker in program.workers()) >= 8:
            return
    pytest.fail(f"the connections are shared badly: {counts}")


def test_a_worker_that_dies_is_replaced(program: Program) -> None:
    victims = program.workers()
    os.kill(victims[0], signal.SIGKILL)
    for _ in until():
        workers = program.workers()
        if len(workers) == 2 and victims[0] not in workers:
            break
    for _ in range(20):
        assert program.get("/a").status == 200
    assert "is replaced" in program.output()


def test_all_workers_die_at_once(program: Program) -> None:
    for pid in program.workers():
        os.kill(pid, signal.SIGKILL)
    for _ in until():
        if len(program.workers()) == 2:
            break
    assert program.get("/a").status == 200


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_nothing_outlives_the_supervisor(program: Program, number: signal.Signals) -> None:
    workers = program.workers()
    program.signal(number)
    ended(program, 10)
    for _ in until():
        if not any(map(alive, workers)):
            break


def test_a_new_one_starts_right_after_a_kill(program: Program) -> None:
    program.signal(signal.SIGKILL)
    ended(program, 10)
    program.start()
    for _ in until():  # workers of the one that was killed may answer still
        with contextlib.suppress(OSError):
            if program.get("/a").json()["worker"] in program.workers():
                break


# The process that does jobs.


@pytest.fixture
def working(tmp_path: Path) -> Iterator[Program]:
    """With a process for jobs, which has two seconds to end."""
    program = Program(tmp_path, 1, "work=1", "jobs.STOP_SECONDS=2")
    with program.started():
        yield program


def jobs_process(program: Program, count: int = 1) -> int:
    """The last process that began to do jobs, of so many."""
    for _ in until():
        pids = [int(event.split()[1]) for event in program.events() if event[:6] == "works "]
        if len(pids) == count:
            break
    return pids[-1]


def test_one_process_does_jobs_and_serves_nothing(working: Program) -> None:
    pid = jobs_process(working)
    assert {working.get("/a").json()["worker"] for _ in range(8)} == {*working.workers()} - {pid}


def test_no_process_does_jobs_where_the_settings_say_so(program: Program) -> None:
    served = set()
    for _ in until():
        served.add(program.get("/a").json()["worker"])
        if len(served) == 2:
            break
    assert served == set(program.workers())
    assert not any(event.startswith("works") for event in program.events())


def test_a_process_for_jobs_that_dies_is_replaced(working: Program) -> None:
    first = jobs_process(working)
    os.kill(first, signal.SIGKILL)
    assert jobs_process(working, 2) in working.workers()
    assert first not in working.workers()


def test_jobs_end_with_the_others(working: Program) -> None:
    jobs_process(working)
    working.signal(signal.SIGTERM)
    assert ended(working, 10) == 0
    assert "stopped" in working.events()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_job_that_hangs_keeps_nothing_from_ending(
    working: Program, number: signal.Signals
) -> None:
    (working.directory / "hangs").touch()
    os.kill(jobs_process(working), signal.SIGKILL)
    pid = jobs_process(working, 2)
    begun = time.monotonic()
    working.signal(number)
    ended(working, 10)
    for _ in until(5):
        if not alive(pid):
            break
    assert time.monotonic() - begun < 6
    assert "stopped" not in working.events()


def test_a_job_that_goes_on_keeps_no_client_waiting(tmp_path: Path) -> None:
    """Once workers let nobody in, the kernel must not either: who is connected waits in vain."""
    (tmp_path / "hangs").touch()
    program = Program(tmp_path, 1, "work=1", "jobs.STOP_SECONDS=60")
    with program.started():
        pid = jobs_process(program)
        program.signal(signal.SIGTERM)
        for _ in until():
            if program.workers() == [pid]:
                break
        with pytest.raises(ConnectionRefusedError):
            Wire(program.port)
        program.signal(signal.SIGTERM)  # a second one ends it
        ended(program, 10)


# The end.


def test_a_quiet_end(program: Program) -> None:
    with Wire(program.port) as idle, Wire(program.port):
        assert idle.get("/a").status == 200
        program.signal(signal.SIGTERM)
        assert ended(program, 10) == 0
        assert idle.closed()


def test_ctrl_c(program: Program) -> None:
    os.killpg(program.pid, signal.SIGINT)
    assert ended(program, 10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_running_requests_finish(program: Program, number: signal.Signals) -> None:
    data = content(3_000_000)
    with (
        Wire(program.port) as upload,
        Wire(program.port) as download,
        Wire(program.port) as slow,
        Wire(program.port) as idle,
    ):
        assert idle.get("/a").status == 200
        upload.head("PUT", "/stream?name=upload", f"Content-Length: {len(data)}")
        upload.send(data[:1_000_000])
        download.head("GET", "/file?length=150000000")
        assert download.line() == b"HTTP/1.1 200 OK"
        slow.head("GET", "/sleep?gate=slow&name=slow")
        program.wait_for("upload", "feed")
        program.wait_for("slow", "waits")
        os.killpg(program.pid, number)
        assert idle.closed()
        until_refused(program)
        upload.send(data[1_000_000:])
        answer = upload.answer()
        assert answer.json()["size"] == len(data)
        # A push goes on to its next request on the same connection.
        assert answer["connection"] is None
        assert upload.put("/whole", b"manifest").status == 200
        while download.line():
            pass
        assert download.take(150_000_000) == content(150_000_000)
        program.open_gate("slow")
        answer = slow.answer()
        assert answer.status == 200
        assert answer["connection"] == "close"
        assert ended(program, 15) == 0


def test_a_balancer_is_told_before_connections_are_refused(tmp_path: Path) -> None:
    program = Program(tmp_path, 2, "shutdown_delay=3")
    with (
        program.started(),
        Wire(program.port) as idle,
        Wire(program.port) as push,
        Wire(program.port) as slow,
    ):
        assert idle.get("/a")["connection"] is None
        assert push.put("/whole", b"first")["connection"] is None
        slow.head("PUT", "/stream?name=slow", "Content-Length: 9").send("abc")
        program.wait_for("slow", "feed")
        begun = time.monotonic()
        program.signal(signal.SIGTERM)
        for _ in until():
            if program.get("/ready").status == 503:
                break
        # Until then everybody is served, and told not to come back by the same connection.
        for _ in range(8):
            with Wire(program.port) as wire:
                assert wire.get("/a")["connection"] == "close"
                assert wire.closed()
        assert program.get("/health").status == 200
        answer = push.put("/whole", b"second")
        assert (answer.status, answer["connection"]) == (200, "close")
        assert time.monotonic() - begun < 3
        assert idle.closed()
        answer = slow.send("defghi").answer()
        assert (answer.json()["size"], answer["connection"]) == (9, "close")
        assert ended(program, 10) == 0
        assert 3 < time.monotonic() - begun < 6


def test_who_waits_to_be_let_in_is_served(tmp_path: Path) -> None:
    """The kernel has told these clients that they are connected."""
    program = Program(tmp_path, 1)
    with program.started(), contextlib.ExitStack() as stack:
        [worker] = program.workers()
        os.kill(worker, signal.SIGSTOP)
        wires = [stack.enter_context(Wire(program.port)) for _ in range(40)]
        for wire in wires[1:]:
            wire.head("GET", "/a")
        program.signal(signal.SIGTERM)
        time.sleep(0.2)
        os.kill(worker, signal.SIGCONT)
        assert [wire.answer().status for wire in wires[1:]] == [200] * 39
        assert ended(program, 10) == 0


def test_requests_that_do_not_finish_are_ended(tmp_path: Path) -> None:
    program = Program(tmp_path, 2, "shutdown_timeout=1")
    with program.started(), Wire(program.port) as wire:
        wire.head("PUT", "/stream?name=a", "Content-Length: 9").send("abc")
        program.wait_for("a", "feed")
        begun = time.monotonic()
        program.signal(signal.SIGTERM)
        assert ended(program, 15) == 0
        # Later they would have been killed (GRACE_SECONDS).
        assert 0.9 < time.monotonic() - begun < 5


def test_a_log_that_nobody_reads_keeps_nothing_from_being_written_down(tmp_path: Path) -> None:
    program = Program(tmp_path, 1, "worker.FLUSH_SECONDS=600")
    os.mkfifo(program.log)
    reader = os.open(program.log, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
        with program.started():
            for _ in range(40):
                assert program.get("/a").status == 200
            program.signal(signal.SIGTERM)
            assert ended(program, 10) == 0
    finally:
        os.close(reader)
    assert program.events("flush") == ["flushed"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_second_signal_ends_at_once(program: Program, number: signal.Signals) -> None:
    workers = program.workers()
    with Wire(program.port) as wire:
        wire.head("PUT", "/stream?name=a", "Content-Length: 9").send("abc")
        program.wait_for("a", "feed")
        program.signal(number)
        until_refused(program)
        time.sleep(0.5)
        assert program.alive()
        program.signal(number)
        ended(program, 10)
        assert not any(map(alive, workers))


def test_an_address_that_is_taken(program: Program) -> None:
    other = subprocess.run(
        program.command(),
        env={**os.environ, **program.environment()},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert other.returncode != 0
    assert "Address already in use" in other.stderr
    assert program.get("/a").status == 200


# TLS.


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return _make_certificate(tmp_path)


def _make_certificate(folder: Path) -> Path:
    need("openssl", "openssl")
    path = folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", str(folder / "key.pem"),
         "-out", str(path)],
        check=True, capture_output=True,
    )  # fmt: skip
    return path


def test_tls(tmp_path: Path, certificate: Path) -> None:
    key = certificate.with_name("key.pem")
    program = Program(tmp_path, 2, f"tls_certificate={certificate}", f"tls_key={key}")
    trust = ssl.create_default_context(cafile=str(certificate))
    data = content(20_000_000)
    with program.started():
        for _ in until():
            with contextlib.suppress(OSError):
                Wire(program.port).close()
                break
        with Wire(program.port, tls=trust) as wire:
            assert wire.get("/health").status == 200
            assert wire.put("/stream", data).json()["size"] == len(data)
            assert wire.get("/file?length=20000000").body == data
            assert wire.get("/pieces?size=20000000&piece=100000").body == data
            assert wire.get("/a", "Connection: close").status == 200
            assert wire.closed()
        with Wire(program.port, tls=trust) as wire:
            wire.head("PUT", "/stream?refuse", "Content-Length: 50000000")
            assert wire.answer().status == 403
        # Somebody who does not speak TLS, or falls silent before it is set up, harms nobody.
        with Wire(program.port) as plain, Wire(program.port):
            plain.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert b"HTTP" not in plain.rest()
            with Wire(program.port, tls=trust) as wire:
                assert wire.get("/a").status == 200


def test_tls_refuses_old_versions(tmp_path: Path, certificate: Path) -> None:
    key = certificate.with_name("key.pem")
    program = Program(tmp_path, 1, f"tls_certificate={certificate}", f"tls_key={key}")
    old = ssl.create_default_context(cafile=str(certificate))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with program.started():
        for _ in until():
            with contextlib.suppress(OSError):
                Wire(program.port).close()
                break
        with pytest.raises((ssl.SSLError, ConnectionError)):
            Wire(program.port, tls=old)


def test_tls_takes_a_newer_certificate(tmp_path: Path, certificate: Path) -> None:
    """Files that are replaced, as certbot does, are in use soon; what runs goes on."""
    key = certificate.with_name("key.pem")
    program = Program(
        tmp_path, 2, f"tls_certificate={certificate}", f"tls_key={key}", "worker.REFRESH_SECONDS=1"
    )
    former = ssl.create_default_context(cafile=str(certificate))
    (tmp_path / "new").mkdir()
    newer = _make_certificate(tmp_path / "new")
    trust = ssl.create_default_context(cafile=str(newer))
    with program.started():
        for _ in until():
            with contextlib.suppress(OSError):
                Wire(program.port).close()
                break
        with Wire(program.port, tls=former) as old:
            assert old.get("/a").status == 200
            newer.replace(certificate)
            # Half of it is there: the former goes on.
            for _ in until():
                if program.output().count("the former stay") == 2:
                    break
            Wire(program.port, tls=former).close()
            newer.with_name("key.pem").replace(key)
            # Whichever worker takes a connection.
            for _ in until():
                if program.output().count("is in use") == 2:
                    break
            for _ in range(8):
                with Wire(program.port, tls=trust) as wire:
                    assert wire.get("/a").status == 200
            assert old.get("/a").status == 200


# Together.


def test_a_mixed_crowd(program: Program) -> None:
    """Pushes, pulls and small requests at once, for a while, with a worker killed in between:
    whatever is answered is right."""
    stop = threading.Event()
    wrong: list[str] = []
    done: Counter[str] = Counter()

    def crowd(number: int) -> None:
        while not stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", program.port, timeout=30)
            try:
                for _ in range(5):
                    wrong.extend(push_pull_and_get(connection, number))
                    done["rounds"] += 1
            except (OSError, http.client.HTTPException):
                done["cut"] += 1
            finally:
                connection.close()

    threads = [threading.Thread(target=crowd, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(2)
        os.kill(program.workers()[0], signal.SIGKILL)
        before = done["rounds"]
        time.sleep(2)
        for _ in until():
            if done["rounds"] > before + 20:
                break
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert done["cut"] <= 12


def push_pull_and_get(connection: http.client.HTTPConnection, number: int) -> Iterator[str]:
    """Three requests; gives the name of each whose answer is wrong."""
    connection.request("PUT", "/stream", body=content(700_000 + number))
    if b"size" not in connection.getresponse().read():
        yield "push"
    connection.request("GET", f"/file?offset={number}&length=500000")
    if connection.getresponse().read() != content(number + 500_000)[number:]:
        yield "pull"
    connection.request("GET", f"/{number}")
    if f'"/{number}"'.encode() not in connection.getresponse().read():
        yield "get"
