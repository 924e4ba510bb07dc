"""The certificate that the registry gets itself, from Let's Encrypt's server for tests (Pebble)."""

import json
import os
import signal
import ssl
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from chalicelib.context import Context
from chalicelib.hosts import build_context
from chalicelib.hosts.harness.acme import Challenges, Ordered
from chalicelib.http import Headers, Query, Request
from chalicelib.identity.keys import Keys, SealError
from chalicelib.jobs import Job, TryAgain, certificates
from chalicelib.jobs.kinds import KINDS
from chalicelib.jobs.worker import Worker
from chalicelib.metadata import certificates as rows
from chalicelib.metadata.database import Database
from chalicelib.settings import Settings, SettingsError
from tests.conftest import need
from tests.hosts.pebble import Names, Pebble
from tests.hosts.wire import Wire, until
from tests.images import make_image, write_layout
from tests.servers import OPENREGISTRY, Postgres, Registry, free_port, run, stopping

WORKERS = 2
DOMAINS = ("localhost", "registry.example.test")
PASSWORD = "correct horse battery staple"
SECRET = "a secret that all hosts know"
JOB = Job(1, certificates.KIND, "", {}, 1, 1)
Serve = Callable[..., Registry]


@pytest.fixture(scope="module")
def pebble(directory: Path) -> Iterator[Pebble]:
    names = Names(directory / "names")
    server = Pebble(directory / "pebble", names)
    with stopping(names), stopping(server):
        names.start()
        yield server.start()


@pytest.fixture
def trust(pebble: Pebble, tmp_path: Path) -> ssl.SSLContext:
    """What a client needs that is to believe in what Pebble gives; also a file for skopeo."""
    (tmp_path / "certificates").mkdir()
    (tmp_path / "certificates/pebble.crt").write_text(pebble.root())
    return ssl.create_default_context(cafile=str(tmp_path / "certificates/pebble.crt"))


@pytest.fixture
def settings(pebble: Pebble, postgres: Postgres, tmp_path: Path) -> dict[str, str]:
    """Those of every replica."""
    return {
        "OPENREGISTRY_ACCESS": "accounts",
        "OPENREGISTRY_ADMIN_EMAIL": "admin@example.org",
        "OPENREGISTRY_ADMIN_PASSWORD": PASSWORD,
        "OPENREGISTRY_ACME_DOMAINS": ",".join(DOMAINS),
        "OPENREGISTRY_ACME_DIRECTORY": pebble.directory_url,
        "OPENREGISTRY_DATABASE_URL": postgres.new_database(),
        "OPENREGISTRY_SECRET_KEY": SECRET,
        "OPENREGISTRY_STORAGE_URL": (tmp_path / "blobs").as_uri(),
        "OPENREGISTRY_WORKERS": str(WORKERS),
        "REQUESTS_CA_BUNDLE": str(pebble.certificate),
    }


def elsewhere(port: int = 0) -> dict[str, str]:
    """Where a replica takes challenges."""
    return {"OPENREGISTRY_ACME_LISTEN": f"127.0.0.1:{port or free_port()}"}


def shown(registry: Registry, trust: ssl.SSLContext) -> x509.Certificate:
    """The certificate of a registry, which this client believes."""
    with Wire(int(registry.host.rpartition(":")[2]), tls=trust) as wire:
        assert isinstance(wire.socket, ssl.SSLSocket)
        return x509.load_der_x509_certificate(wire.socket.getpeercert(binary_form=True) or b"")


def until_in_use(registry: Registry, count: int = 1) -> None:
    """Wait until all workers have taken so many certificates into use."""
    for _ in until():
        if registry.output().count("is in use") == count * WORKERS:
            break


@pytest.mark.long
def test_replicas_get_one_certificate(
    serve: Serve, settings: dict[str, str], pebble: Pebble, trust: ssl.SSLContext, tmp_path: Path
) -> None:
    need("skopeo", "skopeo")
    orders = serve(**settings, **elsewhere())
    with pytest.raises(ssl.SSLCertVerificationError):  # it has signed itself
        shown(orders, trust)
    # Nobody answers at port 80 yet, as before a name leads to a new host.
    failed = until_failed(settings)
    assert "registry.example.test: " in failed["error"]
    assert "onnection refused" in failed["error"]

    # The one that is asked is not the one that orders.
    asked = serve(**settings, **elsewhere(pebble.port), OPENREGISTRY_WORK="false")
    command(settings, "jobs", "retry", str(failed["id"]))
    until_in_use(orders)
    until_in_use(asked)
    certificate = shown(orders, trust)
    assert shown(asked, trust) == certificate
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert sorted(names.value.get_values_for_type(x509.DNSName)) == sorted(DOMAINS)

    layout = write_layout(tmp_path / "layout", [make_image((5_000_000,))])
    options = (f"--dest-cert-dir={tmp_path}/certificates", f"--dest-creds=admin:{PASSWORD}")
    image = named(orders)
    run("skopeo", "copy", *options, f"oci:{layout}", f"docker://{image}")
    options = (f"--src-cert-dir={tmp_path}/certificates", f"--src-creds=admin:{PASSWORD}")
    run("skopeo", "copy", *options, f"docker://{named(asked)}", f"oci:{tmp_path}/pulled:1")

    # A lease that was closed: a new host with nothing of its own orders no other.
    orders.stop()
    asked.stop()
    issued = pebble.output().count("Issued certificate")
    new = serve(**settings, **elsewhere(pebble.port))
    assert shown(new, trust) == certificate
    for _ in until():
        if not command(settings, "jobs", "list", "--kind", certificates.KIND):
            break
    assert pebble.output().count("Issued certificate") == issued


def until_failed(settings: dict[str, str]) -> Any:
    for _ in until():
        for job in command(settings, "jobs", "list", "--kind", certificates.KIND):
            if job["error"]:
                return job
    raise AssertionError


def command(settings: dict[str, str], *words: str) -> Any:
    done = subprocess.run(
        [OPENREGISTRY, *words, "--json"], env=settings, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return json.loads(done.stdout)


def named(registry: Registry) -> str:
    return f"localhost:{registry.host.rpartition(':')[2]}/admin/hello:1"


@pytest.mark.long
def test_renewal_while_it_serves(
    serve: Serve,
    settings: dict[str, str],
    pebble: Pebble,
    trust: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In time, when its authority asks for that, and when the authority has lost our account."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pebble.certificate))
    registry = serve(**settings, **elsewhere(pebble.port), OPENREGISTRY_WORK="false")
    context = build_context(Settings.from_environment(settings))
    with pytest.raises(ssl.SSLCertVerificationError):
        shown(registry, trust)

    def renewed() -> int:
        certificates.renew(context, JOB)
        return kept(context).serial_number

    first = renewed()
    until_in_use(registry)
    assert shown(registry, trust).serial_number == first
    assert renewed() == first
    with Wire(int(registry.host.rpartition(":")[2]), tls=trust) as before:
        assert before.get("/health").status == 200

        now = datetime.now(UTC)
        chain = rows.find(context.database, pebble.directory_url, DOMAINS)
        assert chain is not None
        pebble.suggest(chain.chain, now - timedelta(hours=2), now - timedelta(hours=1))
        second = renewed()
        assert second != first
        until_in_use(registry, 2)
        assert shown(registry, trust).serial_number == second
        assert before.get("/health").status == 200

    # Two thirds of its life are over.
    context.database.run("UPDATE certificates SET not_before = now() - interval '9 years'")
    third = renewed()
    until_in_use(registry, 3)
    assert third not in (first, second)

    # An authority that is down harms nothing, until it is needed; ours has forgotten all then.
    pebble.stop()
    assert renewed() == third
    context.database.run("UPDATE certificates SET not_before = now() - interval '9 years'")
    with pytest.raises(TryAgain, match=r"cannot be used: .*refused"):
        renewed()
    pebble.start()
    with pytest.raises(TryAgain, match="accountDoesNotExist"):
        renewed()
    fourth = renewed()
    trust.load_verify_locations(cadata=pebble.root())
    until_in_use(registry, 4)
    assert shown(registry, trust).serial_number == fourth
    context.database.close()


def kept(context: Context) -> x509.Certificate:
    settings = context.settings
    found = rows.find(context.database, settings.acme_directory, settings.acme_domains)
    assert found is not None
    return x509.load_pem_x509_certificate(found.chain.encode())


# Without an authority.


def test_what_is_served_until_there_is_a_certificate(
    serve: Serve, postgres: Postgres, tmp_path: Path
) -> None:
    """All of the registry by TLS, and nothing of it without."""
    plain = free_port()
    settings = {
        "OPENREGISTRY_ACCESS": "accounts",
        "OPENREGISTRY_ACME_DOMAINS": "localhost",
        "OPENREGISTRY_ACME_DIRECTORY": f"https://127.0.0.1:{free_port()}/dir",
        "OPENREGISTRY_DATABASE_URL": postgres.new_database(),
        "OPENREGISTRY_SECRET_KEY": SECRET,
    }
    registry = serve(**settings, **elsewhere(plain))
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    with Wire(int(registry.host.rpartition(":")[2]), tls=anybody) as wire:
        assert wire.get("/v2/").status == 401
    with Wire(plain) as wire:
        for target in ("/v2/", "/health", "/ready", "/api/v1/openapi.json", "/account"):
            found = wire.get(target)
            assert (found.status, found["location"]) == (308, f"https://localhost{target}")
        assert wire.get("/.well-known/acme-challenge/a").status == 404
        found = wire.put("/v2/a/manifests/b", b"a body")
        assert found["location"] == "https://localhost/v2/a/manifests/b"
    assert "cannot be used: " in until_failed({**settings, "PATH": os.environ["PATH"]})["error"]
    registry.signal(signal.SIGTERM)
    for port in (plain, int(registry.host.rpartition(":")[2])):
        for _ in until():
            try:
                Wire(port).close()
            except OSError:
                break


def test_keys_are_nowhere_but_sealed(context: Context) -> None:
    """In a copy of the database, or in another row, they are of no use."""
    number = keep(context, context.keys)
    [[row]] = context.database.run("SELECT CAST(c AS text) FROM certificates c")
    assert b"a key".hex() not in row
    found = rows.find(context.database, context.settings.acme_directory, DOMAINS)
    assert found is not None
    assert context.keys.unseal(certificates.KEYS, number, found.key) == b"a key"
    with pytest.raises(SealError):
        context.keys.unseal(certificates.KEYS, str(uuid.uuid4()), found.key)
    with pytest.raises(SealError):
        context.keys.unseal(certificates.ACCOUNT_KEYS, number, found.key)


@pytest.fixture
def context(core_settings: Settings, postgres: Postgres) -> Iterator[Context]:
    with postgres.migrated_database() as url:
        built = build_context(
            replace(core_settings, database_url=url, access="accounts", acme_domains=DOMAINS)
        )
        yield built
        built.database.close()


def keep(context: Context, keys: Keys) -> str:
    """Keep a certificate whose key is sealed by these; its id."""
    number = str(uuid.uuid4())
    now = datetime.now(UTC)
    sealed = keys.seal(certificates.KEYS, number, b"a key")
    rows.keep(
        context.database, context.settings.acme_directory, DOMAINS[::-1],
        rows.Certificate(number, "a chain", sealed, now, now + timedelta(days=90)),
    )  # fmt: skip
    return number


def answer(context: Context, target: str, method: str = "GET", host: str = "") -> Any:
    path, _, query = target.partition("?")
    headers = Headers({"Host": host})
    return Challenges(context).act(Request(method, path, Query(query), headers))


def test_challenges(context: Context) -> None:
    rows.add_challenge(context.database, "a-token_1", "a-token_1.thumbprint")
    found = answer(context, "/.well-known/acme-challenge/a-token_1")
    assert (found.status, found.body) == (200, b"a-token_1.thumbprint")
    for token in ("another", "a-token_1/", "", "%00", "a" * 300):
        assert answer(context, f"/.well-known/acme-challenge/{token}").status in (404, 308)
    context.database.run("UPDATE acme_challenges SET created_at = now() - interval '2 days'")
    rows.expire(context.database)
    assert answer(context, "/.well-known/acme-challenge/a-token_1").status == 404


@pytest.mark.parametrize(
    ("host", "location"),
    [
        ("registry.example.test:80", "https://registry.example.test/a%0Ab/?n=1&last=c"),
        ("evil.example", "https://localhost/a%0Ab/?n=1&last=c"),
        ("", "https://localhost/a%0Ab/?n=1&last=c"),
    ],
)
def test_the_way_to_https(context: Context, host: str, location: str) -> None:
    for method in ("GET", "HEAD", "POST", "PUT"):
        found = answer(context, "/a\nb/?n=1&last=c", method, host)
        assert (found.status, dict(found.headers)["Location"]) == (308, location)


def test_another_secret_key(context: Context) -> None:
    """Keys are sealed anew while the former secret is known; a key that none opens is not used."""
    keep(context, Keys("the former secret key"))
    both = replace(context, keys=Keys("the next secret key", "the former secret key"))
    certificates.renew_seals(both)
    found = rows.find(context.database, context.settings.acme_directory, DOMAINS)
    assert found is not None
    assert Keys("the next secret key").unseal(certificates.KEYS, found.id, found.key) == b"a key"
    ordered = Ordered(context)
    former = ordered.context
    ordered.refresh()
    assert ordered.context is former
    assert certificates.due(found, context)


def test_only_workers_that_are_told_order(context: Context, database: Database) -> None:
    """A worker without the names, like one on Lambda, leaves the job to others."""
    [kind] = [kind for kind in KINDS if kind.name == certificates.KIND]
    silent = replace(kind, perform=lambda _context, _job: None)
    assert Worker(context, [silent]).drain() == 1
    database.run("UPDATE schedules SET due_at = now()")
    other = replace(context, settings=replace(context.settings, acme_domains=()))
    assert Worker(other, [silent]).drain() == 0
    assert Worker(context, [silent]).drain() == 1


@pytest.fixture
def database(context: Context) -> Database:
    return context.database


@pytest.mark.parametrize("name", ["*.example.org", "127.0.0.1", "[::1]", "https://a.org", "a b"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(SettingsError, match="must be names of hosts"):
        Settings.from_environment({"OPENREGISTRY_ACME_DOMAINS": f"a.example.org,{name}"})


def test_one_certificate_or_the_other() -> None:
    with pytest.raises(SettingsError, match="choose"):
        Settings.from_environment(
            {
                "OPENREGISTRY_ACME_DOMAINS": "a.example.org",
                "OPENREGISTRY_TLS_CERTIFICATE": "/c",
                "OPENREGISTRY_TLS_KEY": "/k",
            }
        )
