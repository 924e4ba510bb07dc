"""What every line of the log has on every host: the request or the job that it belongs to.

The fields have the names that AWS's Powertools give them (``timestamp``, ``level``, ``service``,
``message``, ``exception``, ``exception_name``), with ``logger``, and ``request_id`` or ``job`` and
``kind``. A host writes them in its own way: ``hosts/harness/log.py`` and ``hosts/aws_log.py``.
"""

import re
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from urllib.parse import unquote

from chalicelib.identity.capabilities import PARAMETER

SERVICE = "openregistry"

_bound: ContextVar[Mapping[str, str | int]] = ContextVar("bound", default=MappingProxyType({}))

_REQUEST_ID = re.compile(r"[!#-\[\]-~]{1,64}")
_PARAMETER = re.compile(r"(?<=[?&])([^?&=]+)=[^&]*")
_SECRET = (PARAMETER, "code")
"""Parameters that hold a secret: a capability, and what a browser brings back from a sign-in
elsewhere (RFC 6749, section 4.1.2)."""


class bound:  # noqa: N801
    """Give lines these fields that are logged within, on this thread and where its context is
    taken to."""

    # No generator: requests that take 50 microseconds enter it.
    __slots__ = ("_fields", "_token")

    def __init__(self, **fields: str | int) -> None:
        self._fields = fields

    def __enter__(self) -> None:
        self._token = _bound.set({**_bound.get(), **self._fields})

    def __exit__(self, *error: object) -> None:
        _bound.reset(self._token)


def fields() -> Mapping[str, str | int]:
    """What is bound here."""
    return _bound.get()


def request_id(given: str | None) -> str | None:
    """The id that a request brings (``X-Request-Id``): at most 64 printable characters without
    spaces, quotation marks and backslashes. None where it brings none, or something else."""
    return given if given is not None and _REQUEST_ID.fullmatch(given) else None


def masked(target: str) -> str:
    """A request's path and query without the secrets in it, however their parameters' names are
    spelt."""
    if "%" not in target and not any(f"{name}=" in target for name in _SECRET):
        return target
    return _PARAMETER.sub(_hidden, target)


def _hidden(parameter: re.Match[str]) -> str:
    return f"{parameter[1]}=***" if unquote(parameter[1]) in _SECRET else parameter[0]
