import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chalicelib.settings import (
    Address,
    Settings,
    SettingsError,
    is_loopback,
    kept_secret_key,
    loose_modes,
    make_data_dir,
    secret_key,
    strangers,
)

SECRET = "s" * 20


def of(**values: str) -> Settings:
    return Settings.from_environment({f"OPENREGISTRY_{name}": v for name, v in values.items()})


def test_defaults() -> None:
    settings = of()
    assert settings.listen == Address("127.0.0.1", 5000)
    assert settings.data_dir == Path(".data").absolute()
    assert settings.database_url == settings.storage_url == settings.secret_key == ""
    assert settings.part_size == 8 << 20
    assert settings.manifest_limit == 4 << 20
    assert settings.body_timeout == 60
    assert settings.downloads == "redirect"
    assert settings.database_prepare
    assert not settings.sparse_manifests
    assert not settings.exposed
    assert settings == Settings()


def test_an_empty_value_is_none() -> None:
    assert of(LISTEN="", PART_SIZE=" ", SPARSE_MANIFESTS="") == Settings()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("LISTEN", "0.0.0.0:80", Address("0.0.0.0", 80)),
        ("LISTEN", ":5000", Address("0.0.0.0", 5000)),
        ("LISTEN", "[::1]:0", Address("::1", 0)),
        ("LISTEN", "localhost:5000", Address("localhost", 5000)),
        ("DATA_DIR", "/srv/registry", Path("/srv/registry")),
        ("DATA_DIR", "there", Path("there").absolute()),
        ("DATA_DIR", "~/there", Path.home() / "there"),
        ("DATABASE_URL", "postgresql://u:p@h/d", "postgresql://u:p@h/d"),
        ("STORAGE_URL", "s3://bucket/prefix?region=x", "s3://bucket/prefix?region=x"),
        ("PUBLIC_URL", "https://r.example.org/", "https://r.example.org"),
        ("UPLOAD_URL", "http://r.example.org:8080", "http://r.example.org:8080"),
        ("UPLOAD_URL", "HTTPS://R-1.Example.org.", "https://R-1.Example.org."),
        ("UPLOAD_URL", "http://10.0.0.1:80", "http://10.0.0.1:80"),
        ("UPLOAD_URL", "http://[fd00::1]", "http://[fd00::1]"),
        ("UPLOAD_URL", "http://[fd00::1]:80/", "http://[fd00::1]:80"),
        ("SPARSE_MANIFESTS", "TRUE", True),
        ("SPARSE_MANIFESTS", "0", False),
        ("DOWNLOADS", "Stream", "stream"),
        ("PART_SIZE", "16777216", 16 << 20),
        ("PART_SIZE", "16MiB", 16 << 20),
        ("PART_MEMORY", "1 GiB", 1 << 30),
        ("BODY_TIMEOUT", "90", 90),
        ("UPLOAD_EXPIRY", "2h", 7200),
        ("SHUTDOWN_TIMEOUT", "0", 0),
        ("WORKERS", "4", 4),
        ("LOG_LEVEL", "WARNING", "warning"),
    ],
)
def test_values(name: str, text: str, value: object) -> None:
    assert getattr(of(**{name: text}), name.lower()) == value


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("LISTEN", "5000", "must be host:port"),
        ("LISTEN", "host:", "must be host:port"),
        ("LISTEN", "host:70000", "must be host:port"),
        ("LISTEN", "host:²", "must be host:port"),
        ("LISTEN", "::1:5000", "brackets"),
        ("LISTEN", "a..b:5000", "neither a name"),
        ("LISTEN", "[::x]:5000", "neither a name"),
        ("LISTEN", "пример:5000", "neither a name"),
        ("LISTEN", "a" * 64 + ":5000", "neither a name"),
        ("DATA_DIR", "~nosuchuser/x", "home of a user"),
        ("IPFS_NODES", "http://a:5001,127.0.0.1:5001", "must begin with http"),
        ("IPFS_NODES", "http://", "must be like"),
        ("IPFS_NODES", "http://a?b", "must be like"),
        ("IPFS_NODES", "http://a:99999", "port that is none"),
        ("DATABASE_URL", "mysql://h/d", "must begin with postgresql://"),
        ("STORAGE_URL", "/srv/blobs", "must begin with file:// or s3://"),
        ("PUBLIC_URL", "registry.example.org", "must be a URL"),
        ("PUBLIC_URL", "https://example.org/registry", "a scheme and a host alone"),
        ("PUBLIC_URL", "https://u:p@example.org", "a scheme and a host alone"),
        ("PUBLIC_URL", "https:registry.example.org", "must be a URL"),
        ("PUBLIC_URL", "https://", "must be a URL"),
        ("PUBLIC_URL", "https://example.org?a", "a scheme and a host alone"),
        ("PUBLIC_URL", "https://пример.localhost", "neither a name"),
        ("PUBLIC_URL", 'https://foo bar"<.localhost', "neither a name"),
        ("PUBLIC_URL", "https://foo\tbar.localhost", "neither a name"),
        ("PUBLIC_URL", "https://:80", "neither a name"),
        ("PUBLIC_URL", "https://[::1", "neither a name"),
        ("PUBLIC_URL", "https://[fe80::1%25eth0]", "neither a name"),
        ("PUBLIC_URL", "https://::1", "neither a name"),
        ("UPLOAD_URL", "https://a..example.org", "neither a name"),
        ("UPLOAD_URL", "https://example.org:port", "port"),
        ("UPLOAD_URL", "https://example.org:", "port"),
        ("UPLOAD_URL", "https://example.org:65536", "port"),
        ("SECRET_KEY", "short", "16 characters"),
        ("SPARSE_MANIFESTS", "maybe", "true or false"),
        ("DOWNLOADS", "proxy", "must be one of redirect, stream"),
        ("PART_SIZE", "4MiB", "must be from 5242880"),
        ("PART_SIZE", "8 apples", "a number of bytes"),
        ("PART_SIZE", "-1", "a number of bytes"),
        ("BODY_TIMEOUT", "soon", "a number of seconds"),
        ("BODY_TIMEOUT", "0", "must be from 1"),
        ("WORKERS", "1.5", "a whole number"),
        ("WORKERS", "9" * 40, "a whole number"),
        ("LOG_LEVEL", "loud", "must be one of"),
    ],
)
def test_wrong_values(name: str, text: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence) as error:
        of(**{name: text})
    assert error.value.name == f"OPENREGISTRY_{name}"
    assert str(error.value).startswith(f"OPENREGISTRY_{name}: ")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SECRET_KEY", "tell"),
        ("DATABASE_URL", "mysql://user:tell@host/"),
        ("IPFS_NODES", "http://user:tell@host:tell"),
    ],
)
def test_a_wrong_secret_is_not_repeated(name: str, text: str) -> None:
    with pytest.raises(SettingsError) as error:
        of(**{name: text})
    assert "tell" not in str(error.value)


def test_a_pinning_service_takes_both() -> None:
    with pytest.raises(SettingsError, match="OPENREGISTRY_IPFS_PINNING_TOKEN: is needed too"):
        of(IPFS_PINNING_URL="https://pins.example.org")
    with pytest.raises(SettingsError, match="OPENREGISTRY_IPFS_PINNING_URL: is needed too"):
        of(IPFS_PINNING_TOKEN="token")


def test_tls_takes_both() -> None:
    with pytest.raises(SettingsError, match="OPENREGISTRY_TLS_KEY: is needed too"):
        of(TLS_CERTIFICATE="/cert.pem")
    with pytest.raises(SettingsError, match="OPENREGISTRY_TLS_CERTIFICATE: is needed too"):
        of(TLS_KEY="/key.pem")


def test_uploads_outlast_silent_bodies() -> None:
    with pytest.raises(SettingsError, match="BODY_TIMEOUT, 300 s") as error:
        of(UPLOAD_EXPIRY="299", BODY_TIMEOUT="5m")
    assert error.value.name == "OPENREGISTRY_UPLOAD_EXPIRY"
    assert of(UPLOAD_EXPIRY="300", BODY_TIMEOUT="5m").upload_expiry == 300
    with pytest.raises(SettingsError, match="UPLOAD_EXPIRY"):
        of(BODY_TIMEOUT="1h", UPLOAD_EXPIRY="30m")


@pytest.mark.parametrize(
    ("values", "exposed"),
    [
        ({"LISTEN": "127.0.0.1:1"}, False),
        ({"LISTEN": "127.1.2.3:1"}, False),
        ({"LISTEN": "[::1]:1"}, False),
        ({"LISTEN": "localhost:1"}, False),
        ({"LISTEN": "0.0.0.0:1"}, True),
        ({"LISTEN": ":1"}, True),
        ({"LISTEN": "[::]:1"}, True),
        ({"LISTEN": "10.0.0.1:1"}, True),
        ({"LISTEN": "registry.example.org:1"}, True),
        ({"PUBLIC_URL": "http://localhost:5000"}, False),
        ({"PUBLIC_URL": "http://[::1]:5000"}, False),
        ({"PUBLIC_URL": "https://registry.example.org"}, True),
        ({"PUBLIC_URL": "https://localhost.example.org"}, True),
        ({"UPLOAD_URL": "https://10.0.0.1"}, True),
    ],
)
def test_exposed(values: dict[str, str], exposed: bool) -> None:
    assert of(**values).exposed is exposed


def test_is_loopback() -> None:
    assert is_loopback("LOCALHOST")
    assert is_loopback("a.localhost")
    assert not is_loopback("")
    assert not is_loopback("127.0.0.1.example.org")


def test_secrets_are_masked() -> None:
    settings = of(
        SECRET_KEY=SECRET,
        DATABASE_URL=f"postgresql://user:{SECRET}@host:5/d?sslmode=require&password={SECRET}",
        STORAGE_URL=f"s3://bucket?endpoint=http://e&secret_key={SECRET}",
        IPFS_NODES=f"http://user:{SECRET}@a:5001, https://b/rpc/",
        IPFS_PINNING_URL=f"https://user:{SECRET}@c",
        IPFS_PINNING_TOKEN=SECRET,
    )
    assert SECRET not in repr(settings)
    shown = {name: value for name, value, _ in settings.shown()}
    assert SECRET not in str(shown)
    assert shown["OPENREGISTRY_SECRET_KEY"] == "***"
    assert shown["OPENREGISTRY_DATABASE_URL"].startswith("postgresql://user:***@host:5/d?sslmode=")
    assert shown["OPENREGISTRY_STORAGE_URL"].startswith("s3://bucket?endpoint=http://e")
    assert shown["OPENREGISTRY_IPFS_NODES"] == "http://user:***@a:5001,https://b/rpc"
    assert shown["OPENREGISTRY_IPFS_PINNING_URL"] == "https://user:***@c"
    assert shown["OPENREGISTRY_IPFS_PINNING_TOKEN"] == "***"
    assert shown["OPENREGISTRY_LISTEN"] == "127.0.0.1:5000"
    assert shown["OPENREGISTRY_DATABASE_PREPARE"] == "true"
    assert shown["OPENREGISTRY_WORKERS"] == "0"
    assert shown["OPENREGISTRY_PUBLIC_URL"] == ""


def test_each_setting_is_explained() -> None:
    assert all(text for _, _, text in Settings().shown())


def test_strangers() -> None:
    environ = {"OPENREGISTRY_DATADIR": "x", "OPENREGISTRY_LISTEN": "x", "PATH": "x"}
    assert list(strangers(environ)) == [
        "OPENREGISTRY_DATADIR is not a setting; OPENREGISTRY_DATA_DIR is"
    ]
    assert list(strangers({"OPENREGISTRY_X": ""})) == ["OPENREGISTRY_X is not a setting"]


def test_secret_key_that_is_set(tmp_path: Path) -> None:
    assert secret_key(Settings(secret_key=SECRET, data_dir=tmp_path / "none")) == SECRET
    assert not (tmp_path / "none").exists()


def test_secret_key_is_made_once(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "new" / "data")
    with ThreadPoolExecutor(8) as threads:
        keys = set(threads.map(lambda _: secret_key(settings), range(32)))
    [key] = keys
    assert len(key) >= 32
    [file] = settings.data_dir.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert secret_key(settings) == key


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "16 characters"),
        (b" \n", "16 characters"),
        (b"short\n", "16 characters"),
        (b"\xff\xfe" + bytes(40), "something else than a key"),
    ],
)
def test_a_kept_key_that_is_none(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "secret-key"
    path.write_bytes(content)
    for look in (secret_key, kept_secret_key):
        with pytest.raises(SettingsError, match=sentence) as error:
            look(Settings(data_dir=tmp_path))
        assert error.value.name == "OPENREGISTRY_SECRET_KEY"
        assert str(path) in str(error.value)
    assert path.read_bytes() == content


def test_a_kept_key_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "secret-key").mkdir()
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        secret_key(Settings(data_dir=tmp_path))


def test_looking_for_a_key_makes_none(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    assert kept_secret_key(settings) is None
    assert not settings.data_dir.exists()
    made = secret_key(settings)
    assert kept_secret_key(settings) == made
    assert kept_secret_key(Settings(data_dir=tmp_path / "none", secret_key=SECRET)) == SECRET


def test_a_key_that_others_may_read(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert not list(loose_modes(settings))
    secret_key(settings)
    assert not list(loose_modes(settings))
    (tmp_path / "secret-key").chmod(0o640)
    [sentence] = loose_modes(settings)
    assert str(tmp_path / "secret-key") in sentence
    assert "0640" in sentence
    assert not list(loose_modes(Settings(data_dir=tmp_path, secret_key=SECRET)))


@pytest.mark.parametrize("place", ["file", "file/below", "/dev/null/x", "/proc/x"])
def test_a_data_dir_that_cannot_be(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError) as error:
        secret_key(Settings(data_dir=tmp_path / place))
    assert str(error.value).startswith(f"OPENREGISTRY_DATA_DIR: {tmp_path / place} cannot be used")


def test_the_data_dir_is_for_its_owner_alone(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    make_data_dir(settings)
    assert stat.S_IMODE(settings.data_dir.stat().st_mode) == 0o700
    settings.data_dir.chmod(0o755)
    make_data_dir(settings)
    assert stat.S_IMODE(settings.data_dir.stat().st_mode) == 0o755


def test_from_the_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "OPENREGISTRY_WORKERS", "3")
    assert Settings.from_environment().workers == 3
