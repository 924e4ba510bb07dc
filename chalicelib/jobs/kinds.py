"""The table of jobs: what kinds there are, and which recur."""

from chalicelib.jobs import MINUTE, Kind, expiry

KINDS = (
    Kind("uploads.expire", expiry.uploads, every=5 * MINUTE),
    Kind("identity.expire", expiry.identity, every=5 * MINUTE),
)
