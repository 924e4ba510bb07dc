"""The Bearer challenge of every 401 (RFC 6750, section 3; distribution, "Token Authentication")."""

import re
from urllib.parse import urlsplit

from chalicelib.http import Request
from chalicelib.identity import Permission
from chalicelib.settings import Settings

_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")

_SCOPES = {
    Permission.PULL: "repository:{}:pull",
    Permission.PUSH: "repository:{}:pull,push",
    Permission.DELETE: "repository:{}:delete",
    Permission.CATALOG: "registry:catalog:*",
}


def service(settings: Settings) -> str:
    """The name by which tokens and challenges know this registry: the same on all its hosts."""
    return urlsplit(settings.public_url).netloc or "openregistry"


def base_url(settings: Settings, request: Request) -> str:
    """Scheme and host at which the client reaches us: PUBLIC_URL; without one, what the client
    itself said, as far as that is a host at all."""
    if settings.public_url:
        return settings.public_url
    host = request.headers.get("host", "")
    if _HOST.fullmatch(host) is None:
        host = str(settings.listen)
    return f"{'https' if request.secure else 'http'}://{host}"


def challenge(
    settings: Settings,
    request: Request,
    permission: Permission = Permission.LOGIN,
    repository: str | None = None,
    error: str = "",
    source: str = "",
) -> tuple[str, str]:
    """The header field that tells a client where to get which token; ``source`` is a repository
    that it is to be for as well, to pull from."""
    parts = [f'realm="{base_url(settings, request)}/token"', f'service="{service(settings)}"']
    if permission in _SCOPES:
        scope = _SCOPES[permission].format(repository)
        if source:
            scope += f" {_SCOPES[Permission.PULL].format(source)}"
        parts.append(f'scope="{scope}"')
    if error:
        parts.append(f'error="{error}"')
    return "WWW-Authenticate", "Bearer " + ",".join(parts)
