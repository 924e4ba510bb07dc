"""How secrets that we made are kept: hashed. Each is 32 random bytes, so that nothing slower than
SHA-256 is needed."""

import hashlib


def hashed(secret: str) -> bytes:
    """The hash of what somebody presents as such a secret."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()
