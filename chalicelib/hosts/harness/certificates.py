"""What a worker shows to clients that speak TLS, and how it comes to a newer certificate."""

import logging
import os
import ssl
from pathlib import Path
from typing import Protocol

from chalicelib.settings import Settings, SettingsError

_log = logging.getLogger(__name__)

REFRESH_SECONDS = 5
"""How often workers look for a newer certificate."""


class Certificates(Protocol):
    """Each worker has one of its own after it was forked."""

    @property
    def context(self) -> ssl.SSLContext:
        """What new connections use."""

    def refresh(self) -> None:
        """Look for a newer certificate. May block; where none can be had, the former stays."""


class Files:
    """The certificate and its key in two PEM files, which whoever renews it replaces. Raises
    ``SettingsError`` where they cannot be used at first."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._seen = [_stamp(file) for file in self._files]
        try:
            self.context = self._load()
        except OSError as error:
            raise SettingsError(
                "OPENREGISTRY_TLS_CERTIFICATE", f"{certificate} and {key} cannot be used: {error}"
            ) from error

    def refresh(self) -> None:
        stamps = [_stamp(file) for file in self._files]
        if stamps == self._seen:
            return
        # Before they are read: what changes meanwhile, as the second of the two does, is read anew.
        self._seen = stamps
        try:
            self.context = self._load()
        except OSError as error:
            _log.warning("%s and %s cannot be used; the former stay: %s", *self._files, error)
        else:
            _log.info("the certificate in %s is in use", self._files[0])

    def _load(self) -> ssl.SSLContext:
        context = new_context()
        context.load_cert_chain(*self._files)
        return context


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """What another file at the same place has otherwise."""
    try:
        state = file.stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns, state.st_size


def from_files(settings: Settings) -> Files | None:
    """The certificate in files, where the settings name some. Raises ``SettingsError``."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return Files(settings.tls_certificate, settings.tls_key)


def new_context() -> ssl.SSLContext:
    """A context of the server's, without a certificate yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def context_of(pem: bytes) -> ssl.SSLContext:
    """A context with a key and its certificates, all PEM. They touch no disk. Raises ``OSError``
    where they cannot be used."""
    context = new_context()
    # OpenSSL reads them from a file alone.
    number = os.memfd_create("certificate", os.MFD_CLOEXEC)
    with os.fdopen(number, "wb", buffering=0) as file:
        file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{number}")
    return context
