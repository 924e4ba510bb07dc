"""Passkeys on a real Postgres, with an authenticator in software."""

import copy
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fido2.cose import ES256, ES384, EdDSA
from fido2.utils import websafe_decode, websafe_encode

from chalicelib.identity import passkeys
from chalicelib.identity.passkeys import Passkey, PasskeyRefused, RelyingParty, relying_party
from chalicelib.metadata.database import Database
from chalicelib.metadata.migrate import migrate
from chalicelib.settings import Settings
from tests.identity.doubles.authenticator import Authenticator
from tests.servers import Postgres

ORIGIN = "https://registry.example"
HERE = RelyingParty("registry.example", ORIGIN, "OpenRegistry")
UNVERIFIED = "could not be verified"
STALE = "took too long, or was tried before"


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> Iterator[Database]:
    url = postgres.new_database()
    migrate(url)
    database = Database(url)
    yield database
    database.close()


@pytest.fixture
def user(database: Database) -> Callable[[], int]:
    """Makes users."""

    def make() -> int:
        [[number]] = database.run(
            "INSERT INTO accounts (kind, name)"
            " VALUES ('user', 'u' || (SELECT count(*) FROM accounts)) RETURNING id"
        )
        return int(number)

    return make


@pytest.fixture
def alice(user: Callable[[], int]) -> int:
    return user()


@pytest.fixture
def phone() -> Authenticator:
    return Authenticator()


def registered(
    database: Database, account_id: int, authenticator: Authenticator, name: str = "phone"
) -> Passkey:
    options, state = passkeys.registration_options(database, account_id, "alice", HERE)
    credential = authenticator.create(options, ORIGIN)
    return passkeys.register(database, account_id, state, credential, name, HERE)


def signed_in(database: Database, authenticator: Authenticator) -> int:
    options, state = passkeys.sign_in_options(database, HERE)
    return passkeys.sign_in(database, state, authenticator.get(options, ORIGIN), HERE)


@pytest.mark.parametrize("algorithm", [ES256.ALGORITHM, EdDSA.ALGORITHM])
@pytest.mark.parametrize("counts", [True, False])
def test_register_and_sign_in(database: Database, alice: int, algorithm: int, counts: bool) -> None:
    phone = Authenticator(algorithm=algorithm, counts=counts)
    kept = registered(database, alice, phone, " Alice's phone ")
    assert kept.name == "Alice's phone"
    assert kept.used_at is None
    assert passkeys.listed(database, alice) == [kept]
    assert [signed_in(database, phone) for _ in range(2)] == [alice, alice]
    [used] = passkeys.listed(database, alice)
    assert used.used_at is not None
    assert used.used_at >= used.created_at


def test_options_of_registration(database: Database, alice: int, phone: Authenticator) -> None:
    options, state = passkeys.registration_options(database, alice, "alice", HERE)
    assert options == json.loads(json.dumps(options))
    assert options["rp"] == {"id": "registry.example", "name": "OpenRegistry"}
    assert (options["user"]["name"], options["user"]["displayName"]) == ("alice", "alice")
    assert len(websafe_decode(options["user"]["id"])) == 64
    assert len(websafe_decode(options["challenge"])) == 32
    assert options["attestation"] == "none"
    assert options["timeout"] == 300_000
    assert options["excludeCredentials"] == []
    assert options["authenticatorSelection"] == {
        "residentKey": "required",
        "requireResidentKey": True,
        "userVerification": "required",
    }
    passkeys.register(database, alice, state, phone.create(options, ORIGIN), "phone", HERE)

    again, _ = passkeys.registration_options(database, alice, "alice", HERE)
    assert again["user"]["id"] == options["user"]["id"]
    assert again["challenge"] != options["challenge"]
    [excluded] = again["excludeCredentials"]
    assert websafe_decode(excluded["id"]) == phone.keys[0].id
    assert excluded["transports"] == ["internal", "hybrid"]
    with pytest.raises(RuntimeError, match="registered already"):
        phone.create(again, ORIGIN)


def test_options_of_sign_in_name_nobody(database: Database, alice: int) -> None:
    registered(database, alice, Authenticator())
    options, _ = passkeys.sign_in_options(database, HERE)
    assert options["allowCredentials"] == []
    assert options["rpId"] == "registry.example"
    assert options["userVerification"] == "required"
    assert options == json.loads(json.dumps(options))


def test_passkeys_are_their_owners(database: Database, alice: int, user: Callable[[], int]) -> None:
    bob, phone, stick = user(), Authenticator(), Authenticator()
    first = registered(database, alice, phone)
    second = registered(database, alice, stick, "stick")
    registered(database, bob, Authenticator())
    assert not passkeys.rename(database, bob, first.id, "stolen")
    assert not passkeys.remove(database, bob, first.id)
    assert passkeys.listed(database, alice) == [first, second]
    assert passkeys.rename(database, alice, first.id, "Pixel")
    assert passkeys.remove(database, alice, second.id)
    assert not passkeys.remove(database, alice, second.id)
    assert not passkeys.remove(database, alice, "no-uuid")
    assert [each.name for each in passkeys.listed(database, alice)] == ["Pixel"]
    assert signed_in(database, phone) == alice
    with pytest.raises(PasskeyRefused, match="not known here"):
        signed_in(database, stick)


@pytest.mark.parametrize("name", ["", "   ", "x" * 101, "a\nb", "a\u202eb"])
def test_names_that_are_none(database: Database, alice: int, name: str) -> None:
    kept = registered(database, alice, Authenticator())
    with pytest.raises(PasskeyRefused, match="1 to 100 printable"):
        passkeys.rename(database, alice, kept.id, name)
    with pytest.raises(PasskeyRefused, match="1 to 100 printable"):
        registered(database, alice, Authenticator(), name)


def test_a_limit(
    database: Database, alice: int, phone: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passkeys, "MOST", 1)
    options, state = passkeys.registration_options(database, alice, "alice", HERE)
    registered(database, alice, phone)
    with pytest.raises(PasskeyRefused, match="1 passkeys at most"):
        passkeys.registration_options(database, alice, "alice", HERE)
    credential = Authenticator().create(options, ORIGIN)
    with pytest.raises(PasskeyRefused, match="1 passkeys at most"):
        passkeys.register(database, alice, state, credential, "second", HERE)


class TestRegistrationIsRefused:
    """Each of these leaves the account without a passkey."""

    @pytest.fixture(autouse=True)
    def _none(self, database: Database, alice: int) -> Iterator[None]:
        yield
        assert passkeys.listed(database, alice) == []

    def refuse(
        self,
        database: Database,
        account_id: int,
        state: str,
        credential: Any,
        sentence: str = UNVERIFIED,
    ) -> None:
        with pytest.raises(PasskeyRefused, match=sentence):
            passkeys.register(database, account_id, state, credential, "phone", HERE)

    @pytest.fixture
    def options(self, database: Database, alice: int) -> dict[str, Any]:
        options, self.state = passkeys.registration_options(database, alice, "alice", HERE)
        return options

    @pytest.mark.parametrize(
        "origin",
        [
            "https://evil.example",
            "http://registry.example",
            "https://registry.example:8443",
            "https://sub.registry.example",
            "null",
        ],
    )
    def test_wrong_origin(
        self,
        database: Database,
        alice: int,
        phone: Authenticator,
        options: dict[str, Any],
        origin: str,
    ) -> None:
        self.refuse(database, alice, self.state, phone.create(options, origin))

    def test_frame_of_another_site(
        self, database: Database, alice: int, phone: Authenticator, options: dict[str, Any]
    ) -> None:
        credential = phone.create(options, ORIGIN, cross_origin=True)
        self.refuse(database, alice, self.state, credential)

    def test_wrong_relying_party(
        self, database: Database, alice: int, options: dict[str, Any]
    ) -> None:
        credential = Authenticator(rp_id="example").create(options, ORIGIN)
        self.refuse(database, alice, self.state, credential)

    def test_user_not_verified(
        self, database: Database, alice: int, options: dict[str, Any]
    ) -> None:
        credential = Authenticator(verifies_user=False).create(options, ORIGIN)
        self.refuse(database, alice, self.state, credential)

    def test_algorithm_that_was_not_offered(
        self, database: Database, alice: int, options: dict[str, Any]
    ) -> None:
        options["pubKeyCredParams"].append({"type": "public-key", "alg": ES384.ALGORITHM})
        credential = Authenticator(algorithm=ES384.ALGORITHM).create(options, ORIGIN)
        self.refuse(database, alice, self.state, credential)

    def test_anothers_challenge(
        self,
        database: Database,
        alice: int,
        user: Callable[[], int],
        phone: Authenticator,
        options: dict[str, Any],
    ) -> None:
        bob = user()
        credential = phone.create(options, ORIGIN)
        self.refuse(database, bob, self.state, credential, STALE)
        assert passkeys.listed(database, bob) == []
        # And it is spent.
        self.refuse(database, alice, self.state, credential, STALE)

    def test_challenge_of_another_registration(
        self, database: Database, alice: int, phone: Authenticator, options: dict[str, Any]
    ) -> None:
        _, other = passkeys.registration_options(database, alice, "alice", HERE)
        self.refuse(database, alice, other, phone.create(options, ORIGIN))

    def test_challenge_of_a_sign_in(
        self, database: Database, alice: int, phone: Authenticator, options: dict[str, Any]
    ) -> None:
        request, state = passkeys.sign_in_options(database, HERE)
        credential = phone.create({**options, "challenge": request["challenge"]}, ORIGIN)
        self.refuse(database, alice, state, credential, STALE)

    def test_expired_challenge(
        self, database: Database, alice: int, phone: Authenticator, options: dict[str, Any]
    ) -> None:
        expire(database)
        self.refuse(database, alice, self.state, phone.create(options, ORIGIN), STALE)

    def test_a_challenge_works_once(
        self, database: Database, alice: int, phone: Authenticator, options: dict[str, Any]
    ) -> None:
        self.refuse(database, alice, self.state, phone.create(options, "https://evil.example"))
        self.refuse(database, alice, self.state, phone.create(options, ORIGIN), STALE)

    def test_replayed(
        self, database: Database, user: Callable[[], int], phone: Authenticator
    ) -> None:
        carol = user()
        options, state = passkeys.registration_options(database, carol, "carol", HERE)
        credential = phone.create(options, ORIGIN)
        kept = passkeys.register(database, carol, state, credential, "phone", HERE)
        self.refuse(database, carol, state, credential, STALE)
        assert passkeys.listed(database, carol) == [kept]

    def test_credential_of_another_account(
        self,
        database: Database,
        alice: int,
        user: Callable[[], int],
        phone: Authenticator,
        options: dict[str, Any],
    ) -> None:
        """Section 7.1, step 26: who shows another's credential id must not get it."""
        bob = user()
        registered(database, bob, phone)
        thief = Authenticator()
        credential = thief.create(options, ORIGIN)
        attestation = websafe_decode(credential["response"]["attestationObject"])
        altered = attestation.replace(thief.keys[0].id, phone.keys[0].id)
        credential["id"] = credential["rawId"] = websafe_encode(phone.keys[0].id)
        credential["response"]["attestationObject"] = websafe_encode(altered)
        self.refuse(database, alice, self.state, credential, "registered already")
        assert signed_in(database, phone) == bob

    @pytest.mark.parametrize("gone", ["suspended_at = now()", "deleted_at = now(), name = NULL"])
    def test_account_that_is_gone(
        self,
        database: Database,
        alice: int,
        phone: Authenticator,
        options: dict[str, Any],
        gone: str,
    ) -> None:
        database.run(f"UPDATE accounts SET {gone} WHERE id = :id", id=alice)
        with pytest.raises(PasskeyRefused):
            passkeys.registration_options(database, alice, "alice", HERE)
        credential = phone.create(options, ORIGIN)
        with pytest.raises(PasskeyRefused):
            passkeys.register(database, alice, self.state, credential, "phone", HERE)

    def test_organisations(self, database: Database) -> None:
        [[number]] = database.run(
            "INSERT INTO accounts (kind, name) VALUES ('organisation', 'acme') RETURNING id"
        )
        with pytest.raises(PasskeyRefused, match="no passkeys"):
            passkeys.registration_options(database, number, "acme", HERE)


class TestSignInIsRefused:
    """Each of these is no sign-in, and is not seen as one."""

    @pytest.fixture(autouse=True)
    def _unused(self, database: Database, alice: int, phone: Authenticator) -> Iterator[None]:
        registered(database, alice, phone)
        self.options, self.state = passkeys.sign_in_options(database, HERE)
        yield
        assert all(each.used_at is None for each in passkeys.listed(database, alice))

    def refuse(self, database: Database, credential: Any, sentence: str = UNVERIFIED) -> int | None:
        with pytest.raises(PasskeyRefused, match=sentence) as refusal:
            passkeys.sign_in(database, self.state, credential, HERE)
        return refusal.value.account_id

    @pytest.mark.parametrize(
        "origin", ["https://evil.example", "http://registry.example", "https://registry.example:1"]
    )
    def test_wrong_origin(
        self, database: Database, alice: int, phone: Authenticator, origin: str
    ) -> None:
        """The account is told to whoever writes the audit log."""
        assert self.refuse(database, phone.get(self.options, origin)) == alice

    def test_frame_of_another_site(self, database: Database, phone: Authenticator) -> None:
        self.refuse(database, phone.get(self.options, ORIGIN, cross_origin=True))

    def test_wrong_relying_party(self, database: Database, phone: Authenticator) -> None:
        phone.keys[0].rp_id = phone.rp_id = "evil.example"
        self.refuse(database, phone.get(self.options, ORIGIN))

    def test_user_not_verified(self, database: Database, phone: Authenticator) -> None:
        phone.verifies_user = False
        self.refuse(database, phone.get(self.options, ORIGIN))

    def test_tampered_signature(self, database: Database, phone: Authenticator) -> None:
        credential = phone.get(self.options, ORIGIN)
        signature = bytearray(websafe_decode(credential["response"]["signature"]))
        signature[-1] ^= 1
        credential["response"]["signature"] = websafe_encode(bytes(signature))
        self.refuse(database, credential)

    def test_anothers_signature(self, database: Database, phone: Authenticator) -> None:
        stranger = Authenticator()
        stranger.create({**REGISTRATION, "challenge": ""}, ORIGIN)
        credential = stranger.get(self.options, ORIGIN)
        credential["id"] = credential["rawId"] = websafe_encode(phone.keys[0].id)
        credential["response"]["userHandle"] = websafe_encode(phone.keys[0].user_handle)
        self.refuse(database, credential)

    def test_unknown_credential(self, database: Database) -> None:
        stranger = Authenticator()
        stranger.create({**REGISTRATION, "challenge": ""}, ORIGIN)
        assert self.refuse(database, stranger.get(self.options, ORIGIN), "not known here") is None

    def test_handle_of_another_account(
        self, database: Database, user: Callable[[], int], phone: Authenticator
    ) -> None:
        other = Authenticator()
        registered(database, user(), other)
        phone.keys[0].user_handle = other.keys[0].user_handle
        self.refuse(database, phone.get(self.options, ORIGIN), "another account")

    def test_no_handle(self, database: Database, phone: Authenticator) -> None:
        credential = phone.get(self.options, ORIGIN)
        del credential["response"]["userHandle"]
        self.refuse(database, credential, "another account")

    def test_challenge_of_another_sign_in(self, database: Database, phone: Authenticator) -> None:
        other, _ = passkeys.sign_in_options(database, HERE)
        self.refuse(database, phone.get(other, ORIGIN))

    def test_challenge_of_a_registration(
        self, database: Database, alice: int, phone: Authenticator
    ) -> None:
        creation, self.state = passkeys.registration_options(database, alice, "alice", HERE)
        request = {**self.options, "challenge": creation["challenge"]}
        self.refuse(database, phone.get(request, ORIGIN), STALE)

    def test_expired_challenge(self, database: Database, phone: Authenticator) -> None:
        expire(database)
        self.refuse(database, phone.get(self.options, ORIGIN), STALE)

    def test_a_challenge_works_once(self, database: Database, phone: Authenticator) -> None:
        self.refuse(database, phone.get(self.options, "https://evil.example"))
        self.refuse(database, phone.get(self.options, ORIGIN), STALE)

    @pytest.mark.parametrize("state", ["", "x", "ä", "\ud800", "A" * 10_000])
    def test_state_that_is_none(self, database: Database, phone: Authenticator, state: str) -> None:
        self.state = state
        self.refuse(database, phone.get(self.options, ORIGIN), STALE)

    @pytest.mark.parametrize("gone", ["suspended_at = now()", "deleted_at = now(), name = NULL"])
    def test_account_that_is_gone(
        self, database: Database, alice: int, phone: Authenticator, gone: str
    ) -> None:
        database.run(f"UPDATE accounts SET {gone} WHERE id = :id", id=alice)
        self.refuse(database, phone.get(self.options, ORIGIN), "may not sign in")

    @pytest.mark.parametrize(
        "change",
        [
            lambda credential: credential.clear(),
            lambda credential: credential.update(id="%%%", rawId=1),
            lambda credential: credential.update(rawId="AAAA"),
            lambda credential: credential.update(type="password"),
            lambda credential: credential.update(response=None),
            lambda credential: credential["response"].update(clientDataJSON=websafe_encode(b"[]")),
            lambda credential: credential["response"].update(
                clientDataJSON=websafe_encode(b"\xff")
            ),
            lambda credential: credential["response"].update(authenticatorData=""),
            lambda credential: credential["response"].update(signature="é"),
            lambda credential: credential["response"].update(userHandle=7),
        ],
    )
    def test_what_is_no_credential(
        self, database: Database, phone: Authenticator, change: Callable[[dict[str, Any]], None]
    ) -> None:
        credential = phone.get(self.options, ORIGIN)
        change(credential)
        self.refuse(database, credential, f"{UNVERIFIED}|not known here")


REGISTRATION: dict[str, Any] = {
    "rp": {"id": HERE.id},
    "user": {"id": websafe_encode(b"handle")},
    "pubKeyCredParams": [{"type": "public-key", "alg": ES256.ALGORITHM}],
    "excludeCredentials": [],
}


def test_a_sign_in_is_not_replayed(database: Database, alice: int, phone: Authenticator) -> None:
    registered(database, alice, phone)
    options, state = passkeys.sign_in_options(database, HERE)
    credential = phone.get(options, ORIGIN)
    assert passkeys.sign_in(database, state, credential, HERE) == alice
    with pytest.raises(PasskeyRefused, match=STALE):
        passkeys.sign_in(database, state, credential, HERE)
    _, fresh = passkeys.sign_in_options(database, HERE)
    with pytest.raises(PasskeyRefused, match=UNVERIFIED):
        passkeys.sign_in(database, fresh, credential, HERE)


@pytest.mark.parametrize("step", [-2, -1, 0])
def test_a_counter_that_goes_back(
    database: Database, alice: int, phone: Authenticator, step: int
) -> None:
    registered(database, alice, phone)
    phone.keys[0].counter = 7
    assert signed_in(database, phone) == alice
    assert phone.keys[0].counter == 8
    phone.keys[0].counter += step - 1
    with pytest.raises(PasskeyRefused, match="copied") as refusal:
        signed_in(database, phone)
    assert refusal.value.account_id == alice
    phone.keys[0].counter = 8
    assert signed_in(database, phone) == alice


def test_a_counter_that_falls_to_zero(database: Database, alice: int, phone: Authenticator) -> None:
    registered(database, alice, phone)
    phone.counts, phone.keys[0].counter = False, 0
    with pytest.raises(PasskeyRefused, match="copied"):
        signed_in(database, phone)


def test_a_copy_at_the_same_moment(database: Database, alice: int, phone: Authenticator) -> None:
    """Of two with the same counter one is let in, whichever comes first."""
    registered(database, alice, phone)
    copied = copy.copy(phone)
    copied.keys = [copy.copy(key) for key in phone.keys]

    def enter(authenticator: Authenticator) -> bool:
        try:
            return signed_in(database, authenticator) == alice
        except PasskeyRefused:
            return False

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(enter, [phone, copied])) == [False, True]


def test_states_are_not_kept_readable(database: Database, alice: int) -> None:
    options, state = passkeys.registration_options(database, alice, "alice", HERE)
    rows = str(database.run("SELECT hash, purpose, account_id, data FROM one_time_secrets"))
    assert state not in rows
    assert options["challenge"] not in rows


@pytest.mark.parametrize(
    ("environment", "host", "expected"),
    [
        ({}, "localhost:5000", ("localhost", "http://localhost:5000")),
        ({}, "LOCALHOST", ("localhost", "http://localhost")),
        ({}, "registry.localhost:80", ("registry.localhost", "http://registry.localhost")),
        ({"PUBLIC_URL": "https://r.example"}, "evil.example", ("r.example", "https://r.example")),
        ({"PUBLIC_URL": "https://R.Example:443"}, "", ("r.example", "https://r.example")),
        ({"PUBLIC_URL": "https://r.example:8443"}, "", ("r.example", "https://r.example:8443")),
        ({"PUBLIC_URL": "http://localhost:80"}, "", ("localhost", "http://localhost")),
        (
            {"TLS_CERTIFICATE": "/c.pem", "TLS_KEY": "/k.pem"},
            "localhost:5000",
            ("localhost", "https://localhost:5000"),
        ),
    ],
)
def test_relying_party(environment: dict[str, str], host: str, expected: tuple[str, str]) -> None:
    found = relying_party(settings(environment), host)
    assert (found.id, found.origin) == expected


@pytest.mark.parametrize(
    ("environment", "host", "sentence"),
    [
        ({}, "evil.example", "PUBLIC_URL"),
        ({}, "localhost.evil.example", "PUBLIC_URL"),
        ({}, "localhost@evil.example", "PUBLIC_URL"),
        ({}, "localhost:port", "PUBLIC_URL"),
        ({}, "[::1", "PUBLIC_URL"),
        ({}, "", "PUBLIC_URL"),
        ({}, "127.0.0.1:5000", "use localhost"),
        ({}, "[::1]:5000", "use localhost"),
        ({"PUBLIC_URL": "https://192.0.2.7"}, "", "use a name"),
        ({"PUBLIC_URL": "http://r.example"}, "", "HTTPS"),
    ],
)
def test_no_relying_party(environment: dict[str, str], host: str, sentence: str) -> None:
    with pytest.raises(PasskeyRefused, match=sentence):
        relying_party(settings(environment), host)


def settings(environment: dict[str, str]) -> Settings:
    return Settings.from_environment(
        {f"OPENREGISTRY_{name}": value for name, value in environment.items()}
    )


def expire(database: Database) -> None:
    """Let 5 minutes pass."""
    database.run("UPDATE one_time_secrets SET expires_at = expires_at - interval '300 s'")
