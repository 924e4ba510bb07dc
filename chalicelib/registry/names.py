"""Names of repositories and tags (OCI Distribution 1.1, "Pulling manifests")."""

import re

from chalicelib.http import ManifestInvalid, NameInvalid

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
LONGEST_NAME = 255


def is_name(name: str) -> bool:
    """Whether this can be the name of a repository."""
    return len(name) <= LONGEST_NAME and _NAME.fullmatch(name) is not None


def checked_name(name: str) -> str:
    """The name of a repository. Raises ``NameInvalid``."""
    if len(name) > LONGEST_NAME:
        raise NameInvalid(f"A repository's name has at most {LONGEST_NAME} characters.")
    if _NAME.fullmatch(name) is None:
        raise NameInvalid(
            "A repository's name is made of lower-case letters and digits, with single separators"
            " (. _ __ -) between them, and slashes between its components.",
            {"name": name},
        )
    return name


def is_tag(text: str) -> bool:
    """Whether this can be a tag."""
    return _TAG.fullmatch(text) is not None


def checked_tag(text: str) -> str:
    """A tag to be written. Raises ``ManifestInvalid``."""
    if not is_tag(text):
        raise ManifestInvalid(
            "A tag has at most 128 letters, digits, underscores, dots and dashes, and begins with"
            " none of the last two.",
            {"tag": text[:256]},
        )
    return text
