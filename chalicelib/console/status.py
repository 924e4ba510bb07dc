"""The page ``/status``: what came of the registry's own probes, now and in the last 90 days.

Everybody may see it, so it tells which step failed and with what status, and no more: the sentence
is in the log. It is HTML that needs no script, and the same as JSON.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from html import escape
from typing import Any

from chalicelib.console import SECURITY, sent
from chalicelib.context import Context
from chalicelib.http import JSON, Request, Response, Unavailable
from chalicelib.metadata import status as rows
from chalicelib.metadata.status import DAYS, Day, Probe

SECONDS_APART = 300
PROBES_EACH_DAY = 86400 // SECONDS_APART
_FAILURES = 10
_STEPS = ("sign-in", "push", "pull")
_NAMES = {"sign-in": "Sign in", "push": "Push", "pull": "Pull"}
_WORDS = {
    "works": "Everything works",
    "fails": "Something does not work",
    "unknown": "Not known: no probe was made lately",
}
_CACHE = ("Cache-Control", "no-cache")


@dataclass(frozen=True, slots=True)
class Status:
    """All that is told. ``state`` is ``works``, ``fails`` or ``unknown``."""

    state: str
    last: Probe | None
    today: date
    gone: float
    """Seconds of today."""
    day: Sequence[Day]
    days: Sequence[Day]
    failures: Sequence[Probe]


@dataclass(frozen=True, slots=True)
class Span:
    """What came of the probes of some days: how many were made and failed, of how many that there
    could have been."""

    made: int
    failed: int
    possible: int

    @property
    def uptime(self) -> float | None:
        """The part of those made that did not fail."""
        return (self.made - self.failed) / self.made if self.made else None

    @property
    def state(self) -> str:
        """``works``, ``partly``, ``fails`` (more than half), or ``unknown`` where few were made."""
        if self.failed * 2 > self.made:
            return "fails"
        if self.failed:
            return "partly"
        return "works" if self.made * 2 >= max(self.possible, 1) else "unknown"


def page(context: Context, request: Request) -> Response:
    """``/status``. Without a database it says so, from this process alone."""
    try:
        status, content = 200, _html(_found(context))
    except Unavailable:
        status, content = 503, _page(
            "fails", "The registry does not work: its database does not answer", []
        )  # fmt: skip
    headers = [("Content-Type", "text/html; charset=utf-8"), *SECURITY]
    return _answer(context, request, status, headers, content.encode())


def document(context: Context, request: Request) -> Response:
    """``/status.json``: the same."""
    try:
        status, content = 200, _json(_found(context))
    except Unavailable:
        status, content = 503, {"state": "fails", "reason": "the database does not answer"}
    headers = [("Content-Type", JSON), ("Access-Control-Allow-Origin", "*")]
    return _answer(context, request, status, headers, json.dumps(content).encode())


def style(context: Context, request: Request) -> Response:
    """Its style, ``/status.css``."""
    return sent(context, request, "status.css", "text/css; charset=utf-8")


def _answer(
    context: Context,
    request: Request,
    status: int,
    headers: list[tuple[str, str]],
    content: bytes,
) -> Response:
    headers += [_CACHE, ("Content-Length", str(len(content)))]
    if status == 503:
        headers.append(("Retry-After", "60"))
    bodiless = request.method == "HEAD" and not context.head_by_redirect
    return Response(status, headers, b"" if bodiless else content)


def _found(context: Context) -> Status:
    database = context.database
    newest = rows.newest(database)
    today, gone = rows.today(database)
    return Status(
        rows.state(database),
        newest[0] if newest else None,
        today,
        gone,
        rows.last_day(database),
        rows.days(database),
        rows.failures(database, _FAILURES),
    )


def _spans(found: Status) -> list[tuple[date, Span]]:
    """Each of the last 90 days, the oldest first. Each probe signs in first, and fails in one step
    at most. On the first day of all there could be as many as there were, before it none."""
    first = min((each.day for each in found.days), default=found.today)
    made, failed = Counter[date](), Counter[date]()
    for each in found.days:
        made[each.day] += each.tried if each.step == _STEPS[0] else 0
        failed[each.day] += each.failed
    spans = []
    for ago in reversed(range(DAYS)):
        day = found.today - timedelta(days=ago)
        possible = PROBES_EACH_DAY if ago else int(found.gone / SECONDS_APART)
        if day <= first:
            possible = made[day]
        spans.append((day, Span(made[day], failed[day], max(possible, made[day]))))
    return spans


def _periods(found: Status) -> list[tuple[str, Span]]:
    spans = [each for _, each in _spans(found)]
    made = sum(each.tried for each in found.day if each.step == _STEPS[0])
    failed = sum(each.failed for each in found.day)
    possible = min(PROBES_EACH_DAY, sum(each.possible for each in spans[-2:]))
    return [
        ("24 hours", Span(made, failed, max(possible, made))),
        ("7 days", _together(spans[-7:])),
        (f"{DAYS} days", _together(spans)),
    ]


def _together(spans: Sequence[Span]) -> Span:
    return Span(
        sum(each.made for each in spans),
        sum(each.failed for each in spans),
        sum(each.possible for each in spans),
    )


# As JSON.


def _json(found: Status) -> dict[str, Any]:
    return {
        "state": found.state,
        "last_probe": _shown(found.last) if found.last else None,
        "steps": {
            each.step: {"tried": each.tried, "failed": each.failed, "median_ms": each.median,
                        "percentile_95_ms": each.percentile_95}
            for each in found.day
        },
        "periods": {name: _figures(each) for name, each in _periods(found)},
        "days": [
            {"day": day.isoformat(), "state": each.state, **_figures(each)}
            for day, each in _spans(found)
        ],
        "failures": [_shown(each) for each in found.failures],
    }  # fmt: skip


def _figures(each: Span) -> dict[str, Any]:
    return {"probes": each.made, "failed": each.failed, "possible": each.possible,
            "uptime": each.uptime}  # fmt: skip


def _shown(probe: Probe) -> dict[str, Any]:
    took = {"sign-in": probe.sign_in, "push": probe.push, "pull": probe.pull}
    shown: dict[str, Any] = {"at": probe.at.isoformat(), "milliseconds": took}
    if probe.failed:
        shown |= {"failed": probe.failed, "status": probe.status, "code": probe.code}
    return shown


# As HTML.


def _html(found: Status) -> str:
    parts = []
    if found.last is not None:
        last = found.last
        said = (
            f"{_NAMES[last.failed]} failed: {_why(last)}." if last.failed else "All steps worked."
        )
        parts.append(f"<p>Last probe: {_time(last.at)}. {escape(said)}</p>")
    parts.append(_steps(found))
    parts.append(_history(found))
    if found.failures:
        items = "".join(
            f"<li>{_time(each.at)}: {_NAMES[each.failed or '']}, {escape(_why(each))}</li>"
            for each in found.failures
        )
        parts.append(f"<h2>Last failures</h2><ul>{items}</ul>")
    return _page(found.state, _WORDS[found.state], parts)


def _steps(found: Status) -> str:
    by_step = {each.step: each for each in found.day}
    lines = []
    for step in _STEPS:
        each = by_step.get(step, Day(found.today, step, 0, 0, None, None))
        lines.append(
            f"<tr><td>{_NAMES[step]}</td><td>{each.tried}</td><td>{each.failed}</td>"
            f"<td>{_milliseconds(each.median)}</td><td>{_milliseconds(each.percentile_95)}</td></tr>"
        )
    return (
        "<h2>Last 24 hours</h2><table><tr><th>Step</th><th>Tried</th><th>Failed</th>"
        f"<th>Median</th><th>95th percentile</th></tr>{''.join(lines)}</table>"
    )


def _history(found: Status) -> str:
    bars = []
    for place, (day, each) in enumerate(_spans(found)):
        told = f"{day.isoformat()}: {each.made} probes, {each.failed} failed"
        bars.append(
            f'<rect class="{each.state}" x="{place * 10}" y="0" width="8" height="40">'
            f"<title>{told}</title></rect>"
        )
    lines = "".join(
        f"<tr><td>{name}</td><td>{_percent(each.uptime)}</td><td>{each.made}</td>"
        f"<td>{each.failed}</td><td>{each.possible - each.made}</td></tr>"
        for name, each in _periods(found)
    )
    return (
        f'<h2>Last {DAYS} days</h2><svg viewBox="0 0 {DAYS * 10} 40" preserveAspectRatio="none"'
        f' role="img" aria-label="One bar for each day, the last one today">{"".join(bars)}</svg>'
        "<table><tr><th>Period</th><th>Worked</th><th>Probes</th><th>Failed</th>"
        f"<th>Not made</th></tr>{lines}</table>"
    )


def _page(state: str, words: str, parts: Sequence[str]) -> str:
    now = datetime.now(UTC).replace(microsecond=0)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>OpenRegistry: status</title>"
        '<link rel="stylesheet" href="/status.css"></head><body><main><h1>Status</h1>'
        f'<p class="now {state}" role="status">{escape(words)}</p>{"".join(parts)}'
        "<footer><p>Every five minutes the registry signs in to itself, pushes an image, and pulls"
        " it back. When nothing can be tried, nothing is known: such probes are not made."
        f'</p><p>{_time(now)}. The same as <a href="/status.json">JSON</a>.</p></footer>'
        "</main></body></html>\n"
    )


def _why(probe: Probe) -> str:
    if not probe.status:
        return "no answer"
    return f"{probe.status} {probe.code}".rstrip() if probe.status >= 300 else "wrong bytes"


def _time(at: datetime) -> str:
    at = at.astimezone(UTC)
    return f'<time datetime="{at.isoformat()}">{at:%Y-%m-%d %H:%M} UTC</time>'


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} ms"


def _percent(value: float | None) -> str:
    # Never rounded up to all of it.
    return "–" if value is None else f"{int(value * 100_00) / 100:.2f} %"
