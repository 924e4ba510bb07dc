"""Build the Go clients that the tests drive, from the modules beside this file: `make clients`.

Each program is built once for each state of its module's go.mod and go.sum and kept in
~/.cache/openregistry/clients, or in the directory that OPENREGISTRY_TEST_CLIENTS names. To take a
newer client: `go get -tool PACKAGE@VERSION` in its module, and commit go.mod and go.sum. What does
not build with the others' dependencies has a module of its own.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path(
    os.environ.get("OPENREGISTRY_TEST_CLIENTS") or Path.home() / ".cache/openregistry/clients"
)
"""Where the built programs are."""

MODULES = Path(__file__).parent


@dataclass(frozen=True)
class Client:
    """A Go program, the package that it is built from, and the module that says its version."""

    name: str
    package: str
    module: str = "go"

    @property
    def program(self) -> Path:
        """The built program."""
        return DIRECTORY / self.name

    @property
    def key(self) -> str:
        """Changes whenever the program has to be built again."""
        parts = [(MODULES / self.module / name).read_bytes() for name in ("go.mod", "go.sum")]
        return hashlib.sha256(b"\0".join([*parts, self.package.encode()])).hexdigest()

    @property
    def key_file(self) -> Path:
        """Holds the key of the program that is there."""
        return DIRECTORY / f".{self.name}.key"

    @property
    def built(self) -> bool:
        """Whether the program is there and up to date."""
        return (
            self.program.exists()
            and self.key_file.exists()
            and self.key_file.read_text() == self.key
        )

    def build(self, within: float | None) -> None:
        """Build the program in at most `within` seconds.

        Raises CalledProcessError, or TimeoutExpired when the time is over.
        """
        new = DIRECTORY / f".{self.name}.new"
        options = ["-trimpath", "-buildvcs=false", "-ldflags=-s -w", f"-o={new}"]
        subprocess.run(
            ["go", "build", *options, self.package],
            cwd=MODULES / self.module,
            env={**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"},
            timeout=within,
            check=True,
        )
        self.key_file.unlink(missing_ok=True)
        new.replace(self.program)
        self.key_file.write_text(self.key)


# What matters most comes first: a budget may end before the list does.
CLIENTS = (
    Client("conformance", "github.com/opencontainers/distribution-spec/conformance"),
    Client("ipfs", "github.com/ipfs/kubo/cmd/ipfs", "kubo"),
    Client("pebble", "github.com/letsencrypt/pebble/v2/cmd/pebble", "pebble"),
    Client(
        "pebble-challtestsrv", "github.com/letsencrypt/pebble/v2/cmd/pebble-challtestsrv", "pebble"
    ),
    Client("compose-config", ".", "compose"),
    Client("crane", "github.com/google/go-containerregistry/cmd/crane"),
    Client("oras", "oras.land/oras/cmd/oras"),
    Client("regctl", "github.com/regclient/regclient/cmd/regctl"),
    Client("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
    Client("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
    Client("nerdctl", "github.com/containerd/nerdctl/cmd/nerdctl", "nerdctl"),
    Client("helm", "helm.sh/helm/v4/cmd/helm"),
    Client("cosign", "github.com/sigstore/cosign/v3/cmd/cosign"),
    Client("buildctl", "github.com/moby/buildkit/cmd/buildctl"),
    Client("buildkitd", "github.com/moby/buildkit/cmd/buildkitd"),
)


def build(clients: list[Client], budget: float | None) -> int:
    """Build those that are not up to date and give the exit status.

    It is 1 when a build failed. Clients left out because `budget` seconds were spent are named
    on stderr and are no failure: their tests skip.
    """
    end = None if budget is None else time.monotonic() + budget
    failed, left_out = [], []
    for client in clients:
        if client.built:
            print(f"{client.name}: up to date", flush=True)
            continue
        start = time.monotonic()
        try:
            client.build(None if end is None else max(end - start, 0))
        except subprocess.TimeoutExpired:
            left_out.append(client.name)
        except subprocess.CalledProcessError:
            failed.append(client.name)
        else:
            print(f"{client.name}: built in {time.monotonic() - start:.0f} s", flush=True)
    if left_out:
        print(
            f"\n*** {budget:.0f} s are spent. NOT BUILT: {', '.join(left_out)}. "
            "Their tests will skip. ***\n",
            file=sys.stderr,
        )
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def main() -> int:
    """Parse the arguments and build."""
    parser = argparse.ArgumentParser(description="Build the Go clients that the tests drive.")
    parser.add_argument("names", nargs="*", help="which ones; default: all of them")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="stop building after this")
    arguments = parser.parse_args()
    known = {client.name: client for client in CLIENTS}
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"no such client: {', '.join(unknown)}; there are {', '.join(known)}")
    if shutil.which("go") is None:
        parser.error("Go is missing; the tests of the Go clients skip without it")
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    return build([known[name] for name in arguments.names or known], arguments.budget)


if __name__ == "__main__":
    sys.exit(main())
