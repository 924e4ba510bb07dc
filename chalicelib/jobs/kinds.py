"""The table of jobs: what kinds there are, and which recur."""

from chalicelib.jobs import DAY, HOUR, MINUTE, Kind, collection, expiry, orphans, quotas, retention

KINDS = (
    Kind("uploads.expire", expiry.uploads, every=5 * MINUTE),
    Kind("collect", collection.perform, every=5 * MINUTE),
    Kind("quotas.warn", quotas.warn),
    Kind("identity.expire", expiry.identity, every=5 * MINUTE),
    Kind(orphans.KIND, orphans.perform, every=DAY),
    Kind("retention", retention.schedule, every=HOUR),
    Kind(retention.KIND, retention.perform, tries=4),
)
