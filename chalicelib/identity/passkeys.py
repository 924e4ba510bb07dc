"""Passkeys: signing in with an authenticator's key instead of a password.

Any passkey that the authenticator finds may be used: nobody is asked for a name first, so that
nothing tells which accounts exist. Source: Web Authentication Level 3, sections 7.1 and 7.2, which
py_webauthn carries out.
"""

import json
import logging
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from chalicelib.metadata import one_time, passkeys
from chalicelib.metadata.database import Database
from chalicelib.metadata.passkeys import Passkey
from chalicelib.settings import MINUTE, Settings, is_loopback

__all__ = [
    "Passkey",
    "PasskeyRefused",
    "RelyingParty",
    "listed",
    "register",
    "registration_options",
    "relying_party",
    "remove",
    "rename",
    "sign_in",
    "sign_in_options",
]

T = TypeVar("T")
_log = logging.getLogger(__name__)

MOST = 50
"""Passkeys that an account may have."""

_SECONDS = 5 * MINUTE
_REGISTRATION, _SIGN_IN = "passkey registration", "passkey sign-in"
_LONGEST_NAME = 100
_LONGEST_ID = 1023  # bytes: section 7.1, step 25
_HANDLE = 64  # bytes: section 14.6.1
_PORTS = {"http": 80, "https": 443}


class PasskeyRefused(Exception):
    """A passkey cannot be had or used; the text is the sentence that the user reads.
    ``account_id`` is the account that was to be entered, where a known passkey was shown: for the
    audit log."""

    def __init__(self, sentence: str, account_id: int | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.account_id = account_id


class RelyingParty(NamedTuple):
    """Who asks for passkeys: they work at the host ``id`` alone, on pages of ``origin``."""

    id: str
    origin: str
    name: str


def relying_party(settings: Settings, host: str) -> RelyingParty:
    """The registry as authenticators know it: by PUBLIC_URL, or by a request's ``Host`` where that
    is this machine, since anybody may send any ``Host``. Raises ``PasskeyRefused`` where browsers
    would not make passkeys."""
    url = settings.public_url or f"{'https' if settings.secure else 'http'}://{host}"
    try:
        parts = urlsplit(url)
        name, port = parts.hostname or "", parts.port
    except ValueError:
        name, port = "", None
    loopback = is_loopback(name)
    if not name or not (settings.public_url or loopback):
        raise PasskeyRefused("Passkeys need the setting OPENREGISTRY_PUBLIC_URL.")
    if name.replace(".", "").isdigit() or ":" in name:
        instead = "localhost" if loopback else "a name"
        raise PasskeyRefused(f"Browsers keep passkeys for names, not addresses: use {instead}.")
    if parts.scheme != "https" and not loopback:
        raise PasskeyRefused("Passkeys need HTTPS.")
    shown = "" if port in (None, _PORTS[parts.scheme]) else f":{port}"
    return RelyingParty(name, f"{parts.scheme}://{name}{shown}", "OpenRegistry")


def registration_options(
    database: Database, account_id: int, account_name: str, relying_party: RelyingParty
) -> tuple[dict[str, Any], str]:
    """What a browser needs to make a passkey (``PublicKeyCredentialCreationOptionsJSON``), and the
    state to come back with within 5 minutes, once. Raises ``PasskeyRefused``."""
    import secrets

    from webauthn import base64url_to_bytes, generate_registration_options, options_to_json
    from webauthn.helpers import structs

    handle = passkeys.handle(database, account_id, secrets.token_bytes(_HANDLE))
    if handle is None:
        raise PasskeyRefused("This account can have no passkeys.", account_id)
    known = passkeys.descriptors(database, account_id)
    _check_room(len(known), account_id)
    state = one_time.put(database, _REGISTRATION, _SECONDS, account_id)
    options = generate_registration_options(
        rp_id=relying_party.id,
        rp_name=relying_party.name,
        user_id=handle,
        user_name=account_name,
        challenge=base64url_to_bytes(state),
        timeout=_SECONDS * 1000,
        authenticator_selection=structs.AuthenticatorSelectionCriteria(
            # Discoverable, since sign-in asks for no name.
            resident_key=structs.ResidentKeyRequirement.REQUIRED,
            user_verification=structs.UserVerificationRequirement.REQUIRED,
        ),
        exclude_credentials=[
            structs.PublicKeyCredentialDescriptor(
                id=credential_id,
                transports=[structs.AuthenticatorTransport(each) for each in transports],
            )
            for credential_id, transports in known
        ],
    )
    return json.loads(options_to_json(options)), state


def register(
    database: Database,
    account_id: int,
    state: str,
    credential: dict[str, Any],
    name: str,
    relying_party: RelyingParty,
) -> Passkey:
    """Keep the passkey that a browser made (``RegistrationResponseJSON``) under a name for its
    owner. Raises ``PasskeyRefused``."""
    from webauthn import base64url_to_bytes, verify_registration_response
    from webauthn.helpers import parse_registration_credential_json

    name = _checked_name(name)
    held = one_time.take(database, _REGISTRATION, state)
    if held is None or held.account_id != account_id:
        raise _stale()
    _check_room(len(passkeys.descriptors(database, account_id)), account_id)

    def verify() -> tuple[Any, list[str]]:
        parsed = parse_registration_credential_json(credential)
        _check_same_origin(parsed.response.client_data_json)
        verified = verify_registration_response(
            credential=parsed,
            expected_challenge=base64url_to_bytes(state),
            expected_rp_id=relying_party.id,
            expected_origin=relying_party.origin,
            require_user_verification=True,
        )
        transports = [each.value for each in parsed.response.transports or []]
        return verified, list(dict.fromkeys(transports))

    verified, transports = _verified(verify, account_id)
    if len(verified.credential_id) > _LONGEST_ID:
        raise PasskeyRefused("The passkey's id is too long.", account_id)
    kept = passkeys.add(
        database,
        account_id,
        name,
        credential_id=verified.credential_id,
        public_key=verified.credential_public_key,
        sign_count=verified.sign_count,
        transports=transports,
    )
    if kept is None:
        raise PasskeyRefused("This passkey is registered already.", account_id)
    return kept


def sign_in_options(database: Database, relying_party: RelyingParty) -> tuple[dict[str, Any], str]:
    """What a browser needs to use a passkey (``PublicKeyCredentialRequestOptionsJSON``), and the
    state to come back with within 5 minutes, once."""
    from webauthn import base64url_to_bytes, generate_authentication_options, options_to_json
    from webauthn.helpers.structs import UserVerificationRequirement

    state = one_time.put(database, _SIGN_IN, _SECONDS)
    options = generate_authentication_options(
        rp_id=relying_party.id,
        challenge=base64url_to_bytes(state),
        timeout=_SECONDS * 1000,
        user_verification=UserVerificationRequirement.REQUIRED,
    )
    return json.loads(options_to_json(options)), state


def sign_in(
    database: Database, state: str, credential: dict[str, Any], relying_party: RelyingParty
) -> int:
    """The account that a browser's answer (``AuthenticationResponseJSON``) proves. Raises
    ``PasskeyRefused``."""
    from webauthn import base64url_to_bytes, verify_authentication_response
    from webauthn.helpers import parse_authentication_credential_json

    if one_time.take(database, _SIGN_IN, state) is None:
        raise _stale()
    parsed = _verified(lambda: parse_authentication_credential_json(credential))
    found = passkeys.find(database, parsed.raw_id)
    if found is None:
        raise PasskeyRefused("This passkey is not known here; it may have been removed.")

    def verify() -> Any:
        _check_same_origin(parsed.response.client_data_json)
        return verify_authentication_response(
            credential=parsed,
            expected_challenge=base64url_to_bytes(state),
            expected_rp_id=relying_party.id,
            expected_origin=relying_party.origin,
            credential_public_key=found.public_key,
            credential_current_sign_count=0,  # compared below, where no other sign-in can intervene
            require_user_verification=True,
        )

    verified = _verified(verify, found.account_id)
    if found.handle is None or parsed.response.user_handle != found.handle:
        raise PasskeyRefused("The passkey belongs to another account.", found.account_id)
    if not found.live:
        raise PasskeyRefused("This account may not sign in.", found.account_id)
    if not passkeys.used(database, parsed.raw_id, verified.new_sign_count):
        raise PasskeyRefused(
            "The passkey's counter has not moved forward, as if the passkey had been copied."
            " Remove it, and register another.",
            found.account_id,
        )
    return found.account_id


def listed(database: Database, account_id: int) -> list[Passkey]:
    """The passkeys of an account, the oldest first."""
    return passkeys.of(database, account_id)


def rename(database: Database, account_id: int, passkey_id: str, name: str) -> bool:
    """Give a passkey another name; False where the account has none of that id. Raises
    ``PasskeyRefused`` for a name that is none."""
    name = _checked_name(name)
    return _is_id(passkey_id) and passkeys.rename(database, account_id, passkey_id, name)


def remove(database: Database, account_id: int, passkey_id: str) -> bool:
    """Forget a passkey; False where the account has none of that id."""
    return _is_id(passkey_id) and passkeys.remove(database, account_id, passkey_id)


def _verified(verify: Callable[[], T], account_id: int | None = None) -> T:
    try:
        return verify()
    except Exception as error:
        # Anything can be in what a stranger sent, and parsers of it raise what they like.
        _log.info("a passkey could not be verified: %r", error)
        raise PasskeyRefused("The passkey could not be verified.", account_id) from error


def _check_same_origin(client_data: bytes) -> None:
    """Refuse what was made within another site's frame: sections 7.1 and 7.2, ``crossOrigin``."""
    if json.loads(client_data).get("crossOrigin", False) is not False:
        raise ValueError("made in a frame of another site")


def _check_room(count: int, account_id: int) -> None:
    if count >= MOST:
        raise PasskeyRefused(f"An account has {MOST} passkeys at most.", account_id)


def _checked_name(name: str) -> str:
    name = name.strip()
    if not (0 < len(name) <= _LONGEST_NAME and name.isprintable()):
        raise PasskeyRefused(f"A passkey's name has 1 to {_LONGEST_NAME} printable characters.")
    return name


def _is_id(passkey_id: str) -> bool:
    try:
        return str(uuid.UUID(passkey_id)) == passkey_id.lower()
    except ValueError:
        return False


def _stale() -> PasskeyRefused:
    return PasskeyRefused("This took too long, or was tried before. Begin again.")
