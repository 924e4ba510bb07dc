"""Requests to AWS's services that speak JSON, signed by the functions themselves: to load AWS's
library takes longer than a pull does.

Source: AWS, "Signature Version 4"; AWS, "AWS JSON 1.0 protocol" and "1.1".
"""

import hmac
from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256


class NoCredentialsError(Exception):
    """There is nothing to sign with; the text says what is missing."""


def region(environment: Mapping[str, str]) -> str:
    """Where the function runs. Raises ``NoCredentialsError``."""
    found = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if not found:
        raise NoCredentialsError("AWS_REGION is not in the environment")
    return found


def signed(
    service: str,
    target: str,
    media_type: str,
    host: str,
    body: bytes,
    environment: Mapping[str, str],
    now: datetime,
) -> dict[str, str]:
    """The header fields of a request for one operation (``target``) of a service, with a signature
    by the credentials that Lambda puts into a function's environment. Raises
    ``NoCredentialsError``."""
    try:
        key, secret = environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
    except KeyError as error:
        raise NoCredentialsError(f"{error.args[0]} is not in the environment") from None
    moment = now.strftime("%Y%m%dT%H%M%SZ")
    fields = {"content-type": media_type, "host": host, "x-amz-date": moment}
    if token := environment.get("AWS_SESSION_TOKEN"):
        fields["x-amz-security-token"] = token
    fields["x-amz-target"] = target
    names = ";".join(fields)
    lines = [f"{name}:{value}" for name, value in fields.items()]
    canonical = "\n".join(["POST", "/", "", *lines, "", names, sha256(body).hexdigest()])
    scope = f"{moment[:8]}/{region(environment)}/{service}/aws4_request"
    hashed = sha256(canonical.encode()).hexdigest()
    signature = f"AWS4{secret}".encode()
    for part in (*scope.split("/"), f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashed}"):
        signature = hmac.digest(signature, part.encode(), "sha256")
    fields["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={key}/{scope}, SignedHeaders={names},"
        f" Signature={signature.hex()}"
    )
    return fields
