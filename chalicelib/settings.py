"""Every setting: an environment variable, read once into one frozen object.

Each has a default that works on a laptop. A wrong value raises ``SettingsError``, whose text is
the sentence that the person who set it reads.
"""

import difflib
import errno
import ipaddress
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit, urlunsplit

from chalicelib.folders import sync_folder

PREFIX = "OPENREGISTRY_"
KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
MINUTE, HOUR, DAY = 60, 3600, 86400


class SettingsError(Exception):
    """A setting that cannot be used: the variable's name, and a sentence that says why."""

    def __init__(self, name: str, sentence: str) -> None:
        super().__init__(f"{name}: {sentence}")
        self.name = name
        self.sentence = sentence


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    @property
    def here(self) -> "Address":
        """Where this machine reaches it: a server that listens everywhere listens on loopback."""
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
        return self._replace(host=everywhere.get(self.host, self.host))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in so many seconds."""

    count: int
    seconds: int

    def __str__(self) -> str:
        return f"{self.count}/{self.seconds}s"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host of that name or address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")


_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
"""A host's name (RFC 1123, section 2.1)."""


def _is_host(host: str) -> bool:
    """Whether it is a host's name, or an address: that of IPv6 in brackets."""
    if not host.startswith("["):
        return len(host) <= 253 and _NAME.fullmatch(host) is not None
    try:
        return host.endswith("]") and "%" not in host and bool(ipaddress.IPv6Address(host[1:-1]))
    except ValueError:
        return False


# Parsers: text to value. A ValueError's text becomes the sentence, after the name and the value.


def read_address(text: str) -> Address:
    """Raises ``ValueError``."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be host:port, like 127.0.0.1:5000")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError("must have an IPv6 address in brackets, like [::1]:5000")
    if host and not _is_host(host):
        raise ValueError("has a host that is neither a name of letters, digits, - and . nor an IP")
    return Address(host.strip("[]") or "0.0.0.0", int(port))  # noqa: S104


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ValueError("begins with the home of a user that is not known here") from None


def _flag(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("must be true or false")


def _origin(text: str) -> str:
    """A URL without path, query or credentials: clients take /v2/ to be at a host's root."""
    scheme, colon, rest = text.partition("://")
    if scheme.lower() not in ("http", "https") or not colon or not rest:
        raise ValueError("must be a URL, like https://registry.example.org")
    authority = rest.rstrip("/")
    if re.search(r"[/?#@]", authority):
        raise ValueError("must be a scheme and a host alone, like https://registry.example.org")
    match = re.fullmatch(r"(.*?)(?::([^\]]*))?", authority)
    host, port = match.groups() if match else ("", None)
    if not _is_host(host):
        raise ValueError("has a host that is neither a name of letters, digits, - and . nor an IP")
    if port is not None and not (re.fullmatch("[0-9]{1,5}", port) and int(port) < 65536):
        raise ValueError("has a port that is none")
    return f"{scheme.lower()}://{authority}"


def _url(*schemes: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        try:
            scheme = urlsplit(text).scheme
        except ValueError:  # whose own text would repeat the password
            raise ValueError("is no URL") from None
        if scheme not in schemes:
            raise ValueError("must begin with " + " or ".join(f"{scheme}://" for scheme in schemes))
        return text

    return parse


def _server(text: str) -> str:
    """A URL that paths are put behind, with an account perhaps."""
    _url("http", "https")(text)
    url = urlsplit(text)
    try:
        port = url.port  # raises ValueError
    except ValueError:
        raise ValueError("has a port that is none") from None
    if not url.hostname or port == 0 or url.query or url.fragment:
        raise ValueError("must be like http://127.0.0.1:5001")
    return text.rstrip("/")


def _secret(text: str) -> str:
    if len(text) < 16:
        raise ValueError("must have 16 characters or more, like those of `openssl rand -hex 32`")
    return text


def _choice(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in names:
            raise ValueError("must be one of " + ", ".join(names))
        return text.lower()

    return parse


def _quantity(units: Mapping[str, int], low: int, high: int, wanted: str) -> Callable[[str], int]:
    def parse(text: str) -> int:
        match = re.fullmatch(r"([0-9]{1,15})\s*([A-Za-z]*)", text)
        if match is None or match[2].lower() not in units:
            raise ValueError(f"must be {wanted}")
        value = int(match[1]) * units[match[2].lower()]
        if not low <= value <= high:
            raise ValueError(f"must be from {low} to {high}")
        return value

    return parse


def _size(low: int, high: int) -> Callable[[str], int]:
    units = {"": 1, "b": 1, "k": KIB, "kib": KIB, "m": MIB, "mib": MIB, "g": GIB, "gib": GIB}
    units |= {"t": TIB, "tib": TIB}
    return _quantity(units, low, high, "a number of bytes, like 8388608 or 8MiB")


def _seconds(low: int, high: int) -> Callable[[str], int]:
    units = {"": 1, "s": 1, "m": MINUTE, "h": HOUR, "d": DAY}
    return _quantity(units, low, high, "a number of seconds, like 90 or 10m")


def _number(low: int, high: int) -> Callable[[str], int]:
    return _quantity({"": 1}, low, high, "a whole number")


def _list(parse: Callable[[str], str]) -> Callable[[str], tuple[str, ...]]:
    def parse_all(text: str) -> tuple[str, ...]:
        return tuple(parse(each.strip()) for each in text.split(",") if each.strip())

    return parse_all


def _bundle(text: str) -> str:
    domain, equals, place = text.partition("=")
    if not equals or not _is_host(domain) or not place.startswith(("/", "https://", "http://")):
        raise ValueError("must be like example.org=/path/of/bundle.json or example.org=https://…")
    return text


def _public_key(text: str) -> str:
    if re.fullmatch("[A-Za-z0-9_-]{43}", text) is None:
        raise ValueError("must be public keys, as `openregistry resolve key` prints them")
    return text


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        raise ValueError("must be networks like 10.0.0.0/8, or addresses") from None


def _domain(text: str) -> str:
    name = text.lower()
    if not _is_host(name) or re.fullmatch(r"[0-9.]+|\[.*", name):
        raise ValueError("must be names of hosts, like registry.example.org")
    return name


def _domains(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_list(_domain)(text)))


def _rate(text: str) -> Rate:
    count, slash, period = text.partition("/")
    if not slash:
        raise ValueError("must be a number in a time, like 100/6h")
    return Rate(_number(1, 10**9)(count.strip()), _seconds(1, 30 * DAY)(period.strip()))


def _told(parse: Callable[[str], Any], text: str) -> dict[str, Any]:
    return {"parse": parse, "help": text}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a person may choose. Sizes are in bytes, times in seconds. What ``repr`` leaves out is
    secret."""

    listen: Address = field(
        default=Address("127.0.0.1", 5000),
        metadata=_told(read_address, "host:port that `serve` listens on"),
    )
    data_dir: Path = field(
        default=Path(".data").absolute(),
        metadata=_told(_path, "where this host keeps what has no other place"),
    )
    database_url: str = field(
        default="",
        repr=False,
        metadata=_told(
            _url("postgresql", "postgres"),
            "postgresql:// URL; without one `serve` runs its own Postgres in DATA_DIR/postgres",
        ),
    )
    storage_url: str = field(
        default="",
        repr=False,
        metadata=_told(
            _url("file", "s3"),
            "where blobs are kept: file:///path, or s3://bucket/prefix?endpoint=…&region=…;"
            " without one DATA_DIR/blobs",
        ),
    )
    storage_access_key: str = field(
        default="",
        metadata=_told(
            str,
            "the id of the access key of STORAGE_URL's bucket, where that is another than AWS's"
            " tools find",
        ),
    )
    storage_secret_key: str = field(
        default="", repr=False, metadata=_told(str, "the secret of the same access key")
    )
    public_url: str = field(
        default="",
        metadata=_told(
            _origin, "scheme and host at which clients reach the registry; else Locations are paths"
        ),
    )
    upload_url: str = field(
        default="",
        metadata=_told(_origin, "scheme and host that take uploads, where that is another host"),
    )
    secret_key: str = field(
        default="",
        repr=False,
        metadata=_told(
            _secret,
            "signs upload Locations, the same on every host; without one DATA_DIR/secret-key is"
            " made",
        ),
    )
    old_secret_key: str = field(
        default="",
        repr=False,
        metadata=_told(_secret, "the former SECRET_KEY: what it signed holds while keys change"),
    )
    access: str = field(
        default="",
        metadata=_told(
            _choice("open", "accounts"),
            "who may do what. open: everyone everything, on loopback only, and the default there"
            " with an embedded database; accounts: the default elsewhere",
        ),
    )
    sign_up: str = field(
        default="invitation",
        metadata=_told(
            _choice("open", "invitation", "closed"), "who may make an account: by the API"
        ),
    )
    admin_name: str = field(
        default="admin",
        metadata=_told(str, "the first administrator's name, made when `serve` finds none"),
    )
    admin_email: str = field(
        default="", metadata=_told(str, "the first administrator's email, with ADMIN_PASSWORD")
    )
    admin_password: str = field(
        default="",
        repr=False,
        metadata=_told(
            str, "the first administrator's password; without one a link for one use is printed"
        ),
    )
    ipfs_nodes: tuple[str, ...] = field(
        default=(),
        repr=False,
        metadata=_told(
            _list(_server),
            "URLs of the RPC of IPFS nodes (Kubo), by commas, with user:password@ where they want"
            " it: the resolver `ipfs`. All keep the same",
        ),
    )
    ipfs_gateways: tuple[str, ...] = field(
        default=(),
        metadata=_told(
            _list(_url("http", "https")),
            "URLs of gateways at which clients find what those nodes have, before /ipfs/CID",
        ),
    )
    ipfs_pinning_url: str = field(
        default="",
        repr=False,
        metadata=_told(
            _server,
            "URL before /pins of a pinning service (or of IPFS Cluster's), asked to keep what those"
            " nodes have",
        ),
    )
    ipfs_pinning_token: str = field(
        default="", repr=False, metadata=_told(str, "access token for IPFS_PINNING_URL")
    )
    resolver_origins: tuple[str, ...] = field(
        default=(),
        metadata=_told(
            _list(_origin),
            "origins, by commas, that resolvers which people add may have beside Filebase's own",
        ),
    )
    trusted_keys: tuple[str, ...] = field(
        default=(),
        metadata=_told(
            _list(_public_key),
            "public keys, by commas, of registries whose images are pulled from networks",
        ),
    )
    new_repositories: str = field(
        default="private",
        metadata=_told(
            _choice("private", "public"), "visibility of new repositories, unless an account says"
        ),
    )
    mail_url: str = field(
        default="",
        repr=False,
        metadata=_told(
            _url("smtp", "smtps", "ses", "file"),
            "what sends mail: smtp://user:password@host:587 (STARTTLS where offered), smtps://…,"
            " ses://?region=…, or file:///folder; without one DATA_DIR/mail",
        ),
    )
    mail_from: str = field(
        default="OpenRegistry <registry@localhost>",
        metadata=_told(str, "the sender of mail"),
    )
    github_client_id: str = field(
        default="", metadata=_told(str, "of a GitHub OAuth app: sign-in with GitHub")
    )
    github_client_secret: str = field(
        default="", repr=False, metadata=_told(str, "of the same GitHub OAuth app")
    )
    github_url: str = field(
        default="https://github.com", metadata=_told(_origin, "GitHub, or an Enterprise Server")
    )
    github_api_url: str = field(
        default="https://api.github.com",
        metadata=_told(_url("https", "http"), "the API of the same GitHub"),
    )
    oidc_issuer: str = field(
        default="",
        metadata=_told(_url("https", "http"), "an OpenID provider: sign-in with it"),
    )
    oidc_client_id: str = field(default="", metadata=_told(str, "our id at OIDC_ISSUER"))
    oidc_client_secret: str = field(
        default="", repr=False, metadata=_told(str, "our secret at OIDC_ISSUER")
    )
    private_issuers: tuple[str, ...] = field(
        default=(),
        metadata=_told(
            _list(_origin),
            "origins, by commas, of issuers at private addresses, which are else never asked",
        ),
    )
    private_webhooks: tuple[str, ...] = field(
        default=(),
        metadata=_told(
            _list(_origin),
            "origins, by commas, of webhooks at private addresses, which are else never sent to",
        ),
    )
    spiffe_bundles: tuple[str, ...] = field(
        default=(),
        metadata=_told(
            _list(_bundle),
            "trust bundles by commas: domain=/path/of/bundle.json or domain=https://…",
        ),
    )
    trusted_proxies: tuple[str, ...] = field(
        default=(),
        metadata=_told(
            _list(_network),
            "networks, by commas, of proxies in front whose X-Forwarded-For is believed",
        ),
    )
    pull_limit: Rate | None = field(
        default=None,
        metadata=_told(_rate, "manifests that an account may pull, like 1000/6h"),
    )
    anonymous_pull_limit: Rate | None = field(
        default=None,
        metadata=_told(_rate, "manifests that an address may pull without an account"),
    )
    sparse_manifests: bool = field(
        default=False,
        metadata=_told(_flag, "admit manifests whose layers or children are missing here"),
    )
    downloads: str = field(
        default="redirect",
        metadata=_told(
            _choice("redirect", "stream", "gateway", "network"),
            "redirect: send clients to storage where it can presign; stream: never; gateway: to an"
            " IPFS gateway where one has the blob; network: send what a network has from there",
        ),
    )
    part_size: int = field(
        default=8 * MIB,
        metadata=_told(_size(5 * MIB, GIB), "size of the parts in which blobs go to S3"),
    )
    part_memory: int = field(
        default=32 * MIB,
        metadata=_told(
            _size(8 * MIB, 64 * GIB), "memory for parts on their way, of all workers together"
        ),
    )
    manifest_limit: int = field(
        default=4 * MIB, metadata=_told(_size(1, 256 * MIB), "largest manifest")
    )
    upload_expiry: int = field(
        default=HOUR,
        metadata=_told(_seconds(60, 7 * DAY), "an upload that is idle for longer is removed"),
    )
    presign_expiry: int = field(
        default=20 * MINUTE, metadata=_told(_seconds(60, 7 * DAY), "life of a redirect to storage")
    )
    grace: int = field(
        default=DAY,
        metadata=_told(
            _seconds(1, 365 * DAY), "what nothing names any more is removed after so long"
        ),
    )
    collect_untagged: int | None = field(
        default=None,
        metadata=_told(
            _seconds(0, 3650 * DAY),
            "manifests without a tag are removed after so long, like 7d; without one they stay",
        ),
    )
    body_timeout: int = field(
        default=60,
        metadata=_told(_seconds(1, HOUR), "a request whose body falls silent for longer is ended"),
    )
    shutdown_delay: int = field(
        default=0,
        metadata=_told(
            _seconds(0, HOUR),
            "how long after SIGTERM connections are still taken, while /ready says no: what a"
            " balancer needs to notice",
        ),
    )
    shutdown_timeout: int = field(
        default=10 * MINUTE,
        metadata=_told(_seconds(0, DAY), "how long running requests may go on after SIGTERM"),
    )
    workers: int = field(
        default=0, metadata=_told(_number(0, 256), "processes of `serve`; 0: by the cores")
    )
    work: bool = field(
        default=True,
        metadata=_told(_flag, "whether `serve` does jobs too; false where others run `work`"),
    )
    status_probes: bool = field(
        default=True,
        metadata=_told(
            _flag, "whether the registry tries itself every five minutes, for the page /status"
        ),
    )
    metrics_listen: Address | None = field(
        default=None,
        metadata=_told(
            read_address,
            "host:port at which Prometheus is answered, which nobody else should reach",
        ),
    )
    database_pool: int = field(
        default=8, metadata=_told(_number(1, 1000), "Postgres connections of each process")
    )
    queue_url: str = field(
        default="",
        metadata=_told(
            _url("https", "http"),
            "SQS queue by which functions on Lambda count pulls and wake workers",
        ),
    )
    database_prepare: bool = field(
        default=True,
        metadata=_told(_flag, "prepare statements; false behind a pooler that forgets them"),
    )
    tls_certificate: Path | None = field(
        default=None, metadata=_told(_path, "PEM file: `serve` speaks HTTPS")
    )
    tls_key: Path | None = field(
        default=None, metadata=_told(_path, "PEM file: the certificate's key")
    )
    acme_domains: tuple[str, ...] = field(
        default=(),
        metadata=_told(
            _domains,
            "names, by commas, for which `serve` gets itself a certificate: it speaks HTTPS",
        ),
    )
    acme_directory: str = field(
        default="https://acme-v02.api.letsencrypt.org/directory",
        metadata=_told(_url("https"), "the certificate authority that gives it (RFC 8555)"),
    )
    acme_listen: Address = field(
        default=Address("0.0.0.0", 80),  # noqa: S104
        metadata=_told(
            read_address, "host:port that the certificate authority asks; it has to be its port 80"
        ),
    )
    log_level: str = field(
        default="info",
        metadata=_told(
            _choice("debug", "info", "warning", "error"),
            "what is logged; from warning on no requests are",
        ),
    )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """The settings that an environment holds. An empty value is none. Raises
        ``SettingsError``."""
        values: dict[str, Any] = {}
        for each in fields(cls):
            text = environ.get(variable(each), "").strip()
            if text:
                try:
                    values[each.name] = each.metadata["parse"](text)
                except ValueError as error:
                    said = f"{text!r} " if each.repr else ""
                    raise SettingsError(variable(each), f"{said}{error}") from None
        settings = cls(**values)
        if (settings.tls_certificate is None) != (settings.tls_key is None):
            missing = "TLS_KEY" if settings.tls_key is None else "TLS_CERTIFICATE"
            raise SettingsError(PREFIX + missing, "is needed too: TLS takes both")
        if settings.tls_certificate and settings.acme_domains:
            raise SettingsError(
                PREFIX + "ACME_DOMAINS",
                f"has a certificate ordered, and {PREFIX}TLS_CERTIFICATE names one: choose",
            )
        if bool(settings.ipfs_pinning_url) != bool(settings.ipfs_pinning_token):
            missing = "TOKEN" if settings.ipfs_pinning_url else "URL"
            raise SettingsError(
                f"{PREFIX}IPFS_PINNING_{missing}", "is needed too: a pinning service takes both"
            )
        if settings.upload_expiry < settings.body_timeout:
            raise SettingsError(
                PREFIX + "UPLOAD_EXPIRY",
                f"is {settings.upload_expiry} s, and must be no shorter than"
                f" {PREFIX}BODY_TIMEOUT, {settings.body_timeout} s: an upload whose body may still"
                " be silent would be removed",
            )
        return settings

    @property
    def secure(self) -> bool:
        """Whether `serve` speaks TLS itself."""
        return bool(self.tls_certificate or self.acme_domains)

    @property
    def exposed(self) -> bool:
        """Whether another machine can reach the registry."""
        if not is_loopback(self.listen.host) or self.acme_domains:
            return True
        urls = (self.public_url, self.upload_url)
        return any(url and not is_loopback(urlsplit(url).hostname or "") for url in urls)

    def shown(self) -> Iterator[tuple[str, str, str]]:
        """(variable, value, help) of each setting, for a person to read: secrets are masked."""
        for each in fields(self):
            value = getattr(self, each.name)
            text = str(value).lower() if isinstance(value, bool) else str(value or "")
            if isinstance(value, int) and not isinstance(value, bool):
                text = str(value)
            if isinstance(value, tuple) and not isinstance(value, Address):
                text = ",".join(value if each.repr else map(_masked, value))
            elif text and not each.repr:
                text = _masked(text)
            yield variable(each), text, each.metadata["help"]


def parse_seconds(text: str) -> int:
    """A time like 90d, from a second to ten years. Raises ``ValueError`` with a sentence."""
    try:
        return _seconds(1, 3650 * DAY)(text.strip())
    except ValueError as error:
        raise ValueError(f"{text!r} {error}") from None


def parse_size(text: str) -> int:
    """A size in bytes like 10G, up to 2 to the 60th. Raises ``ValueError`` with a sentence."""
    try:
        return _size(0, 1 << 60)(text.strip())
    except ValueError as error:
        raise ValueError(f"{text!r} {error}") from None


def variable(setting: "Field[Any]") -> str:
    """The environment variable of a field of ``Settings``."""
    return PREFIX + setting.name.upper()


def strangers(environ: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each variable that looks like a setting and is none: a slip of the pen."""
    known = [each.name.upper() for each in fields(Settings)]
    for name in environ:
        if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in known:
            near = difflib.get_close_matches(name.removeprefix(PREFIX), known, n=1)
            yield f"{name} is not a setting" + (f"; {PREFIX}{near[0]} is" if near else "")


def secret_key(settings: Settings) -> str:
    """The key that signs: SECRET_KEY, or the one kept in DATA_DIR, made when there is none.
    Processes that start at once agree on one. Raises ``SettingsError``."""
    found = kept_secret_key(settings)
    if found is not None:
        return found
    path = _key_file(settings)
    make_data_dir(settings)
    try:
        # mkstemp gives mode 0600; link, unlike rename, never replaces another's key.
        number, name = tempfile.mkstemp(dir=settings.data_dir, prefix=".secret-key-")
        try:
            with os.fdopen(number, "w") as file:
                file.write(secrets.token_hex(32))
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):
                path.hardlink_to(name)
        finally:
            Path(name).unlink()
        sync_folder(settings.data_dir)
        return _read_key(path)
    except OSError as error:
        raise _wrong_key(f"{path} cannot be made: {error.strerror}") from None


def kept_secret_key(settings: Settings) -> str | None:
    """The key that signs, None where none has been made yet. Raises ``SettingsError`` for one
    that cannot be used."""
    if settings.secret_key:
        return settings.secret_key
    path = _key_file(settings)
    try:
        return _read_key(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _wrong_key(f"{path} cannot be read: {error.strerror}") from None


def loose_modes(settings: Settings) -> Iterator[str]:
    """A sentence for each file of secrets in DATA_DIR that others may read."""
    path = _key_file(settings)
    mode = 0
    with suppress(OSError):
        mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077 and not settings.secret_key:
        yield f"{path} has mode {mode:04o}, and whoever reads it can forge uploads: chmod 600"


def _key_file(settings: Settings) -> Path:
    return settings.data_dir / "secret-key"


def _read_key(path: Path) -> str:
    try:
        return _secret(path.read_bytes().decode().strip())
    except UnicodeDecodeError:
        raise _wrong_key(f"{path} holds something else than a key") from None
    except ValueError as error:
        raise _wrong_key(f"{path} holds no key: it {error}") from None


def _wrong_key(sentence: str) -> SettingsError:
    return SettingsError(PREFIX + "SECRET_KEY", f"is not set, and {sentence}")


def check_folder(path: Path) -> None:
    """Raise ``OSError`` where that is no folder to write into, and cannot be made one. Makes
    nothing."""
    while not path.exists() and path != path.parent:
        path = path.parent
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{path} is no folder")
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"{path} cannot be written to")


def check_data_dir(settings: Settings) -> None:
    """Raise ``SettingsError`` where DATA_DIR cannot be used. Makes nothing."""
    try:
        check_folder(settings.data_dir)
    except OSError as error:
        raise _wrong_data_dir(settings, error) from None


def make_data_dir(settings: Settings) -> None:
    """Make DATA_DIR, for its owner alone, unless it is there. Raises ``SettingsError``."""
    check_data_dir(settings)
    try:
        settings.data_dir.parent.mkdir(parents=True, exist_ok=True)
        settings.data_dir.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _wrong_data_dir(settings, error) from None


def _wrong_data_dir(settings: Settings, error: OSError) -> SettingsError:
    return SettingsError(
        PREFIX + "DATA_DIR", f"{settings.data_dir} cannot be used: {error.strerror}"
    )


def _masked(text: str) -> str:
    """A URL without its password and keys; of any other secret, nothing."""
    url = urlsplit(text)
    if not url.scheme or not url.netloc + url.path or url.fragment:
        return "***"
    account, at, host = url.netloc.rpartition("@")
    name, colon, _ = account.partition(":")
    query = re.sub(r"((?:password|secret|token|key)[^=&]*)=[^&]*", r"\1=***", url.query)
    netloc = name + (":***" if colon else "") + at + host
    return urlunsplit((url.scheme, netloc, url.path, query, ""))
