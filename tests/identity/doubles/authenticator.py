"""An authenticator and the browser before it, in software: what
``navigator.credentials.create`` and ``get`` give for the options of a server, as JSON.

It keeps discoverable credentials, as a phone does. The fields of ``Authenticator`` say how it
misbehaves.
"""

import secrets
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from fido2.cose import ES256, ES384, EdDSA
from fido2.utils import websafe_decode, websafe_encode
from fido2.webauthn import (
    Aaguid,
    AttestationObject,
    AttestedCredentialData,
    AuthenticatorData,
    CollectedClientData,
)

FLAG = AuthenticatorData.FLAG

KINDS: dict[int, tuple[Any, Any]] = {
    ES256.ALGORITHM: (lambda: ec.generate_private_key(ec.SECP256R1()), ES256),
    ES384.ALGORITHM: (lambda: ec.generate_private_key(ec.SECP384R1()), ES384),
    EdDSA.ALGORITHM: (ed25519.Ed25519PrivateKey.generate, EdDSA),
}
"""How keys are made, and their COSE kind."""


@dataclass
class Key:
    """A credential that the authenticator keeps."""

    id: bytes
    private: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
    rp_id: str
    user_handle: bytes
    counter: int

    def sign(self, message: bytes) -> bytes:
        if isinstance(self.private, ed25519.Ed25519PrivateKey):
            return self.private.sign(message)
        return self.private.sign(message, ec.ECDSA(SHA256()))


@dataclass
class Authenticator:
    """``counts``: signatures are counted (synchronised passkeys count none). ``rp_id``: the relying
    party that it takes every server for."""

    algorithm: int = ES256.ALGORITHM
    counts: bool = True
    verifies_user: bool = True
    rp_id: str | None = None
    keys: list[Key] = field(default_factory=list)

    def create(self, options: dict[str, Any], origin: str, **client_data: Any) -> dict[str, Any]:
        """Make a credential (Web Authentication, section 6.3.2)."""
        assert self.algorithm in [each["alg"] for each in options["pubKeyCredParams"]]
        known = [websafe_decode(each["id"]) for each in options["excludeCredentials"]]
        if any(key.id in known for key in self.keys):
            raise RuntimeError("InvalidStateError: this authenticator is registered already")
        generate, kind = KINDS[self.algorithm]
        private = generate()
        public = kind.from_cryptography_key(private.public_key())
        rp_id = self.rp_id or options["rp"]["id"]
        handle = websafe_decode(options["user"]["id"])
        key = Key(secrets.token_bytes(32), private, rp_id, handle, int(self.counts))
        self.keys.append(key)
        attested = AttestedCredentialData.create(Aaguid.NONE, key.id, public)
        data = AuthenticatorData(self._data(key, attested))
        return _public_key_credential(
            key,
            clientDataJSON=CollectedClientData.create(
                CollectedClientData.TYPE.CREATE, options["challenge"], origin, **client_data
            ),
            attestationObject=AttestationObject.create("none", data, {}),
            transports=["internal", "hybrid"],
        )

    def get(self, options: dict[str, Any], origin: str, **client_data: Any) -> dict[str, Any]:
        """Sign with the newest credential for the server (Web Authentication, section 6.3.3)."""
        assert not options["allowCredentials"], "nobody was named"
        rp_id = self.rp_id or options["rpId"]
        [*_, key] = [key for key in self.keys if key.rp_id == rp_id]
        key.counter += int(self.counts)
        data = self._data(key)
        client = CollectedClientData.create(
            CollectedClientData.TYPE.GET, options["challenge"], origin, **client_data
        )
        return _public_key_credential(
            key,
            clientDataJSON=client,
            authenticatorData=data,
            signature=key.sign(data + sha256(client).digest()),
            userHandle=key.user_handle,
        )

    def _data(self, key: Key, attested: bytes = b"") -> bytes:
        return bytes(
            AuthenticatorData.create(
                sha256(key.rp_id.encode()).digest(),
                FLAG.UP | FLAG.UV * self.verifies_user | FLAG.AT * bool(attested),
                key.counter,
                attested,
            )
        )


def _public_key_credential(key: Key, **response: Any) -> dict[str, Any]:
    return {
        "id": websafe_encode(key.id),
        "rawId": websafe_encode(key.id),
        "type": "public-key",
        "authenticatorAttachment": "platform",
        "clientExtensionResults": {},
        "response": {
            name: websafe_encode(value) if isinstance(value, bytes) else value
            for name, value in response.items()
        },
    }
