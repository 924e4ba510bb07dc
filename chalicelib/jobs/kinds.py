"""The table of jobs: what kinds there are, and which recur."""

from chalicelib.jobs import (
    DAY,
    HOUR,
    MINUTE,
    Kind,
    certificates,
    collection,
    expiry,
    healing,
    indexing,
    orphans,
    probing,
    quotas,
    resolving,
    retention,
    triggers,
    verifying,
    webhooks,
)
from chalicelib.metadata import resolver_copies
from chalicelib.metadata.webhooks import DELIVER
from chalicelib.registry import direct
from chalicelib.resolvers.healing import KIND as HEAL

KINDS = (
    Kind("uploads.expire", expiry.uploads, every=5 * MINUTE),
    Kind("collect", collection.perform, every=5 * MINUTE),
    Kind("quotas.warn", quotas.warn),
    Kind(direct.VERIFY, verifying.piece, *verifying.PATIENCE),
    Kind(direct.COMMIT, verifying.whole, *verifying.PATIENCE),
    Kind("identity.expire", expiry.identity, every=5 * MINUTE),
    Kind(orphans.KIND, orphans.perform, every=DAY),
    Kind("retention", retention.schedule, every=HOUR),
    Kind(retention.KIND, retention.perform, tries=4),
    Kind(DELIVER, webhooks.deliver, webhooks.TRIES, webhooks.FIRST, webhooks.MOST),
    Kind(webhooks.NOTIFY, webhooks.notify),
    Kind("webhooks.expire", webhooks.expire, every=HOUR),
    Kind(resolver_copies.IMAGE, resolving.image),
    Kind(resolver_copies.PUT, resolving.put, *resolving.PATIENCE),
    Kind(resolver_copies.DERIVE, resolving.derive, *resolving.PATIENCE),
    Kind(resolver_copies.UNPIN, resolving.unpin, *resolving.PATIENCE),
    Kind(resolver_copies.FILL, resolving.fill),
    Kind(resolver_copies.CHECK, resolving.check, every=HOUR),
    Kind("resolve.catch-up", resolving.catch_up, every=6 * HOUR),
    Kind("resolve.release", resolving.release, every=5 * MINUTE),
    Kind(HEAL, healing.perform),
    Kind("index.publish", indexing.perform, every=HOUR),
    Kind(probing.KIND, probing.perform, every=probing.EVERY, wanted=probing.wanted),
    Kind("triggers.expire", triggers.expire, every=HOUR),
    Kind(
        certificates.KIND,
        certificates.renew,
        *certificates.PATIENCE,
        every=certificates.EVERY,
        wanted=certificates.wanted,
    ),
)
