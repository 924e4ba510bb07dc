"""Pebble, Let's Encrypt's certificate authority for tests, and the names that it believes in."""

import json
import ssl
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.clients.programs import built
from tests.servers import Server, answers, free_ports


class Names(Server):
    """A name server for which every name is this machine's."""

    name = "pebble-challtestsrv"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._program = built(self.name)
        port, management = free_ports(2)
        self.address = f"127.0.0.1:{port}"
        self._management = f"127.0.0.1:{management}"

    def command(self) -> list[str]:
        off = [f"-{what}=" for what in ("doh", "http01", "https01", "tlsalpn01", "defaultIPv6")]
        listen = [f"-dnsserver={self.address}", f"-management={self._management}"]
        return [str(self._program), *listen, *off]

    def ready(self) -> bool:
        return answers(f"http://{self._management}/", status=404)


class Pebble(Server):
    """A certificate authority. It asks for challenges at ``port``, whatever the name."""

    name = "pebble"

    def __init__(self, directory: Path, names: Names) -> None:
        super().__init__(directory)
        self._program = built(self.name)
        self._names = names
        listen, management, self.port, tls = free_ports(4)
        self.directory_url = f"https://127.0.0.1:{listen}/dir"
        self._management = f"https://127.0.0.1:{management}"
        self.certificate = directory / "pebble.pem"
        key = directory / "pebble-key.pem"
        _make_certificate(self.certificate, key)
        config = {
            "listenAddress": f"127.0.0.1:{listen}",
            "managementListenAddress": f"127.0.0.1:{management}",
            "certificate": str(self.certificate),
            "privateKey": str(key),
            "httpPort": self.port,
            "tlsPort": tls,
        }
        (directory / "config.json").write_text(json.dumps({"pebble": config}))

    def command(self) -> list[str]:
        config = f"-config={self.directory / 'config.json'}"
        return [str(self._program), config, "-strict", f"-dnsserver={self._names.address}"]

    def environment(self) -> Mapping[str, str]:
        # It refuses one good nonce in twenty too, as it does by default.
        return {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_AUTHZREUSE": "0"}

    def ready(self) -> bool:
        return answers(self.directory_url) and answers(f"{self._management}/roots/0")

    def root(self) -> str:
        """The certificate that clients have to trust, another one after each start."""
        return self._ask("/roots/0").decode()

    def suggest(self, chain: str, start: datetime, end: datetime) -> None:
        """When this certificate is to be renewed (RFC 9773)."""
        window = {"start": start.isoformat(), "end": end.isoformat()}
        told = {"Certificate": chain, "ARIResponse": json.dumps({"suggestedWindow": window})}
        self._ask("/set-renewal-info/", json.dumps(told).encode())

    def _ask(self, path: str, data: bytes | None = None) -> bytes:
        trust = ssl.create_default_context(cafile=str(self.certificate))
        url = self._management + path
        with urllib.request.urlopen(url, data=data, context=trust, timeout=10) as answer:
            body: bytes = answer.read()
            return body


def _make_certificate(path: Path, key_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pebble")])
    now = datetime.now(UTC)
    alternatives = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(alternatives, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    key_path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
