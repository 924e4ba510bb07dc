"""Immutable tags: rules by which a tag, once pushed, is neither moved nor deleted by anybody.

A rule is one repository's, or is for all repositories of an account. Whoever wants an exception
takes the rule away first, which the audit log tells. Only the deletion of a whole repository takes
its immutable tags along: it is its administrator's, and noted too.
"""

import re
from collections.abc import Sequence

from chalicelib.identity import scopes
from chalicelib.identity.users import Refused
from chalicelib.metadata import audit, immutable_tags
from chalicelib.metadata.database import Database, Transaction
from chalicelib.metadata.grants import Place
from chalicelib.metadata.immutable_tags import Rule

MOST_RULES = 50
"""Rules of one repository or one account."""
MOST_EXCEPTIONS = 20
PATTERN = r"[a-zA-Z0-9._*-]{1,128}"


def checked_pattern(pattern: str, field: str) -> str:
    """A pattern of tags. Raises ``Refused``."""
    if not re.fullmatch(PATTERN, pattern):
        raise Refused(
            "A pattern of tags has at most 128 letters, digits, underscores, dots, dashes, and *,"
            " which stands for any characters.",
            field,
        )
    return pattern


def create(
    database: Database,
    place: Place,
    account: int | None,
    pattern: str,
    exceptions: Sequence[str],
    *,
    by: str,
) -> Rule:
    """Keep the tags of a place as they are that match ``pattern`` and none of ``exceptions``.
    ``account`` is whose namespace it is. Raises ``Refused``."""
    checked_pattern(pattern, "pattern")
    if len(exceptions) > MOST_EXCEPTIONS:
        raise Refused(f"A rule has at most {MOST_EXCEPTIONS} exceptions.", "exceptions")
    for each in exceptions:
        checked_pattern(each, "exceptions")

    def work(transaction: Transaction) -> Rule:
        if immutable_tags.count(transaction, place) >= MOST_RULES:
            raise Refused(
                f"There are at most {MOST_RULES} rules for immutable tags.", conflict=True
            )
        rule = immutable_tags.add(transaction, place, pattern, list(exceptions), by)
        _note(transaction, "create", place, account, rule, by)
        return rule

    return database.transaction(work)


def remove(database: Database, place: Place, account: int | None, rule_id: int, *, by: str) -> bool:
    """Take a rule away; False where there is none."""

    def work(transaction: Transaction) -> bool:
        rule = immutable_tags.remove(transaction, place, rule_id)
        if rule is None:
            return False
        _note(transaction, "delete", place, account, rule, by)
        return True

    return database.transaction(work)


def keeper(rules: Sequence[Rule], tag: str) -> Rule | None:
    """The rule by which a tag is immutable, as the database finds it."""
    for rule in rules:
        if scopes.matches(rule.pattern, tag) and not any(
            scopes.matches(each, tag) for each in rule.exceptions
        ):
            return rule
    return None


def _note(
    transaction: Transaction, what: str, place: Place, account: int | None, rule: Rule, by: str
) -> None:
    audit.add(
        transaction,
        f"immutable_tags.{what}",
        by,
        account=account,
        repository=place.repository,
        id=rule.id,
        pattern=rule.pattern,
        exceptions=rule.exceptions,
    )
