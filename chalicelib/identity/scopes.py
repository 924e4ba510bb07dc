"""Scopes: what a token is confined to, as `repository:GLOB:ACTIONS`.

The grammar is that of the token server's `scope` parameter (distribution, "Token Scope
Documentation"), with `*` in the name for any characters, slashes too. `account:GLOB:ACTIONS`
confines what a token may do by the API with an account itself.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

ACTIONS = {
    "repository": ("pull", "push", "delete", "admin"),
    "account": ("read", "admin"),
}
"""What may be done with each kind of thing."""

_GLOB = re.compile(r"[a-z0-9._/*+-]{1,255}")


class Scope(NamedTuple):
    """One scope."""

    kind: str
    name: str
    actions: frozenset[str]

    def __str__(self) -> str:
        ordered = [action for action in ACTIONS[self.kind] if action in self.actions]
        return f"{self.kind}:{self.name}:{','.join(ordered)}"


class ScopeError(ValueError):
    """A scope that is none; the text is a sentence for the person who wrote it."""


def parse(texts: Iterable[str]) -> tuple[Scope, ...]:
    """Scopes given one by one, or several in one text with spaces between. Raises
    ``ScopeError``."""
    return tuple(_parse(word) for text in texts for word in text.split())


@lru_cache(maxsize=1024)
def _parse(text: str) -> Scope:
    kind, _, rest = text.partition(":")
    name, _, actions = rest.rpartition(":")
    if kind not in ACTIONS or not name:
        raise ScopeError(f"{text[:300]!r} is no scope: write repository:alice/*:pull,push")
    if _GLOB.fullmatch(name) is None:
        raise ScopeError(f"{name[:300]!r} is no name: * stands for any characters, * alone for all")
    wanted = frozenset(actions.split(","))
    unknown = wanted - {*ACTIONS[kind], "*"}
    if unknown or not actions:
        raise ScopeError(
            f"{actions[:300]!r} are not actions: those of a scope for a {kind} are"
            f" {', '.join(ACTIONS[kind])}, or *"
        )
    return Scope(kind, name, frozenset(ACTIONS[kind]) if "*" in wanted else wanted)


def allowed(scopes: Iterable[Scope], kind: str, name: str) -> frozenset[str]:
    """What the scopes allow to be done with a thing of that name."""
    found: frozenset[str] = frozenset()
    for scope in scopes:
        if scope.kind == kind and matches(scope.name, name):
            found |= scope.actions
    return found


def matches(glob: str, text: str) -> bool:
    """Whether a glob, in which ``*`` stands for any characters, is about the whole of a text. In
    time linear in the text: whoever writes globs cannot make it slow."""
    first, *rest = glob.split("*")
    if not rest:
        return text == glob
    if not text.startswith(first):
        return False
    at = len(first)
    for part in rest[:-1]:
        at = text.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return len(text) - at >= len(rest[-1]) and text.endswith(rest[-1])
