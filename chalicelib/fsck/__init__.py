"""The check of the whole registry: rows against objects against digests.

It runs while the registry does. So nothing is believed that was seen at two moments: what the
listings of objects and of rows do not agree about is looked at once more, the object first and then
the row. An object that is not there, and a row that has its key afterwards, cannot both be so in a
registry that is whole: a key is written into a row once its object is complete, collection removes
rows before objects, and no key is used again. The other way round, an object that no row knows is
asked for in Postgres after it was listed, since a key is written down before its first byte; and
once more in the store after that, since it keeps its row until it is cleared away. Of manifests
what is wrong is looked at again under a lock.

A repair never deletes what may be wanted. A lost blob is marked, as the first pull would mark it,
and put back from a network that has it. A damaged object is set aside: its blob is lost from then
on, and the object is deleted after ``QUARANTINE`` seconds. What no row knows is for the sweep
(``jobs/orphans.py``), which has guards of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from chalicelib.jobs import DAY

QUARANTINE = 30 * DAY
"""Seconds for which a damaged object is kept."""

Kind = Literal[
    "store",
    "lost",
    "found",
    "damaged",
    "unreadable",
    "orphan",
    "manifest",
    "reference",
    "incomplete",
    "upload",
]

Tell = Callable[[str, int, int], None]
"""Told how it goes: what is done, how much of it, and how much there is to do."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, in a sentence that says what follows or what to do. ``repair`` is
    what was done about it, empty where nothing was. ``size`` is in bytes."""

    kind: Kind
    sentence: str
    digest: str = ""
    key: str = ""
    repository: str = ""
    size: int = 0
    repair: str = ""


class Refused(Exception):
    """Nothing can be repaired here. The text is a sentence."""


def duration(seconds: float) -> str:
    """A time, for people to read."""
    for unit, name in ((DAY, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds // unit:.0f} {name}"
    return f"{max(seconds, 0):.0f} s"
