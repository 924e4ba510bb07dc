"""What API Gateway asks before it calls a function: whether a registry token will do.

It renames ``WWW-Authenticate`` in a function's answer, so clients would not learn from it which
token to get. They learn it here: a ``TOKEN`` authorizer is given the Authorization field and the
path, and what it refuses gets an answer of API Gateway's own, whose fields may come from the
authorizer's context (AWS, "Output from an API Gateway Lambda authorizer" and "Gateway responses for
REST APIs"; .chalice/resources.yaml has them). A registry token needs no database to be verified.
Whatever else it takes to decide is for the functions, which check everything again.
"""

import os
from functools import cache
from typing import Any
from urllib.parse import unquote

from chalicelib import endpoints
from chalicelib.hosts.aws_parameters import resolved
from chalicelib.http import Request, Unauthorized, Unavailable
from chalicelib.identity import access_tokens
from chalicelib.identity.access import add_challenge, check_claims
from chalicelib.identity.challenge import service
from chalicelib.identity.keys import Keys
from chalicelib.identity.registry_tokens import RegistryTokens
from chalicelib.registry.names import is_name
from chalicelib.settings import Settings, SettingsError


def answer(authorization: str, method_arn: str) -> dict[str, Any]:
    """The policy for one request: its Authorization field, and its method and path as
    ``arn:PARTITION:execute-api:REGION:ACCOUNT:API/STAGE/METHOD/PATH``."""
    refused = _refusal(authorization, method_arn)
    if refused is None:
        return _policy("Allow", {})
    [(_, challenge)] = refused.headers
    return _policy("Deny", {"challenge": challenge, "message": refused.message})


def _refusal(authorization: str, method_arn: str) -> Unauthorized | None:
    scheme, _, value = authorization.partition(" ")
    token = value.strip()
    if scheme.lower() != "bearer" or access_tokens.looks_like(token):
        return None
    _, _, method, path = method_arn.split(":", 5)[5].split("/", 3)
    request = Request(method, "/" + unquote(path))
    found = endpoints.locate(request.method, request.path)
    if found is None or found[0].by_capability:
        return None
    endpoint, params = found
    repository = params.get("repository")
    if repository is not None and not is_name(repository):
        return None
    try:
        settings, tokens = _known()
    except (SettingsError, Unavailable):
        return None  # the functions tell of it
    try:
        subject = tokens.verify(token)
        if subject is None:
            raise Unauthorized("This token is not ours, or it has expired.")
        check_claims(subject, endpoint.permission, repository)
    except Unauthorized as error:
        add_challenge(error, settings, request, endpoint.permission, repository)
        return error
    return None


@cache
def _known() -> tuple[Settings, RegistryTokens]:
    """The settings, and the keys by them. Raises ``SettingsError`` and ``Unavailable``, and tries
    again with the next request."""
    settings = Settings.from_environment(resolved(os.environ))
    for name in ("secret_key", "public_url"):
        if not getattr(settings, name):
            raise SettingsError(f"OPENREGISTRY_{name.upper()}", "is needed on Lambda")
    keys = Keys(settings.secret_key, settings.old_secret_key)
    return settings, RegistryTokens(keys, service(settings))


def _policy(effect: str, context: dict[str, str]) -> dict[str, Any]:
    statement = {"Action": "execute-api:Invoke", "Effect": effect, "Resource": "*"}
    return {
        "principalId": "client",
        "policyDocument": {"Version": "2012-10-17", "Statement": [statement]},
        "context": context,
    }
