"""The table of jobs: what kinds there are, and which recur."""

from chalicelib.jobs import DAY, MINUTE, Kind, collection, expiry, orphans, quotas

KINDS = (
    Kind("uploads.expire", expiry.uploads, every=5 * MINUTE),
    Kind("collect", collection.perform, every=5 * MINUTE),
    Kind("quotas.warn", quotas.warn),
    Kind("identity.expire", expiry.identity, every=5 * MINUTE),
    Kind(orphans.KIND, orphans.perform, every=DAY),
)
