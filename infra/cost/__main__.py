"""`make cost`: what a registry costs a month.

With --measure what a push and a pull take is measured anew before, and written to figures.toml.
"""

import argparse
import signal
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

from infra.cost.model import (
    FIGURES,
    PARTS,
    Bill,
    Figures,
    Inputs,
    Month,
    akash,
    aws,
    gb_seconds,
    once,
    server,
    server_and_r2,
    servers,
)

PLACES: dict[str, Callable[[Month], Bill]] = {
    "AWS": aws,
    "AWS, blobs in R2": lambda month: aws(month, "r2"),
    "Akash and Filebase": akash,
    "small servers": server,
    "small servers, blobs in R2": server_and_r2,
}
SHOWN = {
    "requests": "requests to API Gateway",
    "authorizer_calls": "calls of the authorizer",
    "job_calls": "calls of functions for jobs",
    "processor_ms": "processor ms of functions",
    "authorizer_processor_ms": "processor ms of the authorizer",
    "round_trips": "round trips to Postgres",
    "storage_calls": "requests of functions to storage",
    "writes": "requests to storage that write",
    "reads": "requests to storage that read",
    "messages": "messages to the queue",
    "answered_kb": "kB answered by functions",
    "log_kb": "kB of logs, metrics in them",
}


USERS = (100, 10_000)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="make cost", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure anew; takes some minutes")
    parser.add_argument(
        "--users",
        type=_positive,
        nargs="+",
        default=USERS,
        metavar="N",
        help="active users in a month; a table for each number",
    )
    options = parser.parse_args()
    most = max(each["users"] for each in Inputs.read().given["aws"]["database"])
    if max(options.users) > most:
        parser.error(f"inputs.toml knows a Postgres for {most:,} users at most: add one there")
    # What was started to be measured ends with it, also when its terminal is closed.
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if options.measure:
        from infra.cost.measure import measure

        warnings.filterwarnings("ignore", "XDG_RUNTIME_DIR is not set")  # by the embedded Postgres
        write(measure(Inputs.read().image))
    print(told(Inputs.read(), options.users))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of users")
    return int(text)


def write(figures: Figures) -> None:
    """Keep what was measured."""
    lines = [
        f"# Measured on {datetime.now(UTC):%Y-%m-%d} by `make cost ARGS=--measure`: what one push,",
        "# one pull (of everything, or of the new layers) and one idle minute take.",
    ]
    for name, found in figures.items():
        lines += ["", f"[{name}]", *(f"{what} = {value}" for what, value in found.items())]
    FIGURES.write_text("\n".join(lines) + "\n")


def told(inputs: Inputs, users: Sequence[int] = USERS) -> str:
    """All tables, as Markdown."""
    parts = [_measured(inputs), _idle(inputs)]
    parts += [_table(Month(inputs, count)) for count in users]
    return "\n\n".join(parts)


def _measured(inputs: Inputs) -> str:
    kinds = ("push", "pull_whole", "pull_update", "minute")
    rows = ["| on functions | a push | a pull of all layers | of the new layers | an idle minute |"]
    rows.append("|---|" + "---:|" * len(kinds))
    rows += [
        _row(name, [inputs.figures[kind][what] for kind in kinds]) for what, name in SHOWN.items()
    ]
    image = inputs.image
    stored = [image.new / 1e6, 0.0, 0.0]
    pulled = [0.0, image.size / 1e6, image.new / 1e6]
    waited = [gb_seconds(inputs, inputs.figures[kind].__getitem__) * 1000 for kind in kinds]
    rows.append(_row("ms of a function of 1 GB on Lambda, as reckoned", waited))
    rows.append(_row("MB that storage keeps more", stored) + " |")
    rows.append(_row("MB that leave storage", pulled) + " |")
    cents = [100 * once(inputs, kind, mb) for kind, mb in zip(kinds, [*pulled, 0.0], strict=True)]
    rows.append("| **cents on AWS**, when nothing is free any more | ")
    rows[-1] += " | ".join(f"**{each:.3f}**" for each in cents) + " |"
    for kind, name in (("server", "a folder"), ("container", "a bucket")):
        values = [inputs.figures[f"{kind}_{each}"]["processor_ms"] for each in kinds[:3]]
        rows.append(_row(f"processor ms of `serve` with {name}, and of Postgres", values) + " |")
    return "\n".join(rows)


def _row(name: str, values: Iterable[float]) -> str:
    return f"| {name} | " + " | ".join(map(_number, values)) + " |"


def _idle(inputs: Inputs) -> str:
    bill = aws(Month(inputs, 0))
    parts = ", ".join(f"{name} {value:.2f}" for name, value in bill.items() if value >= 0.005)
    return f"**At rest**, AWS: {sum(bill.values()):.2f} USD a month ({parts})."


def _table(month: Month) -> str:
    bills = {name: bill(month) for name, bill in PLACES.items()}
    peak = month.inputs.given["usage"]["peak"]
    text = (
        f"**{month.users:,} active users**: {month.pushes:,.0f} pushes and {month.pulls:,.0f}"
        f" pulls a month, {month.stored_gb / 1000:,.1f} TB kept, {month.pulled_gb / 1000:,.1f} TB"
        f" pulled, {month.peak(month.pulled_gb * 8000):,.0f} Mbit/s at the busiest hour"
        f" ({peak:.0f} times the average)."
    )
    rows = {part: [_usd(each[part]) for each in bills.values()] for part in PARTS}
    totals = [sum(each.values()) for each in bills.values()]
    rows["**all**"] = [f"**{_usd(total)}**" for total in totals]
    rows["most of it"] = [
        f"{name} {value / total:.0%}"
        for total, bill in zip(totals, bills.values(), strict=True)
        for value, name in [max((value, name) for name, value in bill.items())]
    ]
    rows["a user"] = [_usd(total / month.users) for total in totals]
    counts = f"{servers(month)} of the small servers, or {servers(month, bucket=True)} with R2"
    table = [
        "| USD a month | " + " | ".join(bills) + " |",
        "|---|" + "---:|" * len(bills),
        *(f"| {name} | " + " | ".join(values) + " |" for name, values in rows.items()),
    ]
    return "\n".join([text, "", *table, "", f"It takes {counts}."])


def _usd(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}".removesuffix(".0")


if __name__ == "__main__":
    main()
