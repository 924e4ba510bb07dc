"""To which networks images go: chosen for a repository, else for its account, else for all.

Private images stay here, but for those whose layers are encrypted, and unless who owns them insists
in words. A choice of none holds too: then nothing goes anywhere, whatever was chosen above.
"""

from collections.abc import Sequence
from typing import Any

from chalicelib.context import Context
from chalicelib.identity.open import Open
from chalicelib.identity.users import Refused
from chalicelib.metadata import audit, resolver_choices, resolvers
from chalicelib.metadata.database import Transaction
from chalicelib.metadata.grants import Place
from chalicelib.metadata.resolver_choices import ALL, Choice
from chalicelib.metadata.webhooks import account_of

INSISTENCE = "anyone can fetch these layers"
"""What somebody must write to have private images go to networks."""
MOST = 8
"""Resolvers of one choice."""


def put(
    context: Context, place: Place, names: Sequence[str], insistence: str = "", *, by: str
) -> Choice:
    """Choose resolvers for a repository, an account or all (``ALL``); none with no names. What is
    there already goes there too, and is taken away where it may not be any more, by jobs.
    ``insistence`` is what was written to have private images go there too. Raises ``Refused``."""
    chosen = list(dict.fromkeys(names))
    if len(chosen) > MOST:
        raise Refused(f"At most {MOST} resolvers are chosen.", "resolvers")
    insisted = _insisted(context, place, insistence)

    def work(transaction: Transaction) -> Choice:
        account = _account(transaction, place)
        usable = resolvers.hold_usable(transaction, account, chosen) | context.resolvers.own.keys()
        for name in chosen:
            if name not in usable:
                raise Refused(f"There is no resolver {name} here that can be chosen.", "resolvers")
        _note(transaction, "choose", place, by, chosen, insisted=insisted)
        return resolver_choices.put(transaction, place, chosen, insisted, by)

    made = context.database.transaction(work)
    context.wake()
    return made


def remove(context: Context, place: Place, *, by: str) -> bool:
    """Choose nothing for a place itself; False where nothing was chosen."""

    def work(transaction: Transaction) -> bool:
        before = resolver_choices.find(transaction, place)
        if before is None:
            return False
        resolver_choices.remove(transaction, place)
        _note(transaction, "unchoose", place, by, before.resolvers)
        return True

    done = context.database.transaction(work)
    context.wake()
    return done


def _insisted(context: Context, place: Place, insistence: str) -> bool:
    if not insistence:
        return False
    if insistence != INSISTENCE:
        raise Refused(
            "Whoever knows a CID can fetch what it names, so private images stay here unless their"
            " layers are encrypted. To have them go to networks all the same, write exactly:"
            f" {INSISTENCE}",
            "insistence",
        )
    if place == ALL and not isinstance(context.access, Open):
        raise Refused(
            "Nobody can insist for all: the images are their owners', who can insist for an account"
            " or a repository.",
            "insistence",
        )
    return True


def _account(transaction: Transaction, place: Place) -> int | None:
    return None if place == ALL else account_of(transaction, place)


def _note(
    transaction: Transaction, what: str, place: Place, by: str, names: Sequence[str],
    **detail: Any,
) -> None:  # fmt: skip
    audit.add(
        transaction, f"resolver.{what}", by,
        account=_account(transaction, place), repository=place.repository,
        # Of a name no account's is kept: the log holds no names of people.
        resolvers=[name.rpartition("/")[2] for name in names], **detail,
    )  # fmt: skip
