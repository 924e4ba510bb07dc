"""Platforms that images are for (OCI Image 1.1, "Image Index", `platform`), and which of those that
an index offers serves one that is wanted."""

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chalicelib.client.names import BadName

_WRITTEN = re.compile(r"([a-z0-9]+)/([a-z0-9_]+)(?:/([a-z0-9.]+))?")

_MACHINES = {
    "x86_64": ("amd64", ""),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armhf": ("arm", "v7"),
    "loongarch64": ("loong64", ""),
}
"""The kernel's names of machines, where Go's, which images use, are others."""

_PLAIN = {"amd64": "v1", "arm": "v7", "arm64": "v8"}
"""The variant that is meant where none is said (containerd's rule)."""


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system, an architecture by Go's names, and a variant, or none."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> "Platform":
        """Read ``os/arch`` or ``os/arch/variant``. Raises ``BadName``."""
        match = _WRITTEN.fullmatch(text.lower())
        if match is None:
            raise BadName(f"{text!r} is no platform: os/arch or os/arch/variant, as linux/arm64.")
        architecture, variant = _MACHINES.get(match[2], (match[2], ""))
        return cls(match[1], architecture, match[3] or variant)

    @classmethod
    def of(cls, fields: Any) -> "Platform | None":
        """That of a descriptor's ``platform`` or of an image's config; None where there is none."""
        if not isinstance(fields, dict) or not fields.get("os") or not fields.get("architecture"):
            return None
        variant = str(fields.get("variant") or "")
        return cls(str(fields["os"]), str(fields["architecture"]), variant)

    @classmethod
    def here(cls) -> "Platform":
        """That of containers on this machine: Linux, whatever it runs itself."""
        machine = platform.machine().lower()
        architecture, variant = _MACHINES.get(machine, (machine, ""))
        return cls("linux", architecture, variant)

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    def serves(self, wanted: "Platform") -> int | None:
        """How far this is from the one that is wanted: 0 the same, None it does not serve. An
        older variant serves a newer one; any does where none was asked for."""
        if (self.os, self.architecture) != (wanted.os, wanted.architecture):
            return None
        plain = _PLAIN.get(self.architecture, "")
        mine, other = self.variant or plain, wanted.variant or plain
        if mine == other:
            return 0
        older = _number(other) - _number(mine) if _number(mine) and _number(other) else 0
        if older > 0:
            return older
        return None if wanted.variant else 100


def choose(offered: Sequence[Platform | None], wanted: Platform) -> int | None:
    """The place of the one that serves best, of several the first; None where none does."""
    best: tuple[int, int] | None = None
    for place, each in enumerate(offered):
        distance = None if each is None else each.serves(wanted)
        if distance is not None and (best is None or distance < best[0]):
            best = distance, place
    return None if best is None else best[1]


def _number(variant: str) -> int:
    match = re.fullmatch(r"v(\d+)", variant)
    return int(match[1]) if match else 0
