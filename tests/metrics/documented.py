"""The table of docs/observing.md, as the catalogue would have it."""

from chalicelib.metrics.catalogue import METRICS


def table() -> str:
    """In Markdown."""
    lines = ["| metric | kind | labels | what it is |", "|---|---|---|---|"]
    lines += [
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{each}`' for each in metric.labels)}"
        f" | {metric.help} |"
        for metric in METRICS
    ]
    return "\n".join(lines) + "\n"
