"""Upload capabilities: the authority of one upload's Location.

Clients drop their credentials when a Location names another host, so the Location carries its own:
a signed, short-lived token (JWT, RFC 7519, HS256) for one upload in one repository, made out to
the subject that was authorised to push when it began.
"""

import time
from typing import Any

import jwt

from chalicelib.http import UploadUnknown
from chalicelib.identity.keys import Keys

PARAMETER = "_state"


class Capabilities:
    """Issues and verifies capabilities that last for ``seconds``."""

    def __init__(self, keys: Keys, seconds: int) -> None:
        self._keys = keys.derived("upload capabilities")
        self.seconds = seconds

    def issue(self, repository: str, upload: str, subject: str) -> str:
        """A capability for this upload, from now on."""
        claims = {
            "repository": repository,
            "upload": upload,
            "sub": subject,
            "exp": int(time.time()) + self.seconds,
        }
        return jwt.encode(claims, self._keys[0], algorithm="HS256")

    def verify(self, token: str, repository: str, upload: str) -> str:
        """The subject that the capability was made out to. Raises ``UploadUnknown`` where it is
        missing, forged, expired, or another upload's."""
        claims = self._claims(token)
        if claims["repository"] != repository or claims["upload"] != upload:
            raise UploadUnknown("This Location belongs to another upload.")
        return str(claims["sub"])

    def _claims(self, token: str) -> dict[str, Any]:
        for key in self._keys:
            try:
                return jwt.decode(
                    token,
                    key,
                    algorithms=["HS256"],
                    options={"require": ["exp", "sub", "repository", "upload"]},
                )
            except jwt.ExpiredSignatureError:
                raise UploadUnknown(
                    "This upload's Location has expired; begin a new upload with POST."
                ) from None
            except jwt.InvalidTokenError:
                continue
        raise UploadUnknown("An upload is reached by the Location of the last answer, unchanged.")
