"""Quotas: how much an account may keep, and what it keeps. Administrators of the registry set
them."""

from typing import Annotated

import msgspec

from chalicelib.api.operations import Call, Needs, Operation
from chalicelib.api.problems import Problem
from chalicelib.metadata import accounts
from chalicelib.metadata import quotas as rows
from chalicelib.registry import quotas

Limit = Annotated[int, msgspec.Meta(ge=0, le=quotas.MOST)]


class NewQuota(msgspec.Struct, forbid_unknown_fields=True):
    """What may be kept: in bytes of blobs and manifests, and in repositories. None: any number."""

    bytes: Limit | None = None
    repositories: Limit | None = None


class Quota(msgspec.Struct):
    """What an account may keep, and what it keeps. A limit of None is none; ``own``: it was set for
    this account, and is not that of all. In ``used_bytes`` a blob counts once, in however many
    repositories it is, and a manifest in each."""

    own: bool
    bytes: int | None
    repositories: int | None
    used_bytes: int
    used_repositories: int


class DefaultQuota(msgspec.Struct):
    """What accounts may keep that have no quota of their own."""

    bytes: int | None
    repositories: int | None


def show_quota(call: Call) -> Quota:
    """What an account may keep, and what it keeps."""
    return _shown(rows.find(call.context.database, call.params["account"]))


def set_quota(call: Call) -> Quota:
    """Give an account a quota of its own. What it keeps already stays."""
    return _shown(_put(call, _account(call)))


def unset_quota(call: Call) -> None:
    """Have an account keep what all may."""
    if not quotas.remove(call.context.database, _account(call), by=call.subject.id):
        raise Problem(404, "This account has no quota of its own.")


def show_default_quota(call: Call) -> DefaultQuota:
    """What accounts may keep that have no quota of their own."""
    return DefaultQuota(*rows.default(call.context.database))


def set_default_quota(call: Call) -> DefaultQuota:
    """Say what accounts may keep that have no quota of their own."""
    found = _put(call, rows.DEFAULT)
    return DefaultQuota(found.bytes, found.repositories)


def unset_default_quota(call: Call) -> None:
    """Let accounts keep whatever they like that have no quota of their own."""
    if not quotas.remove(call.context.database, rows.DEFAULT, by=call.subject.id):
        raise Problem(404, "There is no quota for all.")


def _put(call: Call, namespace: str) -> rows.Quota:
    body: NewQuota = call.body
    return quotas.put(
        call.context.database, namespace, body.bytes, body.repositories, by=call.subject.id
    )


def _account(call: Call) -> str:
    """The name of the path's account, which has a namespace."""
    found = accounts.by_name(call.context.database, call.params["account"])
    if found is None or found.kind == "robot":
        raise Problem(404, "There is no such user or organisation.")
    return found.name


def _shown(quota: rows.Quota) -> Quota:
    return Quota(
        own=quota.own,
        bytes=quota.bytes,
        repositories=quota.repositories,
        used_bytes=quota.used_bytes,
        used_repositories=quota.used_repositories,
    )


_ONE = "/accounts/{account}/quota"
_DEFAULT = "/admin/quota"
OPERATIONS = (
    Operation("GET", _ONE, show_quota, Needs.ACCOUNT_READ,
              "What an account may keep, and what it keeps", answer=Quota),
    Operation("PUT", _ONE, set_quota, Needs.ADMINISTRATOR, "Give an account a quota",
              body=NewQuota, answer=Quota),
    Operation("DELETE", _ONE, unset_quota, Needs.ADMINISTRATOR, "Take an account's quota away"),
    Operation("GET", _DEFAULT, show_default_quota, Needs.ADMINISTRATOR,
              "The quota of accounts without their own", answer=DefaultQuota),
    Operation("PUT", _DEFAULT, set_default_quota, Needs.ADMINISTRATOR,
              "Set the quota of accounts without their own", body=NewQuota, answer=DefaultQuota),
    Operation("DELETE", _DEFAULT, unset_default_quota, Needs.ADMINISTRATOR,
              "Take away the quota of accounts without their own", problems=(404,)),
)  # fmt: skip
