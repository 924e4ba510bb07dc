"""The table of jobs: what kinds there are, and which recur."""

from chalicelib.jobs import (
    DAY,
    HOUR,
    MINUTE,
    Kind,
    collection,
    expiry,
    orphans,
    quotas,
    retention,
    triggers,
    webhooks,
)
from chalicelib.metadata.webhooks import DELIVER

KINDS = (
    Kind("uploads.expire", expiry.uploads, every=5 * MINUTE),
    Kind("collect", collection.perform, every=5 * MINUTE),
    Kind("quotas.warn", quotas.warn),
    Kind("identity.expire", expiry.identity, every=5 * MINUTE),
    Kind(orphans.KIND, orphans.perform, every=DAY),
    Kind("retention", retention.schedule, every=HOUR),
    Kind(retention.KIND, retention.perform, tries=4),
    Kind(DELIVER, webhooks.deliver, webhooks.TRIES, webhooks.FIRST, webhooks.MOST),
    Kind(webhooks.NOTIFY, webhooks.notify),
    Kind("webhooks.expire", webhooks.expire, every=HOUR),
    Kind("triggers.expire", triggers.expire, every=HOUR),
)
