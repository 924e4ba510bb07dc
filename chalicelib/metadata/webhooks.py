"""Webhooks: whom events are told, the deliveries under way, and what became of them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from chalicelib.metadata.database import Runner

DELIVER = "webhook.deliver"
"""The kind of job that delivers one event to one webhook."""


def record(
    runner: Runner,
    repository: str,
    subject: str,
    kinds: Sequence[str],
    details: Sequence[Mapping[str, Any]],
) -> bool:
    """Have events of a repository delivered to each webhook that wants their kind, of the
    repository itself or of the account in whose namespace it lies. One statement, whatever their
    number; False where nobody wants any."""
    return bool(
        runner.run(
            "WITH wanted AS (SELECT w.id, e.kind, e.detail, e.number FROM webhooks w JOIN"
            " unnest(CAST(:kinds AS text[]), CAST(:details AS text[]))"
            " WITH ORDINALITY AS e (kind, detail, number) ON e.kind = ANY(w.events)"
            " WHERE w.enabled AND"
            " (w.repository_id = (SELECT id FROM repositories WHERE name = :repository)"
            " OR w.account_id ="
            " (SELECT id FROM accounts WHERE name = split_part(:repository, '/', 1)))"
            "), kept AS (INSERT INTO webhook_deliveries (id, webhook_id, event)"
            " SELECT gen_random_uuid(), id, jsonb_build_object('kind', kind, 'repository',"
            " CAST(:repository AS text), 'subject', CAST(:subject AS text),"
            " 'detail', CAST(detail AS jsonb)) FROM wanted ORDER BY number RETURNING id)"
            " INSERT INTO jobs (kind, data)"
            f" SELECT '{DELIVER}', jsonb_build_object('delivery', id) FROM kept RETURNING 1",
            kinds=list(kinds),
            details=[json.dumps(detail) for detail in details],
            repository=repository,
            subject=subject,
        )
    )
