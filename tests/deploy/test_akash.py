"""What is deployed to Akash, checked by the chain's own validator, and by the registry."""

import copy
import json
import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from chalicelib.hosts import check_access
from chalicelib.settings import Settings, strangers
from tests.conftest import need
from tests.deploy.engines import TAG, Engine
from tests.hosts.pebble import Names, Pebble
from tests.hosts.wire import until
from tests.images import make_image, write_layout
from tests.servers import BIN, S3, Postgres, free_port, run, stopping

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "akash"
FILES = ("registry", "ingress", "full")
SDK = "@akashnetwork/chain-sdk@1.0.0-alpha.25"
SIZE = re.compile(r"([1-9][0-9]*)(Mi|Gi)")
BYTES = {"Mi": 1 << 20, "Gi": 1 << 30}
VALUES = {
    "IMAGE": "registry.example.org/openregistry:0.1.0",
    "POSTGRES_IMAGE": "registry.example.org/postgres:0.1.0",
    "DOMAIN": "registry.example.org",
    "SECRET_KEY": "0123456789abcdef" * 4,
    "DATABASE_URL": "postgresql://registry:a@db.example.org/registry?sslmode=verify-full",
    "DATABASE_PASSWORD": "0123456789abcdef",
    "STORAGE_URL": "s3://bucket/registry?endpoint=https://s3.example.org&region=auto",
    "STORAGE_KEY": "key",
    "STORAGE_SECRET": "secret",
    "BACKUP_ENDPOINT": "s3.example.org",
    "BACKUP_REGION": "auto",
    "BACKUP_BUCKET": "backups",
    "BACKUP_KEY": "key",
    "BACKUP_SECRET": "secret",
    "BACKUP_PASSPHRASE": "0123456789abcdef",
    "MAIL_URL": "",
    "ADMIN_EMAIL": "admin@example.org",
    "ADMIN_PASSWORD": "correct horse: battery #staple",  # YAML has a meaning for these
}


def text(name: str) -> str:
    return (FOLDER / f"{name}.yaml").read_text()


def sdl(name: str) -> dict[str, Any]:
    """As `envsubst` gives it to the provider."""
    filled = re.sub(r"\$\{(\w+)\}", lambda match: VALUES[match[1]], text(name))
    loaded: dict[str, Any] = yaml.safe_load(filled)
    return loaded


def environment(service: dict[str, Any]) -> dict[str, str]:
    return dict(line.split("=", 1) for line in service["env"])


@pytest.mark.parametrize("name", FILES)
def test_sizes_have_a_unit(name: str) -> None:
    """The validator takes any letter for one."""
    for profile in sdl(name)["profiles"]["compute"].values():
        resources = profile["resources"]
        sizes = [resources["memory"]["size"], *(each["size"] for each in resources["storage"])]
        assert all(SIZE.fullmatch(size) for size in sizes), sizes


@pytest.mark.parametrize("name", FILES)
def test_the_registry_takes_its_settings(name: str) -> None:
    parts = sdl(name)
    registry = parts["services"]["registry"]
    given = environment(registry)
    assert list(strangers(given)) == []
    settings = Settings.from_environment(given)
    assert settings.public_url == f"https://{VALUES['DOMAIN']}"
    assert check_access(settings) == "accounts"
    # Nothing that matters is on a disk of the container.
    assert settings.secret_key
    assert settings.database_url
    assert settings.storage_url.startswith("s3://")
    ports = {each.get("as", each["port"]): each["port"] for each in registry["expose"]}
    if name == "ingress":
        assert ports == {80: settings.listen.port}
        [options] = [each["http_options"] for each in registry["expose"]]
        assert settings.body_timeout * 1000 < options["read_timeout"]
        assert settings.trusted_proxies
    else:
        assert ports == {443: settings.listen.port, 80: settings.acme_listen.port}
        assert settings.acme_domains == (VALUES["DOMAIN"],)
        # Its user is nobody of note, whom low ports may be forbidden.
        assert min(ports.values()) >= 1024


def test_the_services_know_each_other() -> None:
    services = sdl("full")["services"]
    settings = Settings.from_environment(environment(services["registry"]))
    for url in (settings.database_url, *settings.ipfs_nodes):
        host, port = urlsplit(url).hostname, urlsplit(url).port
        [exposed] = [each for each in services[host]["expose"] if each["port"] == port]
        assert exposed["to"] == [{"service": "registry"}], "nobody else reaches it"
    kubo = re.search(r"ipfs/kubo (v[0-9.]+)", (ROOT / "tests/clients/kubo/go.mod").read_text())
    assert kubo is not None
    assert services["ipfs"]["image"] == f"ipfs/kubo:{kubo[1]}", "the one that is tested"


@pytest.mark.parametrize("name", FILES)
def test_the_page_tells_of_every_value(name: str) -> None:
    page = (ROOT / "docs" / "akash.md").read_text()
    for value in set(re.findall(r"\$\{(\w+)\}", text(name))):
        assert f"`{value}`" in page, value


# By the chain's own SDK.


@pytest.fixture(scope="module")
def sdk() -> Path:
    """Its folder; it is fetched once."""
    folder = Path.home() / ".cache/openregistry/akash" / SDK.rpartition("@")[2]
    if not (folder / "node_modules").exists():
        (folder / "new").mkdir(parents=True, exist_ok=True)
        options = ("--no-save", "--no-audit", "--no-fund", "--ignore-scripts")
        run(BIN / "npm", "install", "--prefix", folder / "new", *options, SDK)
        (folder / "new/node_modules").replace(folder / "node_modules")
    return folder


def checked(sdk: Path, parts: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [BIN / "node", Path(__file__).with_name("validate_sdl.cjs"), sdk],
        input=json.dumps(parts), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.long
@pytest.mark.parametrize("name", FILES)
def test_the_chain_takes_it(sdk: Path, name: str) -> None:
    parts = sdl(name)
    [group] = checked(sdk, parts)["manifest"]
    made = {service["name"]: service for service in group["services"]}
    assert set(made) == set(parts["services"])
    for service_name, service in parts["services"].items():
        resources = parts["profiles"]["compute"][service_name]["resources"]
        asked = made[service_name]["resources"]
        assert made[service_name]["image"] == service["image"]
        assert made[service_name]["env"] == service["env"]
        assert int(asked["memory"]["quantity"]["val"]) == size(resources["memory"]["size"])
        assert [int(each["quantity"]["val"]) for each in asked["storage"]] == [
            size(each["size"]) for each in resources["storage"]
        ]


def size(text: str) -> int:
    match = SIZE.fullmatch(text)
    assert match is not None
    return int(match[1]) * BYTES[match[2]]


@pytest.mark.long
def test_the_chain_refuses_what_is_wrong(sdk: Path) -> None:
    """So that its word counts."""
    right = sdl("full")

    def refused(change: Any) -> str:
        parts = copy.deepcopy(right)
        change(parts)
        return " ".join(checked(sdk, parts)["errors"])

    def without_address(parts: dict[str, Any]) -> None:
        del parts["endpoints"]

    def without_a_place(parts: dict[str, Any]) -> None:
        del parts["services"]["postgres"]["params"]

    def too_large(parts: dict[str, Any]) -> None:
        parts["services"]["registry"]["expose"][0]["http_options"] = {"max_body_size": 200 << 20}

    def without_a_price(parts: dict[str, Any]) -> None:
        del parts["profiles"]["placement"]["akash"]["pricing"]["ipfs"]

    assert 'Unknown endpoint "registry"' in refused(without_address)
    assert "requires a mount path" in refused(without_a_place)
    assert "104857600" in refused(too_large)
    assert 'pricing for the "ipfs" profile' in refused(without_a_price)


# In the image.


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_image_with_these_settings(
    engine: Engine, directory: Path, postgres: Postgres, s3_server: S3, tmp_path: Path
) -> None:
    """What `registry.yaml` says, but for the places: it gets itself a certificate, and takes a
    push by TLS."""
    need("skopeo", "skopeo")
    names = Names(directory / "akash-names")
    pebble = Pebble(directory / "akash-pebble", names)
    https = free_port()
    given = {
        **environment(sdl("registry")["services"]["registry"]),
        "OPENREGISTRY_LISTEN": f"127.0.0.1:{https}",
        "OPENREGISTRY_ACME_LISTEN": f"127.0.0.1:{pebble.port}",
        "OPENREGISTRY_ACME_DIRECTORY": pebble.directory_url,
        "OPENREGISTRY_ACME_DOMAINS": "localhost",
        "OPENREGISTRY_PUBLIC_URL": f"https://localhost:{https}",
        "OPENREGISTRY_DATABASE_URL": postgres.new_database(),
        "OPENREGISTRY_STORAGE_URL": s3_server.new_storage_url(),
        "REQUESTS_CA_BUNDLE": "/pebble.pem",
        **s3_server.environment(),
    }
    words = [f"--env={name}={value}" for name, value in given.items()]
    words += ["--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--network=host"]
    words += [f"--volume={pebble.certificate}:/pebble.pem:ro"]
    with stopping(names), stopping(pebble):
        names.start()
        pebble.start()
        with engine.container(*words, TAG) as container:
            for _ in until(60):
                if "a certificate that holds until" in container.log():
                    break
            (tmp_path / "trust").mkdir()
            (tmp_path / "trust/root.crt").write_text(pebble.root())
            layout = write_layout(tmp_path / "layout", [make_image((100_000,))])
            creds = f"--dest-creds=admin:{VALUES['ADMIN_PASSWORD']}"
            name = f"docker://localhost:{https}/admin/hello:1"
            for _ in until(30):  # until all of its workers have it
                trust = f"--dest-cert-dir={tmp_path}/trust"
                done = run("skopeo", "copy", trust, creds, f"oci:{layout}", name, check=False)
                if done.returncode == 0:
                    break
            for _ in until(60):
                if container.health() == "healthy":
                    break
