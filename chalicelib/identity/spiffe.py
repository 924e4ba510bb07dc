"""SPIFFE: workloads that prove who they are by JWT-SVIDs, verified by their trust domain's bundle.

The words are those of the specifications: SPIFFE-ID, JWT-SVID, SPIFFE Trust Domain and Bundle.
"""

import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from chalicelib.identity.key_sets import (
    Header,
    KeptKeys,
    Key,
    KeySet,
    TokenRefused,
    fetched,
    parse_keys,
    read_header,
    unverified_claims,
    verified_claims,
)
from chalicelib.outbound import Outbound

ALGORITHMS = frozenset(
    ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
)
"""JWT-SVID, section 2.1."""

REFRESH_SECONDS = 300
"""How long a bundle is kept that does not say (SPIFFE Trust Domain and Bundle, section 5.1)."""

_REFRESH_BOUNDS = 60, 3600
"""Seconds. A key that its domain withdrew is refused within an hour, whatever the hint."""

_BUNDLE_LIMIT = 1 << 20
_ID = re.compile(r"spiffe://(?P<domain>[a-z0-9._-]{1,255})(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+)*")
"""SPIFFE-ID, sections 2.1 and 2.2."""


class _Bundle(Protocol):
    def find(self, header: Header) -> list[Key]: ...


class TrustBundles:
    """The bundles of the trust domains that the settings name, as domain=/path/of/bundle.json or
    domain=https://…. Threads may share it."""

    def __init__(self, bundles: Sequence[str], outbound: Outbound) -> None:
        self._outbound = outbound
        self._bundles: dict[str, _Bundle] = {}
        for each in bundles:
            domain, _, place = each.partition("=")
            self._bundles[domain.lower()] = (
                _File(Path(place)) if place.startswith("/") else self._kept(place)
            )

    def verify(self, svid: str, audience: str) -> str:
        """The SPIFFE ID that a JWT-SVID proves to this audience. Raises ``TokenRefused``.

        The specification leaves the key's id optional; it is demanded here, as by SPIFFE's own
        libraries: without it nobody can say whether the bundle is out of date.
        """
        header = read_header(svid, ALGORITHMS, (None, "JWT", "JOSE"))
        spiffe_id = unverified_spiffe_id(svid)
        bundle = self._bundles.get(trust_domain(spiffe_id))
        if bundle is None:
            raise TokenRefused("The token is of a trust domain whose bundle is not known here.")
        verified_claims(
            svid,
            header,
            bundle.find(header),
            audience=audience,
            required=("sub", "aud", "exp"),
        )
        return spiffe_id

    def _kept(self, url: str) -> KeptKeys:
        def fetch() -> KeySet:
            reply = fetched(
                lambda: self._outbound.get(url), "The trust domain's bundle could not be had."
            )
            document = fetched(reply.json, "The trust domain's bundle could not be had.")
            return _parse(document if reply.status == 200 else None)

        return KeptKeys(fetch)


class _File:
    """A bundle that somebody else keeps up to date, read again whenever it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._version: object = None
        self._keys: tuple[Key, ...] = ()

    def find(self, header: Header) -> list[Key]:
        with self._lock:
            try:
                found = self._path.stat()
                version = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
                if version != self._version:
                    self._version, self._keys = None, ()
                    with self._path.open("rb") as file:
                        content = file.read(_BUNDLE_LIMIT)
                    self._keys = _parse(json.loads(content)).keys
                    self._version = version
            except (OSError, ValueError, RecursionError):
                raise TokenRefused("The trust domain's bundle cannot be read.") from None
            keys = self._keys
        matching = [
            key for key in keys if key.id == header.key_id and header.algorithm in key.algorithms
        ]
        if not matching:
            raise TokenRefused("The token is signed with a key that its bundle does not hold.")
        return matching


def _parse(document: object) -> KeySet:
    try:
        keys = parse_keys(document, ("jwt-svid",))
    except ValueError:
        raise TokenRefused("The trust domain's bundle is malformed.") from None
    hint = document.get("spiffe_refresh_hint") if isinstance(document, dict) else None
    low, high = _REFRESH_BOUNDS
    seconds = hint if isinstance(hint, int) else REFRESH_SECONDS
    return KeySet(keys, max(low, min(seconds, high)))


def trust_domain(spiffe_id: str) -> str:
    """The trust domain of a SPIFFE ID. Raises ``ValueError`` where it is none."""
    matched = _ID.fullmatch(spiffe_id)
    if matched is None or len(spiffe_id) > 2048:
        raise ValueError("no SPIFFE ID")
    return matched["domain"]


def unverified_spiffe_id(token: str) -> str:
    """Whom a token says it is of, unproven: to look up the rules for this SPIFFE ID. Raises
    ``TokenRefused`` where it is of nobody with a SPIFFE ID."""
    subject = unverified_claims(token).get("sub")
    try:
        trust_domain(subject if isinstance(subject, str) else "")
    except ValueError:
        raise TokenRefused("The token's subject (sub) is no SPIFFE ID.") from None
    return str(subject)
