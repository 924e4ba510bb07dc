"""Settings that are kept in AWS's Parameter Store: ``aws-ssm:NAME`` stands for that parameter.

So no secret is in a function's configuration, where all who may look at functions would read it.
They are asked for when a process starts, all in one request. A parameter that has changed is seen
by processes that start later.
"""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from chalicelib.hosts.aws_signing import NoCredentialsError, region, signed
from chalicelib.http import Unavailable
from chalicelib.settings import PREFIX, SettingsError

_log = logging.getLogger(__name__)

SCHEME = "aws-ssm:"

PATIENCE = 5.0
"""Seconds that Parameter Store may be silent."""

MOST = 10
"""Parameters that one request may ask for (AWS, "GetParameters")."""

_TARGET = "AmazonSSM.GetParameters"
_MEDIA_TYPE = "application/x-amz-json-1.1"


def resolved(environment: Mapping[str, str]) -> Mapping[str, str]:
    """The environment, with parameters in the place of their names. Raises ``SettingsError`` where
    there is no such parameter or the function may not read it, and ``Unavailable`` where Parameter
    Store does not answer."""
    wanted = {
        name: value.strip().removeprefix(SCHEME)
        for name, value in environment.items()
        if name.startswith(PREFIX) and value.strip().startswith(SCHEME)
    }
    names = sorted(set(wanted.values()))
    found: dict[str, str] = {}
    for start in range(0, len(names), MOST):
        status, answer = _ask(names[start : start + MOST], environment)
        if 400 <= status < 500 and b"Throttling" not in answer:
            # Whoever asks is told of wrong settings, and this names roles and the account.
            _log.critical("Parameter Store refuses: %s", answer[:1000].decode(errors="replace"))
            raise SettingsError(
                next(iter(wanted)), "cannot be read from Parameter Store; the log says why"
            )
        if status != 200:
            raise _unavailable(f"{status} {answer[:300].decode(errors='replace')}")
        found |= {each["Name"]: each["Value"] for each in json.loads(answer)["Parameters"]}
    for name, parameter in wanted.items():
        if parameter not in found:
            raise SettingsError(
                name,
                f"names a parameter that is not there: aws ssm put-parameter --type SecureString"
                f" --name {parameter} --value …",
            )
    return {**environment, **{name: found[parameter] for name, parameter in wanted.items()}}


def _ask(names: list[str], environment: Mapping[str, str]) -> tuple[int, bytes]:
    body = json.dumps({"Names": names, "WithDecryption": True}).encode()
    try:
        # Elsewhere than at AWS's own address: AWS, "Service-specific endpoints".
        url = urlsplit(
            environment.get("AWS_ENDPOINT_URL_SSM")
            or environment.get("AWS_ENDPOINT_URL")
            or f"https://ssm.{region(environment)}.amazonaws.com"
        )
        now = datetime.now(UTC)
        fields = signed("ssm", _TARGET, _MEDIA_TYPE, url.netloc, body, environment, now)
        kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
        connection = kind(url.netloc, timeout=PATIENCE)
        try:
            connection.request("POST", "/", body, fields)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()
    except (OSError, HTTPException, NoCredentialsError) as error:
        raise _unavailable(str(error) or repr(error)) from error


def _unavailable(reason: str) -> Unavailable:
    _log.error("Parameter Store, which has the registry's secrets, does not answer: %s", reason)
    return Unavailable("The registry's settings cannot be read; try again in a moment.")
