"""What a webhook's request holds: an event as CloudEvents 1.0, or as Docker's notifications."""

import json
from datetime import UTC, datetime
from typing import Any

from chalicelib import __version__
from chalicelib.metadata.webhooks import Due

CLOUDEVENTS = "application/cloudevents+json"
DOCKER = "application/vnd.docker.distribution.events.v1+json"


def rendered(due: Due, source: str) -> tuple[str, bytes]:
    """The media type and the body for an event. ``source`` is the registry's URL."""
    if due.format == "docker":
        return DOCKER, _json({"events": _notifications(due, source)})
    return CLOUDEVENTS, _json(_cloud_event(due, source))


def _cloud_event(due: Due, source: str) -> dict[str, Any]:
    """CloudEvents 1.0.2, JSON event format, structured mode."""
    event = due.event
    repository = event["repository"]
    return {
        "specversion": "1.0",
        "id": due.id,
        "source": source,
        "type": f"org.openregistry.{event['kind']}",
        **({"subject": repository} if repository else {}),
        "time": _time(due.created_at),
        "datacontenttype": "application/json",
        "data": {
            **event["detail"],
            **({"repository": repository} if repository else {}),
            "actor": {"id": event["subject"], "name": due.actor},
        },
    }


def _notifications(due: Due, source: str) -> list[dict[str, Any]]:
    """Distribution's envelope has one event for each tag that a push set."""
    event = due.event
    detail, repository = event["detail"], event["repository"]
    digest = detail.get("digest")
    target = {
        "mediaType": detail.get("media_type"),
        "digest": digest,
        "size": detail.get("size"),
        "length": detail.get("size"),
        "repository": repository or None,
        "url": f"{source}/v2/{repository}/manifests/{digest}" if repository and digest else None,
    }
    return [
        {
            "id": due.id if number == 0 else f"{due.id}.{number}",
            "timestamp": _time(due.created_at),
            "action": event["kind"],
            "target": {
                name: value for name, value in {**target, "tag": tag}.items() if value is not None
            },
            "request": {
                "id": due.id,
                "host": source.partition("://")[2],
                "method": _METHODS.get(event["kind"], ""),
                "useragent": "",
            },
            "actor": {"name": due.actor or event["subject"]},
            "source": {
                "addr": source.partition("://")[2],
                "instanceID": f"openregistry/{__version__}",
            },
        }
        for number, tag in enumerate(detail.get("tags") or [detail.get("tag")])
    ]


_METHODS = {"push": "PUT", "pull": "GET", "delete": "DELETE"}


def _time(at: datetime) -> str:
    """RFC 3339."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
