"""A process that sends one blob: ``python -m tests.registry_client.sender HOST REPOSITORY SEED
MIB SECONDS`` waits so long after each MiB and prints how many bytes it did not send again, its
digest, and the most MiB of memory that it had."""

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from chalicelib.client.remote import Remote
from chalicelib.client.sending import Sender, Sending
from tests.images import make_bytes

MIB = 1 << 20


def content(seed: int, count: int) -> Iterator[bytes]:
    """The bytes of a blob of so many MiB, each another."""
    block = bytearray(make_bytes(MIB, seed))
    for number in range(count):
        block[:8] = number.to_bytes(8)
        yield bytes(block)


def main(host: str, repository: str, seed: str, count: str, seconds: str) -> None:
    with Sending(Remote(host)) as sending:
        sender = Sender(sending, repository)
        for piece in content(int(seed), int(count)):
            sender.write([piece])
            time.sleep(float(seconds))
        digest = sender.finish()
    most = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert most is not None
    print(sender.skipped, digest, int(most[1]) >> 10)


if __name__ == "__main__":
    main(*sys.argv[1:])
