"""Names of registries and of images at them, as people write them."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from chalicelib.digests import is_digest
from chalicelib.registry.names import is_name, is_tag
from chalicelib.settings import is_loopback

_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::\d+)?"
)

DOCKER_HUB = "docker.io"
_DOCKER_HUB_API = "https://registry-1.docker.io"
"""Docker Hub's registry is at another host than its images are named by."""


class BadName(ValueError):
    """What was written names nothing. The text is a sentence."""


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry: ``host``, with the port where there is one, as images and `docker login` name it,
    and ``url``, under which its ``/v2/`` is; no slash at the end."""

    host: str
    url: str

    @classmethod
    def parse(cls, text: str) -> "Registry":
        """Read ``HOST[:PORT]``, or a URL. A host of this machine alone speaks HTTP, any other HTTPS
        (docker's rule), unless a URL says otherwise. Raises ``BadName``."""
        scheme, separator, rest = text.partition("://")
        host = (rest if separator else text).removesuffix("/")
        if separator and scheme not in ("http", "https"):
            raise BadName(f"{text!r} is no registry: its URL begins with https:// or http://.")
        if _HOST.fullmatch(host) is None:
            raise BadName(f"{text!r} is no registry: that is HOST, HOST:PORT, or a URL of one.")
        try:
            parts = urlsplit(f"//{host}")
            name, _ = parts.hostname or "", parts.port
        except ValueError:
            raise BadName(f"{text!r} is no registry: its port cannot be.") from None
        if host == DOCKER_HUB:
            return cls(host, _DOCKER_HUB_API)
        if not separator:
            scheme = "http" if is_loopback(name) else "https"
        return cls(host, f"{scheme}://{host}")

    @property
    def secure(self) -> bool:
        """Whether it is asked by TLS."""
        return self.url.startswith("https:")


@dataclass(frozen=True, slots=True)
class Reference:
    """An image at a registry: ``REPOSITORY``, and its tag or digest where they were named."""

    registry: Registry
    repository: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Read ``HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]``; a URL's scheme may stand before it.
        Raises ``BadName``."""
        scheme, separator, rest = text.partition("://")
        host, slash, path = (rest if separator else text).partition("/")
        if not slash or not (separator or _names_host(host)):
            raise BadName(
                f"{text!r} does not say which registry: HOST/REPOSITORY[:TAG][@DIGEST], such as"
                " registry.example.org/group/app:1.0."
            )
        registry = Registry.parse(f"{scheme}://{host}" if separator else host)
        path, at, digest = path.partition("@")
        repository, colon, tag = path.partition(":")
        if registry.host == DOCKER_HUB and "/" not in repository:
            repository = f"library/{repository}"
        if not is_name(repository):
            raise BadName(
                f"{repository!r} is no repository: its name has lower-case letters and digits, with"
                " single separators (. _ __ -) between them, and slashes."
            )
        if colon and not is_tag(tag):
            raise BadName(f"{tag!r} is no tag.")
        if at and not is_digest(digest):
            raise BadName(f"{digest!r} is no digest, such as sha256:… with 64 digits.")
        return cls(registry, repository, tag or None, digest or None)

    @property
    def reference(self) -> str:
        """What its manifest is asked for by: the digest, the tag, or ``latest``."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry.host}/{self.repository}{tag}{digest}"


def _names_host(text: str) -> bool:
    """Whether the first component of a name is a host rather than an account (docker's rule)."""
    return "." in text or ":" in text or is_loopback(text)
