"""An OpenID provider on 127.0.0.1: discovery, keys that rotate, and workloads' tokens.

The claims have the shapes of GitHub Actions' and GitLab CI's tokens, after "OpenID Connect
reference" in GitHub's documentation and "OpenID Connect (OIDC) Authentication Using ID Tokens" in
GitLab's. What it answers is in ``routes``: tests put answers of their own there, well-behaved or
not.
"""

import json
import secrets
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from jwt.algorithms import get_default_algorithms
from jwt.api_jws import PyJWS

DISCOVERY = "/.well-known/openid-configuration"
KEYS = "/.well-known/jwks"

_MAKERS: dict[str, Callable[[], PrivateKeyTypes]] = {
    "RS": lambda: rsa.generate_private_key(65537, 2048),
    "PS": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ES512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


class SigningKey:
    """A key pair for one algorithm, and what is published of it."""

    def __init__(self, algorithm: str = "ES256", use: str | None = "sig") -> None:
        self.id = secrets.token_hex(8)
        self.algorithm = algorithm
        maker = _MAKERS.get(algorithm) or _MAKERS[algorithm[:2]]
        self.private: Any = maker()
        published = get_default_algorithms()[algorithm].to_jwk(self.private.public_key())
        jwk = json.loads(published)
        jwk.pop("key_ops", None)
        self.jwk: dict[str, Any] = {**jwk, "kid": self.id, **({"use": use} if use else {})}

    def sign(self, claims: Mapping[str, Any], **header: Any) -> str:
        """A token; a header of None is left out."""
        algorithm = header.pop("alg", self.algorithm)
        headers = {"kid": self.id, **header}
        # PyJWT writes no header that is None, but for typ, where it takes "" for none.
        if headers.get("typ", "") is None:
            headers["typ"] = ""
        if headers["kid"] is None:
            del headers["kid"]
        # As JWS: of claims the library would not sign some that tests want to see refused.
        payload = json.dumps(dict(claims)).encode()
        return PyJWS().encode(payload, self.private, algorithm, headers)


class Handler(BaseHTTPRequestHandler):
    """What a route is given: the request, and ways to answer it."""

    server_version = "provider"
    protocol_version = "HTTP/1.1"
    timeout = 30
    body = b""

    def reply(
        self, document: Any, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """JSON, or bytes as they are."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer()

    def _answer(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        path = self.path.partition("?")[0].removeprefix(server.provider.prefix)
        server.provider.fetches[path] += 1
        route = server.provider.routes.get((self.command, path))
        with suppress(ConnectionError, ssl.SSLError):
            if route is None:
                self.reply({"error": "not found"}, 404)
            else:
                route(self)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


Route = Callable[[Handler], None]


def redirect(to: str) -> Route:
    """A route that sends elsewhere."""
    return lambda handler: handler.reply({}, 302, {"Location": to})


def drip(body: bytes, pause: float = 0.05, raw: bool = False) -> Route:
    """A route that sends a byte at a time; ``raw``: the status line and headers too."""

    def answer(handler: Handler) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        if not raw:
            handler.wfile.write(head)
        for byte in (head + body) if raw else body:
            handler.wfile.write(bytes([byte]))
            time.sleep(pause)

    return answer


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    provider: "Provider"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what the tests are about."""


class Provider:
    """A provider with one key. ``prefix`` is the path of its issuer URL, ``tls`` what it serves
    HTTPS with, ``host`` the name that its URL has, ``address`` where it listens."""

    def __init__(
        self,
        prefix: str = "",
        *,
        host: str = "127.0.0.1",
        address: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.prefix = prefix
        self.keys = [SigningKey()]
        self.fetches: Counter[str] = Counter()
        """Requests by path, without the prefix."""
        self.routes: dict[tuple[str, str], Route] = {
            ("GET", DISCOVERY): lambda handler: handler.reply(self.configuration()),
            ("GET", KEYS): lambda handler: handler.reply(self.key_set()),
        }
        self._server = _Server((address, port), Handler)
        self._server.provider = self
        if tls:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self._server.server_port
        self.origin = f"{'https' if tls else 'http'}://{host}:{self.port}"
        self.issuer = self.origin + prefix
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def configuration(self) -> dict[str, Any]:
        """The discovery document; whoever adds endpoints extends it."""
        return {
            "issuer": self.issuer,
            "jwks_uri": self.issuer + KEYS,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public", "pairwise"],
            "id_token_signing_alg_values_supported": [key.algorithm for key in self.keys],
        }

    def key_set(self) -> dict[str, Any]:
        return {"keys": [key.jwk for key in self.keys]}

    def rotate(self, algorithm: str = "ES256", *, keep: bool = False) -> SigningKey:
        """Sign with a new key from now on, and publish the old ones on or no longer."""
        key = SigningKey(algorithm)
        self.keys = [key, *self.keys] if keep else [key]
        return key

    def token(self, claims: Mapping[str, Any], **header: Any) -> str:
        """A token with the newest key's signature; a claim of None is left out."""
        given = {name: value for name, value in claims.items() if value is not None}
        return self.keys[0].sign(given, **header)

    def standard(self, audience: str, **claims: Any) -> dict[str, Any]:
        """The claims that every token has, for five minutes from now on."""
        now = int(time.time())
        return {
            "jti": secrets.token_hex(16),
            "iss": self.issuer,
            "aud": audience,
            "sub": "somebody",
            "iat": now,
            "nbf": now,
            "exp": now + 300,
            **claims,
        }

    def github_actions(
        self,
        audience: str,
        repository: str = "acme/app",
        ref: str = "refs/heads/main",
        **other: Any,
    ) -> dict[str, Any]:
        """What GitHub Actions claims about a job that a push to a branch or tag started."""
        owner, _, _ = repository.partition("/")
        claims = {
            "sub": f"repo:{repository}:ref:{ref}",
            "ref": ref,
            "ref_type": "tag" if ref.startswith("refs/tags/") else "branch",
            "ref_protected": "true",
            "sha": "c040cae0f0dc81641728557b80f09cfa23b83fe5",
            "repository": repository,
            "repository_id": "424242",
            "repository_owner": owner,
            "repository_owner_id": "2020",
            "repository_visibility": "private",
            "run_id": "22259804324",
            "run_number": "42",
            "run_attempt": "1",
            "runner_environment": "github-hosted",
            "actor": "octocat",
            "actor_id": "1001",
            "workflow": "release",
            "workflow_ref": f"{repository}/.github/workflows/release.yml@{ref}",
            "workflow_sha": "c040cae0f0dc81641728557b80f09cfa23b83fe5",
            "job_workflow_ref": f"{repository}/.github/workflows/release.yml@{ref}",
            "job_workflow_sha": "c040cae0f0dc81641728557b80f09cfa23b83fe5",
            "head_ref": "",
            "base_ref": "",
            "event_name": "push",
        }
        return self.standard(audience, **{**claims, **other})

    def gitlab_ci(
        self, audience: str, project: str = "acme/app", ref: str = "main", **other: Any
    ) -> dict[str, Any]:
        """What GitLab CI claims about a job on a branch."""
        namespace, _, _ = project.rpartition("/")
        claims = {
            "sub": f"project_path:{project}:ref_type:branch:ref:{ref}",
            "namespace_id": "72",
            "namespace_path": namespace,
            "project_id": "20",
            "project_path": project,
            "user_id": "1",
            "user_login": "sample-user",
            "user_email": "sample-user@example.com",
            "user_access_level": "developer",
            "pipeline_id": "574",
            "pipeline_source": "push",
            "job_id": "302",
            "ref": ref,
            "ref_type": "branch",
            "ref_path": f"refs/heads/{ref}",
            "ref_protected": "true",
            "environment_protected": "false",
            "runner_id": 1,
            "runner_environment": "gitlab-hosted",
            "sha": "714a629c0b401fdce83e847fc9589983fc6f46bc",
            "project_visibility": "private",
            "ci_config_ref_uri": f"gitlab.example.com/{project}//.gitlab-ci.yml@refs/heads/{ref}",
            "ci_config_sha": "714a629c0b401fdce83e847fc9589983fc6f46bc",
        }
        return self.standard(audience, **{**claims, **other})
