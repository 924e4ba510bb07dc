"""The registry's own certificate, by ACME (RFC 8555): ordered, and renewed in time.

The authority proves by HTTP-01 (section 8.3) that the names are ours: it asks whichever host they
lead to, and every host reads the answer in Postgres. There the certificate is kept too, so that a
new host orders none: authorities give few for the same names.
"""

import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from chalicelib.context import Context
from chalicelib.identity.keys import Keys, SealError
from chalicelib.identity.sealing import seal_anew
from chalicelib.jobs import HOUR, MINUTE, Job, TryAgain
from chalicelib.metadata import certificates
from chalicelib.metadata.certificates import Account, Certificate
from chalicelib.settings import Settings

if TYPE_CHECKING:
    from acme.client import ClientV2
    from acme.messages import AuthorizationResource, RegistrationResource

_log = logging.getLogger(__name__)

KIND = "certificates.renew"
EVERY = 6 * HOUR
PATIENCE = (8, 3 * MINUTE, 6 * HOUR)
"""How often, after how many seconds first and at most it is tried again. Let's Encrypt bears five
failures in an hour."""
ACCOUNT_KEYS, KEYS = "acme accounts", "certificates"
"""The purposes that private keys are sealed for."""
_PATIENCE = timedelta(minutes=2)
"""How long an authority may take for one order."""


def wanted(settings: Settings) -> bool:
    """Whether a worker with these settings orders certificates."""
    return bool(settings.acme_domains)


def renew(context: Context, _job: Job) -> None:
    """Order a certificate where there is none, or where two thirds of its life are over, or when
    its authority asks for that (RFC 9773)."""
    settings, database = context.settings, context.database
    renew_seals(context)
    found = certificates.find(database, settings.acme_directory, settings.acme_domains)
    if found is None or due(found, context):
        certificate = _order(context)
        _log.info(
            "a certificate for %s holds until %s",
            ", ".join(settings.acme_domains),
            certificate.not_after,
        )
    certificates.expire(database)


def renew_seals(context: Context) -> None:
    """Seal with the key in force what a former one did."""
    seal_anew(context.database, context.keys, ACCOUNT_KEYS, certificates.ACCOUNT_KEYS)
    seal_anew(context.database, context.keys, KEYS, certificates.KEYS)


def due(found: Certificate, context: Context) -> bool:
    """Whether it is time to order the next one."""
    try:
        context.keys.unseal(KEYS, found.id, found.key)
    except SealError:
        return True  # nobody can use it
    now = datetime.now(UTC)
    if now >= found.not_after - (found.not_after - found.not_before) / 3:
        return True
    try:
        with _explained(context):
            client = _connect(context.settings)
            when, _ = client.renewal_time(found.chain.encode())
    except TryAgain as error:
        # It holds for long still.
        _log.info("the time of renewal could not be asked for: %s", error)
        return False
    return when is not None and when <= now


def _order(context: Context) -> Certificate:
    """A new certificate, which is kept. Raises ``TryAgain``."""
    from acme.crypto_util import make_csr
    from cryptography import x509

    settings, database = context.settings, context.database
    with _explained(context):
        client = _connect(settings)
        client.net.account = _account(client, context)
        key = _new_key()
        chain = _issued(client, make_csr(key, list(settings.acme_domains)), context)
    leaf = x509.load_pem_x509_certificate(chain.encode())
    number = str(uuid.uuid4())
    certificate = Certificate(
        number,
        chain,
        context.keys.seal(KEYS, number, key),
        leaf.not_valid_before_utc,
        leaf.not_valid_after_utc,
    )
    certificates.keep(database, settings.acme_directory, settings.acme_domains, certificate)
    return certificate


def _connect(settings: Settings) -> "ClientV2":
    from acme import client
    from josepy.jwa import ES256

    from chalicelib import __version__

    network = client.ClientNetwork(alg=ES256, user_agent=f"openregistry/{__version__}", timeout=20)
    directory = client.ClientV2.get_directory(settings.acme_directory, network)
    return client.ClientV2(directory, network)


def _account(client: "ClientV2", context: Context) -> "RegistrationResource":
    """Our account, which is made where there is none. Its key signs from now on."""
    from acme import messages
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from josepy.jwk import JWKEC

    directory, keys = context.settings.acme_directory, context.keys
    found = certificates.account(context.database, directory)
    pem = None if found is None else _opened(keys, directory, found.key)
    if found is not None and pem is not None:
        client.net.key = JWKEC(key=load_pem_private_key(pem, None))
        return messages.RegistrationResource(uri=found.url, body=messages.Registration())
    pem = _new_key()
    client.net.key = JWKEC(key=load_pem_private_key(pem, None))
    made = client.new_account(messages.NewRegistration.from_data(terms_of_service_agreed=True))
    account = Account(made.uri, keys.seal(ACCOUNT_KEYS, directory, pem))
    certificates.keep_account(context.database, directory, account)
    return made


def _opened(keys: Keys, directory: str, sealed: bytes) -> bytes | None:
    try:
        return keys.unseal(ACCOUNT_KEYS, directory, sealed)
    except SealError as error:
        _log.warning("another account at %s is made: %s", directory, error)
        return None


def _issued(client: "ClientV2", csr: bytes, context: Context) -> str:
    """The chain that the authority gives, once it has seen that the names are ours."""
    from acme import challenges, messages

    order = client.new_order(csr)
    for authorization in order.authorizations:
        if authorization.body.status == messages.STATUS_VALID:
            continue
        for challenge in authorization.body.challenges:
            if isinstance(challenge.chall, challenges.HTTP01):
                response, text = challenge.response_and_validation(client.net.key)
                token = challenge.chall.encode("token")
                certificates.add_challenge(context.database, token, text)
                client.answer_challenge(challenge, response)
    # The library compares with the local time.
    deadline = datetime.now() + _PATIENCE  # noqa: DTZ005
    return str(client.poll_and_finalize(order, deadline).fullchain_pem)


def _new_key() -> bytes:
    """A private key, as PEM."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@contextmanager
def _explained(context: Context) -> Iterator[None]:
    """Say in a sentence why an authority gives nothing. Raises ``TryAgain``."""
    from acme import errors, messages
    from josepy.errors import Error as JoseError
    from requests import RequestException

    directory = context.settings.acme_directory
    try:
        yield
    except errors.ValidationError as error:
        raise TryAgain(" ".join(_refused(error.failed_authzrs))) from None
    except errors.IssuanceError as error:
        raise TryAgain(f"{directory} gives no certificate: {error.error}") from None
    except errors.TimeoutError:
        raise TryAgain(f"{directory} has not decided within {_PATIENCE}.") from None
    except messages.Error as error:
        if error.code == "accountDoesNotExist":
            certificates.forget_account(context.database, directory)
        raise TryAgain(f"{directory} refuses: {error}") from None
    except (errors.Error, JoseError, RequestException, ValueError) as error:
        raise TryAgain(f"{directory} cannot be used: {error.__cause__ or error}") from None


def _refused(authorizations: "Sequence[AuthorizationResource]") -> Iterator[str]:
    for authorization in authorizations:
        for challenge in authorization.body.challenges:
            if challenge.error is not None:
                yield f"{authorization.body.identifier.value}: {challenge.error}"
