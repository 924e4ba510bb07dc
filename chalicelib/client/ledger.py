"""What this machine remembers of layers that it compressed and pushed: by the digest of the plain
tar, that of what it became. So a layer that a registry has already is not compressed again to find
that out (docker's "distribution metadata" does the same).

It is a hint: a registry is asked for the digest before it is used, and where it does not have it
the layer is compressed anew.
"""

import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from chalicelib.client.sources import Descriptor
from chalicelib.digests import is_digest

_MOST = 20_000
"""Lines after which the older half is forgotten: some 4 MB."""


def path(environment: Mapping[str, str]) -> Path:
    """Where it is kept (XDG Base Directory)."""
    home = environment.get("HOME") or "~"
    cache = environment.get("XDG_CACHE_HOME") or f"{home}/.cache"
    return Path(cache).expanduser() / "openregistry" / "layers.jsonl"


class Ledger:
    """Layers by their plain digests, in a file of lines, to which any process appends. One that
    cannot be read or written is empty. Threads may share it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._known: dict[str, Descriptor] = {}
        with suppress(OSError, UnicodeError):
            lines = file.read_text().splitlines()
            for line in lines:
                self._read(line)
            if len(lines) > _MOST:
                shorter = file.with_name(f"{file.name}.{os.getpid()}")
                shorter.write_text("\n".join([*lines[-_MOST // 2 :], ""]))
                shorter.replace(file)

    def find(self, plain: str) -> Descriptor | None:
        """What a plain layer became, if that is known."""
        return self._known.get(plain)

    def add(self, plain: str, layer: Descriptor) -> None:
        """Remember what a plain layer became."""
        with self._lock:
            if self._known.get(plain) == layer:
                return
            self._known[plain] = layer
            line = json.dumps({"plain": plain, "digest": layer.digest, "size": layer.size})
            with suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("ab", buffering=0) as file:
                    file.write(f"{line}\n".encode())

    def _read(self, line: str) -> None:
        with suppress(ValueError, LookupError, TypeError):
            held = json.loads(line)
            digest, size = held["digest"], held["size"]
            if is_digest(digest) and isinstance(size, int):
                self._known[held["plain"]] = Descriptor(digest, size=size)
