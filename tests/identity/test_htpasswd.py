import base64
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import argon2
import bcrypt
import pytest

from chalicelib.hosts import choose_access
from chalicelib.http import Headers, RegistryError, Request, Unauthorized
from chalicelib.identity import Permission
from chalicelib.identity import htpasswd as module
from chalicelib.identity.htpasswd import Htpasswd
from chalicelib.identity.open import Open
from chalicelib.settings import Address, Settings, SettingsError

COST = 4


def hashed(password: str, prefix: bytes = b"2y") -> str:
    value = bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(COST))
    return (b"$" + prefix + value[3:]).decode()


def basic(name: str, password: str, encoding: str = "utf-8") -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode(encoding)).decode()


def asked(policy: Htpasswd, authorization: str | None, permission: Permission) -> str:
    fields = {} if authorization is None else {"Authorization": authorization}
    return policy.authorise(Request("GET", "/v2/", headers=Headers(fields)), permission, "a")


def login(policy: Htpasswd, name: str, password: str) -> str:
    return asked(policy, basic(name, password), Permission.PUSH)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "htpasswd"
    path.write_text(
        "# the team\n\n"
        f"ada:{hashed('secret')}\n"
        f"bob:{hashed('also:a secret', b'2b')}\n"
        f"cäsar:{hashed('pässwörd', b'2a')}\n"
        f"dora:{argon2.PasswordHasher(1, 1024, 1).hash('argon')}\n"
        f"emil:{hashed('x' * 100)}\n"
    )
    return path


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("ada", "secret"),
        ("bob", "also:a secret"),
        ("cäsar", "pässwörd"),
        ("dora", "argon"),
        ("emil", "x" * 100),
    ],
)
def test_right_credentials(file: Path, name: str, password: str) -> None:
    policy = Htpasswd(file)
    assert login(policy, name, password) == name
    assert login(policy, name, password) == name


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer abc",
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"ada").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:secret").decode(),
        basic("ada", "Secret"),
        basic("ada", ""),
        basic("ada", "secret\0"),
        basic("", "secret"),
        basic("dora", "secret"),
        basic("nobody", "secret"),
        basic("# the team", ""),
    ],
)
def test_wrong_credentials(file: Path, authorization: str | None) -> None:
    policy = Htpasswd(file)
    with pytest.raises(Unauthorized) as error:
        asked(policy, authorization, Permission.PULL)
    assert error.value.response().status == 401
    assert ("WWW-Authenticate", 'Basic realm="OpenRegistry"') in error.value.response().headers


def test_scheme_in_any_case(file: Path) -> None:
    assert asked(Htpasswd(file), basic("ada", "secret").replace("Basic", "bAsIc"), Permission.PULL)


def test_anonymous_endpoints_need_no_credentials(file: Path) -> None:
    assert asked(Htpasswd(file), None, Permission.ANONYMOUS) == ""
    assert asked(Htpasswd(file), basic("ada", "wrong"), Permission.ANONYMOUS) == ""


def test_subjects_are_permitted_while_they_have_an_account(file: Path) -> None:
    policy = Htpasswd(file)
    assert policy.permits("ada", Permission.PUSH, "a")
    assert not policy.permits("", Permission.PUSH, "a")
    file.write_text(f"bob:{hashed('b')}\n")
    assert not policy.permits("ada", Permission.PUSH, "a")


def test_a_changed_file_holds_at_once(file: Path) -> None:
    policy = Htpasswd(file)
    assert login(policy, "ada", "secret")
    file.write_text(f"ada:{hashed('new')}\nfritz:{hashed('f')}\n")
    with pytest.raises(Unauthorized):
        login(policy, "ada", "secret")
    assert login(policy, "ada", "new")
    assert login(policy, "fritz", "f")


def test_a_file_of_the_same_size_and_time_is_noticed_when_replaced(file: Path) -> None:
    file.write_text(f"ada:{hashed('one')}\n")
    policy = Htpasswd(file)
    assert login(policy, "ada", "one")
    before = file.stat()
    other = file.with_suffix(".new")
    other.write_text(f"ada:{hashed('two')}\n")
    other.replace(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert login(policy, "ada", "two")


def test_accounts_stay_while_the_file_is_away(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = Htpasswd(file)
    away = file.rename(file.with_suffix(".away"))
    assert login(policy, "ada", "secret")
    assert "stay as they were" in caplog.text
    away.rename(file)
    assert login(policy, "bob", "also:a secret")


def test_wrong_lines_that_come_later_are_logged(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Htpasswd(file)
    file.write_text(f"ada:plain\nbob:{hashed('b')}\n")
    assert login(policy, "bob", "b")
    with pytest.raises(Unauthorized):
        login(policy, "ada", "plain")
    assert "line 1: ada's hash" in caplog.text
    assert "plain" not in caplog.text


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "holds no account"),
        ("ada:$apr1$x$y\n", "line 1: ada's hash is neither"),
        ("ada:$2y$05$tooshort\n", "line 1: ada's hash is neither"),
        ("ada\n", "line 1: it must be name:hash"),
        (":x\n", "line 1: it must be name:hash"),
    ],
)
def test_a_useless_file_stops_the_start(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "htpasswd"
    path.write_text(content)
    with pytest.raises(SettingsError, match=sentence) as error:
        Htpasswd(path)
    assert error.value.name == "OPENREGISTRY_HTPASSWD"


def test_a_missing_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        Htpasswd(tmp_path / "none")


def test_verified_credentials_are_remembered(tmp_path: Path) -> None:
    path = tmp_path / "htpasswd"
    slow = bcrypt.hashpw(b"secret", bcrypt.gensalt(10)).decode()
    path.write_text(f"ada:{slow}\n")
    policy = Htpasswd(path)
    login(policy, "ada", "secret")
    begun = time.perf_counter()
    for _ in range(100):
        login(policy, "ada", "secret")
    assert time.perf_counter() - begun < 0.5, "each check was a bcrypt"


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A file whose one hash takes a quarter of a second or so."""
    path = tmp_path / "slow"
    path.write_text(f"ada:{bcrypt.hashpw(b'secret', bcrypt.gensalt(12)).decode()}\n")
    return path


def status(policy: Htpasswd, name: str, password: str) -> int:
    try:
        login(policy, name, password)
    except RegistryError as error:
        return error.status
    return 200


def test_guesses_keep_nobody_waiting(slow: Path) -> None:
    policy = Htpasswd(slow)
    login(policy, "ada", "secret")
    ended = threading.Event()

    def guess(number: int) -> list[tuple[int, float]]:
        told = []
        while not ended.is_set():
            begun = time.monotonic()
            told.append((status(policy, "ada", f"{number} {begun}"), time.monotonic() - begun))
            time.sleep(0.02)
        return told

    with ThreadPoolExecutor(30) as threads:
        guesses = [threads.submit(guess, number) for number in range(30)]
        try:
            time.sleep(0.5)
            waits = []
            for _ in range(20):
                begun = time.monotonic()
                assert login(policy, "ada", "secret") == "ada"
                waits.append(time.monotonic() - begun)
                time.sleep(0.05)
        finally:
            ended.set()
    told = [each for future in guesses for each in future.result()]
    assert max(waits) < 0.5
    assert {each for each, _ in told} == {401, 429}
    assert max(seconds for _, seconds in told) < module._PATIENCE + 2
    waited = sum(seconds > 0.2 for _, seconds in told)
    assert waited < len(told) / 4, "most are answered at once"


def test_a_guess_too_many_is_told_to_come_back(slow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.01)
    policy = Htpasswd(slow)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(status, policy, "ada", "a guess")
        while not policy._turn.locked():
            time.sleep(0.001)
        with pytest.raises(RegistryError) as error:
            login(policy, "ada", "another")
        assert first.result() == 401
    answer = error.value.response()
    assert (answer.status, error.value.code) == (429, "TOOMANYREQUESTS")
    assert ("Retry-After", "1") in answer.headers
    assert login(policy, "ada", "secret") == "ada"


def test_requests_with_the_same_credentials_share_one_check(slow: Path) -> None:
    policy = Htpasswd(slow)
    with ThreadPoolExecutor(16) as threads:
        begun = time.monotonic()
        alone = status(policy, "ada", "wrong"), time.monotonic() - begun
        begun = time.monotonic()
        together = list(threads.map(lambda _: status(policy, "ada", "secret"), range(16)))
    assert alone[0] == 401
    assert together == [200] * 16
    assert time.monotonic() - begun < 4 * alone[1]


def test_no_crowd_waits_for_one_guess_while_somebody_guesses(slow: Path) -> None:
    policy = Htpasswd(slow)
    for number in range(module._SIEGE[0]):
        assert status(policy, "ada", f"guess {number}") == 401
    with ThreadPoolExecutor(16) as threads:
        told = list(threads.map(lambda _: status(policy, "ada", "one more"), range(16)))
    assert told.count(429) == 16 - module._AT_ONCE


def test_a_check_begun_before_a_change_lets_nobody_in_after_it(slow: Path) -> None:
    policy = Htpasswd(slow)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(status, policy, "ada", "secret")
        while not policy._turn.locked():
            time.sleep(0.001)
        time.sleep(0.05)
        slow.write_text(f"ada:{hashed('new')}\n")
        assert status(policy, "ada", "secret") == 401
        first.result()
    assert status(policy, "ada", "secret") == 401


def test_what_is_remembered_is_bounded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 2)
    policy = Htpasswd(file)
    for name, password in [("ada", "secret"), ("bob", "also:a secret"), ("dora", "argon")]:
        login(policy, name, password)
    assert len(policy._verified) <= 2


def test_an_unknown_name_takes_as_long_as_a_wrong_password(tmp_path: Path) -> None:
    path = tmp_path / "htpasswd"
    path.write_text(f"ada:{bcrypt.hashpw(b'secret', bcrypt.gensalt(10)).decode()}\n")
    policy = Htpasswd(path)

    def quickest(name: str) -> float:
        times = []
        for _ in range(3):
            begun = time.perf_counter()
            with pytest.raises(Unauthorized):
                login(policy, name, "wrong")
            times.append(time.perf_counter() - begun)
        return min(times)

    assert quickest("nobody") > quickest("ada") / 2


# Which policy holds.


def test_open_on_loopback() -> None:
    policy = choose_access(Settings())
    assert isinstance(policy, Open)
    request = Request("PUT", "/v2/a/manifests/b")
    assert policy.authorise(request, Permission.PUSH, "a") == ""
    assert policy.permits("", Permission.ADMIN, None)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(listen=Address("0.0.0.0", 5000)),
        Settings(public_url="https://registry.example.org"),
        Settings(upload_url="https://upload.example.org"),
    ],
)
def test_closed_elsewhere(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="OPENREGISTRY_HTPASSWD: is needed"):
        choose_access(settings)


def test_closed_on_a_host_that_is_always_exposed() -> None:
    with pytest.raises(SettingsError, match="OPENREGISTRY_HTPASSWD: is needed"):
        choose_access(Settings(), exposed=True)


def test_an_htpasswd_file_holds_on_loopback_too(file: Path) -> None:
    assert isinstance(choose_access(Settings(htpasswd=file)), Htpasswd)
