"""Run the specification's own conformance program and read what it found."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

APIS = (
    "PING",
    "PULL",
    "PUSH",
    "BLOBS_ATOMIC",
    "BLOBS_DELETE",
    "BLOBS_DIGEST_HEADER",
    "BLOBS_MOUNT_ANONYMOUS",
    "BLOBS_UPLOAD_CANCEL",
    "MANIFESTS_ATOMIC",
    "MANIFESTS_DELETE",
    "MANIFESTS_DIGEST_HEADER",
    "MANIFESTS_TAG_PARAM",
    "TAGS_ATOMIC",
    "TAGS_DELETE",
    "TAGS_LIST",
    "REFERRER",
)
DATA = (
    "IMAGE",
    "INDEX",
    "INDEX_LIST",
    "SPARSE",
    "ARTIFACT",
    "SUBJECT",
    "SUBJECT_MISSING",
    "ARTIFACT_LIST",
    "SUBJECT_LIST",
    "DATA_FIELD",
    "NONDISTRIBUTABLE",
    "CUSTOM_FIELDS",
    "NO_LAYERS",
    "EMPTY_BLOB",
    "SHA512",
)
ALL_ON = {f"OCI_API_{name}": True for name in APIS} | {f"OCI_DATA_{name}": True for name in DATA}
"""Every option of the program that asks for more."""


@dataclass(frozen=True)
class Check:
    """A check that did not pass: its name, what was wrong, and the requests and responses."""

    name: str
    error: str
    exchange: str

    def __str__(self) -> str:
        return f"{self.name.partition('/')[2]}: {self.error}"


@dataclass(frozen=True)
class Report:
    """What the program found. Skipped and disabled checks count as not passed."""

    passed: int
    not_passed: Sequence[Check]

    def __str__(self) -> str:
        shown = self.not_passed[:60]
        names = "\n".join(f"- {check}" for check in shown)
        exchanges = "\n\n".join(f"{check}\n{check.exchange}" for check in shown[:5])
        return (
            f"{self.passed} passed, {len(self.not_passed)} not; the first {len(shown)}:\n{names}"
            f"\n\nThe first of them with their requests and responses:\n\n{exchanges}"
        )


def run_conformance(
    program: Path,
    host: str,
    version: str,
    options: dict[str, bool],
    results: Path,
    credentials: tuple[str, str] = ("", ""),
) -> Report:
    """Check the registry at `host` (host:port, plain HTTP) against a specification version.

    `version` is "1.1" or "dev"; `options` holds OCI_API_… and OCI_DATA_… variables that depart
    from that version's defaults, and `credentials` a name and a password, if one has to log in. The
    program leaves report.html in `results`, for reading.
    """
    environment = {name: value for name, value in os.environ.items() if name[:4] != "OCI_"}
    done = subprocess.run(
        [program],
        env={
            **environment,
            **{name: str(value).lower() for name, value in options.items()},
            "OCI_REGISTRY": host,
            "OCI_TLS": "disabled",
            "OCI_USERNAME": credentials[0],
            "OCI_PASSWORD": credentials[1],
            "OCI_VERSION": version,
            "OCI_REPO1": f"conformance/{version}/one",
            "OCI_REPO2": f"conformance/{version}/two",
            "OCI_RESULTS_DIR": str(results),
            "OCI_LOG": "error",
        },
        cwd=results,
        capture_output=True,
        text=True,
        timeout=110,
    )
    junit = results / "junit.xml"
    if not junit.exists():  # it exits with 0 when it cannot even start
        raise AssertionError(f"the conformance program gave no results:\n{done.stderr}")
    return _read(junit)


def _read(junit: Path) -> Report:
    suites = ET.parse(junit).getroot()
    counts = {
        name: int(suites.get(name, "0"))
        for name in ("tests", "failures", "errors", "skipped", "disabled")
    }
    checks = [
        Check(
            case.get("name", ""),
            (case.findtext("system-out") or case.get("status") or "").strip(),
            (case.findtext("system-err") or "")[-6000:],
        )
        for case in suites.iter("testcase")
        if case.get("status") != "passed"
    ]
    passed = 2 * counts["tests"] - sum(counts.values())
    return Report(passed, checks)
