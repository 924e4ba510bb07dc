"""What happens later: jobs that a transaction has written, and what recurs.

A job is done at least once, by a worker of any host. What it changes in Postgres it changes in the
transaction that ends it, and so once: the function of its kind returns that work. What it does to
others it may do twice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chalicelib.metadata.database import Transaction
from chalicelib.metadata.jobs import Job

if TYPE_CHECKING:
    from chalicelib.context import Context
    from chalicelib.settings import Settings

__all__ = ["GiveUp", "Job", "Kind", "Later", "NotNow", "TryAgain", "as_text"]

Later = Callable[[Transaction], None]
"""What ends with a job, in one transaction."""

MINUTE, HOUR, DAY = 60, 3600, 86400


class GiveUp(Exception):
    """Trying again would be in vain. The text is a sentence for whoever runs the registry."""


class TryAgain(Exception):
    """It did not work, for a reason that lies outside. The text is a sentence for whoever runs the
    registry."""


class NotNow(Exception):
    """It was not tried, and is to be in so many seconds: this is no failure."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Kind:
    """Jobs of one kind. ``perform`` does one; what it raises has it tried again, ``GiveUp`` not.
    It is tried ``tries`` times, after ``first`` seconds and then twice as long each time, ``most``
    at most. With ``every`` it recurs, so many seconds apart. Workers whose settings do not have it
    ``wanted`` leave it to others."""

    name: str
    perform: "Callable[[Context, Job], Later | None]"
    tries: int = 8
    first: float = 5
    most: float = 6 * HOUR
    every: int | None = None
    wanted: "Callable[[Settings], bool]" = lambda _settings: True

    def pause(self, tries: int) -> float:
        """Seconds until the next attempt, before jitter."""
        return float(min(self.first * 2.0 ** (tries - 1), self.most))


def as_text(sentence: str, most: int) -> str:
    """What Postgres takes for text, of ``most`` characters at most."""
    return sentence[:most].replace("\0", "")
