"""`openregistry fsck`: whether the registry is whole, and what can be repaired."""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chalicelib.cli import FAILED, CommandError, Commands, as_json, whole
from chalicelib.hosts import opened_context

if TYPE_CHECKING:
    from chalicelib.context import Context
    from chalicelib.fsck import Finding, Tell

_NOTED_EVERY = 5.0
"""Seconds after which --resume's file is written."""


def register(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "fsck",
        help="check rows against objects against digests, and repair",
        description="Check that each blob's object is there and has its size, that no object is"
        " without a row, that manifests have the bytes of their digests and their rows name what"
        " they name, and that no upload is left over. The registry may run meanwhile. Exit status:"
        " 0 nothing is wrong; 1 something is, or it could not be looked at; 2 a setting is wrong.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, a line for each finding")
    parser.add_argument(
        "--digests",
        action="store_true",
        help="read every object and compare its digest: this reads all that is stored",
    )
    parser.add_argument(
        "--rate",
        type=whole(1, 100_000),
        metavar="MB",
        help="read at most so many megabytes a second",
    )
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        help="note in a file how far --digests has come, and go on from there; it is removed at"
        " the end",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="take lost blobs for absent, so that they are pushed again, or put them back from a"
        " network; set damaged objects aside; write rows of manifests anew; clear uploads away;"
        " and sweep",
    )
    parser.set_defaults(run=fsck)


@dataclass
class _Reading:
    """How far the reading of objects has come: the last digest, what was read in bytes, and how
    many findings of each kind there were until then. Kept in a file where there is one."""

    file: Path | None
    database: str
    after: str = ""
    objects: int = 0
    bytes: int = 0
    found: Counter[str] = field(default_factory=Counter)

    def load(self) -> None:
        """Go on from the file. Raises ``CommandError``."""
        if self.file is None or not self.file.exists():
            return
        try:
            held: dict[str, Any] = json.loads(self.file.read_text())
            same = held.pop("database") == self.database
            held["found"] = Counter(held["found"])
            known = _Reading(self.file, self.database, **held)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CommandError(f"{self.file} is no file of --resume: {error}") from error
        if not same:
            raise CommandError(f"{self.file} is of a check of another registry.")
        vars(self).update(vars(known))

    def save(self) -> None:
        """Note it in the file."""
        if self.file is None:
            return
        held = {name: value for name, value in vars(self).items() if name != "file"}
        shorter = self.file.with_name(f"{self.file.name}.new")
        try:
            shorter.write_text(json.dumps(held))
            shorter.replace(self.file)
        except OSError as error:
            raise CommandError(f"{self.file} cannot be written: {error.strerror}.") from error


def fsck(options: argparse.Namespace) -> int:
    """Check, tell, and repair what can be repaired."""
    if not options.digests and (options.rate or options.resume):
        raise CommandError("--rate and --resume are for --digests.")
    from chalicelib.fsck import Refused
    from chalicelib.jobs import GiveUp
    from chalicelib.jobs import orphans as sweeping
    from chalicelib.resolvers.index_command import telling

    repaired = swept = 0
    with opened_context() as context:
        reading = _Reading(options.resume, context.settings.database_url.rpartition("@")[2])
        if options.digests:
            reading.load()
        try:
            with telling(options.json) as tell:
                for finding in _findings(context, options, reading, tell):
                    reading.found[finding.kind] += 1
                    repaired += bool(finding.repair)
                    _print(finding, as_lines=options.json)
        except Refused as error:
            raise CommandError(str(error)) from error
        if options.repair and reading.found["orphan"]:
            try:
                swept = sweeping.run(context, dry_run=False, force=False).deleted
            except (GiveUp, sweeping.Overtaken) as error:
                print(f"openregistry: not swept: {error}", file=sys.stderr)
    summary = {
        "findings": dict(reading.found),
        "repaired": repaired,
        "swept": swept,
        "read": {"objects": reading.objects, "bytes": reading.bytes},
    }
    if options.json:
        print(as_json({"summary": summary}))
    else:
        _summarise(summary, options)
    if options.resume is not None:
        with suppress(OSError):
            options.resume.unlink(missing_ok=True)
    return FAILED if reading.found.total() else 0


def _findings(
    context: "Context", options: argparse.Namespace, reading: _Reading, tell: "Tell"
) -> "Iterator[Finding]":
    from chalicelib.fsck import manifests, objects, uploads

    repair = options.repair
    told = set()
    yield from objects.admit(context, repair=repair)
    if not reading.after:
        for finding in objects.compare(context, repair=repair, tell=tell):
            told.add(finding.key)
            yield finding
        yield from objects.compare_staged(context)
        yield from manifests.check(context, repair=repair, tell=tell)
        yield from uploads.check(context, repair=repair)
    if options.digests:
        # An object of which it was told already cannot be read either.
        for finding in _read(context, options, reading, tell):
            if finding.key not in told:
                yield finding


def _read(
    context: "Context", options: argparse.Namespace, reading: _Reading, tell: "Tell"
) -> "Iterator[Finding]":
    from chalicelib import digests
    from chalicelib.fsck import contents
    from chalicelib.metadata import restoring

    total = restoring.total(context.database, context.store.name).size
    pace = contents.Pace((options.rate or 0) * 1e6)
    after = digests.pack(reading.after) if reading.after else b""
    noted = time.monotonic()
    try:
        for blob, finding in contents.read_all(context, after, pace, repair=options.repair):
            if finding is not None:
                yield finding
            reading.after = digests.unpack(blob.digest)
            reading.objects += 1
            reading.bytes += blob.size
            if time.monotonic() > noted + _NOTED_EVERY:
                reading.save()
                noted = time.monotonic()
            tell("MB read", reading.bytes // 1_000_000, max(total, reading.bytes) // 1_000_000)
    finally:
        reading.save()


def _print(finding: "Finding", *, as_lines: bool) -> None:
    if as_lines:
        print(as_json(asdict(finding)), flush=True)
        return
    # The line with the progress ends here.
    before = "\r\x1b[K" if sys.stderr.isatty() and sys.stdout.isatty() else ""
    repair = f" Repaired: {finding.repair}." if finding.repair else ""
    print(f"{before}{finding.kind}: {finding.sentence}{repair}", flush=True)


def _summarise(summary: dict[str, Any], options: argparse.Namespace) -> None:
    if options.digests:
        read = summary["read"]
        print(f"read: {read['objects']} objects, {read['bytes']} bytes")
    found = summary["findings"]
    if not found:
        print("nothing is wrong")
        return
    print(", ".join(f"{kind}: {number}" for kind, number in sorted(found.items())))
    if options.repair:
        print(f"repaired: {summary['repaired']}; swept: {summary['swept']} objects")
    elif "store" not in found:  # or it would be refused
        print("openregistry fsck --repair repairs what can be repaired")
