"""Direct uploads are verified: that an object's bytes have the digest that its client has named,
though no function may read for long enough to hash all of them.

A hash of the SHA-2 family is a chain (FIPS 180-4, sections 6.2 and 6.4): from eight words and the
next block come the next eight words, and the digest from the last of them. The client says which
words it had at the end of each part, its *states*. Each piece of the object, a few whole parts, is
then read and hashed by itself, beginning with the state at its start, and must come to the state
at its end; the first begins with the algorithm's initial words, and the last must come to the
digest. Pieces are verified in any order, at the same time, by as many functions as there are.

No state is believed. Let s(0) be the initial words, B(1) to B(n) the pieces' bytes, and s(1) to
s(n-1) what the client has said. It was seen that f(s(i-1), B(i)) = s(i) for each i below n, where f
is the chain of compressions, and that s(n-1), B(n) and the padding give the digest. s(0) is the
true state before the first byte. If s(i-1) is the true state after the bytes before it, then s(i)
is the true one after B(i), since f is a function. So s(n-1) is true, and the digest is that of the
whole. A client that lies about a state must find a piece that leads from it to the next one, and
has then told the truth, or has found a collision of the hash itself.

It must be the same object that was read in every piece, and that is served later: it is at a key
that is used once, it was completed by the registry before the first byte was read, and the URLs
that clients had for its parts can do nothing since (``chalicelib.storage.direct``). What the client
has said is settled before that, too, and is never replaced.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from chalicelib import digests
from chalicelib.context import Context
from chalicelib.digests import Hash
from chalicelib.http import DigestInvalid
from chalicelib.storage import StorageError

PIECE = 64 << 20
"""About how many bytes a function reads at once: a second's work."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a client has said of an object: its ``size`` in bytes, its digest, and the state at the
    end of each part of ``part_size`` bytes but the last."""

    key: str
    size: int
    part_size: int
    digest: bytes
    states: bytes

    @property
    def parts(self) -> int:
        """How many parts it is."""
        return -(-self.size // self.part_size)

    @property
    def pieces(self) -> Sequence[range]:
        """The parts of each piece, counted from 0."""
        step = max(1, PIECE // self.part_size)
        return [range(n, min(n + step, self.parts)) for n in range(0, self.parts, step)]

    def state(self, part: int) -> bytes:
        """The words before a part, counted from 0, which is not the first."""
        length = digests.state_size(digests.algorithm(self.digest))
        return self.states[(part - 1) * length : part * length]

    def length(self, parts: range) -> int:
        """How many bytes these parts have."""
        return min(parts.stop * self.part_size, self.size) - parts.start * self.part_size


def verify(context: Context, claim: Claim, parts: range) -> int:
    """Read a piece of an object, and see that it comes from the state before it to the state or the
    digest after it; gives its length. Raises ``DigestInvalid`` and ``StorageError``."""
    hashing = _before(claim, parts.start)
    left = claim.part_size
    part = parts.start
    start, length = parts.start * claim.part_size, claim.length(parts)
    unread = length
    with closing(context.store.read(claim.key, start, length)) as body:
        for read in body:
            unread -= len(read)
            view = memoryview(read)
            while view:
                taken = min(left, len(view))
                # Whole where it can be: a view would be copied.
                hashing.update(read if taken == len(read) else view[:taken])
                view, left = view[taken:], left - taken
                if not left:
                    part, left = part + 1, claim.part_size
                    if part < claim.parts:
                        _check(claim, hashing, part)
    if unread:
        raise StorageError("An object ended before its end.")
    if parts.stop == claim.parts and hashing.digest() != claim.digest:
        raise DigestInvalid(
            "The bytes in storage have another digest; this upload has ended, begin another.",
            {"wanted": digests.unpack(claim.digest)},
        )
    return length


def _before(claim: Claim, part: int) -> Hash:
    algorithm = digests.algorithm(claim.digest)
    if not part:
        return Hash(algorithm)
    return Hash.at(algorithm, part * claim.part_size, claim.state(part))


def _check(claim: Claim, hashing: Hash, part: int) -> None:
    if hashing.words() != claim.state(part):
        raise DigestInvalid(
            f"Part {part} in storage does not lead to the state that was told for its end, or the"
            " one before it is wrong; this upload has ended, begin another.",
            {"part": part},
        )
