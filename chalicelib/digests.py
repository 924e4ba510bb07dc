"""Digests and the hashing of blobs (OCI Image 1.1, "Digests").

A digest is kept as bytes with its algorithm: the multihash code of the algorithm, then the hash.
A hash can be suspended into bytes of our own format and resumed by another process, so that no
byte of an upload is read twice. That takes OpenSSL's ``SHA256_CTX`` and ``SHA512_CTX``, whose
layout has not changed since 1998 and is checked against known vectors when this module first
hashes; where it differs, ``Hash.suspend`` gives None and the blob is read once more at commit.
"""

import ctypes
import hashlib
import re
import struct
from functools import cache
from typing import Any

from chalicelib.http import DigestInvalid, Piece

_CODES = {"sha256": 0x12, "sha512": 0x13}  # the multihash table's codes
_NAMES = {code: name for name, code in _CODES.items()}
_PATTERN = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_SHAPE = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")

ALGORITHMS = tuple(_CODES)


def is_digest(text: str) -> bool:
    """Whether this has a digest's shape, of whatever algorithm."""
    return _SHAPE.fullmatch(text) is not None


def pack(digest: str) -> bytes:
    """The bytes of a digest such as ``sha256:…``. Raises ``DigestInvalid``."""
    if _PATTERN.fullmatch(digest) is None:
        raise DigestInvalid(
            "The digest must be sha256: and 64 lower-case hexadecimal digits, "
            "or sha512: and 128 of them.",
            {"digest": digest[:256]},
        )
    name, _, value = digest.partition(":")
    return bytes((_CODES[name],)) + bytes.fromhex(value)


def unpack(packed: bytes) -> str:
    """The text of a digest that ``pack`` packed."""
    return f"{_NAMES[packed[0]]}:{packed[1:].hex()}"


def algorithm(packed: bytes) -> str:
    """The name of a packed digest's algorithm."""
    return _NAMES[packed[0]]


def of(content: bytes, name: str = "sha256") -> bytes:
    """The packed digest of some bytes."""
    return bytes((_CODES[name],)) + hashlib.new(name, content).digest()


def checked_algorithm(name: str) -> str:
    """The algorithm of a ``digest-algorithm`` parameter. Raises ``DigestInvalid``."""
    if name not in _CODES:
        known = " or ".join(_CODES)
        raise DigestInvalid(
            f"The digest algorithm must be {known}.", {"digest-algorithm": name[:64]}
        )
    return name


def state_size(name: str) -> int:
    """How many bytes the chaining words of an algorithm have."""
    return 64 if name == "sha512" else 32


def resumable(name: str) -> bool:
    """Whether hashes of this algorithm can be suspended and resumed on this machine."""
    return _layout(name) is not None


class Hash:
    """A running hash that can be suspended and resumed. Not for several threads at once."""

    __slots__ = ("_context", "_hash", "_layout", "algorithm", "length")

    def __init__(self, name: str = "sha256") -> None:
        self.algorithm = name
        self.length = 0
        self._layout = _layout(name)
        self._hash: Any = None
        self._context: Any = None
        if self._layout is None:
            self._hash = hashlib.new(name)
        else:
            self._context = self._layout.start()

    def update(self, piece: Piece) -> None:
        """Take these bytes; the interpreter runs on meanwhile when they are many."""
        self.length += len(piece)
        if self._layout is None:
            self._hash.update(piece)
        else:
            self._layout.update(self._context, piece)

    def digest(self) -> bytes:
        """The packed digest of all bytes so far; the hash can go on afterwards."""
        raw = self._hash.digest() if self._layout is None else self._layout.finish(self._context)
        return bytes((_CODES[self.algorithm],)) + raw

    def suspend(self) -> bytes | None:
        """The hash's whole state, None where it cannot be had: the algorithm's multihash code,
        the length (8 bytes), the chaining words, and the residue of the last block; all numbers
        big-endian."""
        if self._layout is None:
            return None
        words, residue = self._layout.read(self._context)
        packed = struct.pack(
            f">BQ8{self._layout.word}", _CODES[self.algorithm], self.length, *words
        )
        return packed + residue

    def words(self) -> bytes:
        """The chaining words (FIPS 180-4, "intermediate hash value"), big-endian, at the end of a
        block. Raises ``ValueError`` elsewhere, and where they cannot be had."""
        state = self.suspend()
        head = 9 + state_size(self.algorithm)
        if state is None or len(state) != head:
            raise ValueError("there are no words here")
        return state[9:]

    @classmethod
    def at(cls, name: str, length: int, words: bytes) -> "Hash":
        """The hash that has these words after ``length`` bytes, a whole number of blocks. Raises
        ``ValueError`` where it cannot be resumed here."""
        resumed = cls.resume(struct.pack(">BQ", _CODES[name], length) + words)
        if resumed is None:
            raise ValueError("hashes cannot be resumed here")
        return resumed

    @classmethod
    def resume(cls, state: bytes) -> "Hash | None":
        """The hash that ``suspend`` gave these bytes for, None where it cannot be resumed here."""
        name = _NAMES[state[0]]
        layout = _layout(name)
        if layout is None:
            return None
        head = struct.Struct(f">BQ8{layout.word}")
        _, length, *words = head.unpack_from(state)
        residue = state[head.size :]
        if len(residue) != length % layout.block:
            raise ValueError("the hash state is damaged")
        resumed = cls(name)
        resumed.length = length
        layout.write(resumed._context, words, length, residue)
        return resumed


class _Layout:
    """One algorithm of libcrypto and the layout of its context: eight chaining words, the length
    in bits as two words, a block, the number of bytes in it, and the length of the digest."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        long = name == "sha512"
        self.word = "Q" if long else "I"
        self.block = 128 if long else 64
        self.size = 64 if long else 32
        self._context = struct.Struct(f"=8{self.word}2{self.word}{self.block}sII")
        self._init = self._function(library, f"{name.upper()}_Init", 1)
        self._update = self._function(library, f"{name.upper()}_Update", 3)
        self._final = self._function(library, f"{name.upper()}_Final", 2)

    @staticmethod
    def _function(library: ctypes.CDLL, name: str, arguments: int) -> Any:
        function = getattr(library, name)
        function.restype = ctypes.c_int
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t][:arguments]
        return function

    def start(self) -> Any:
        context = ctypes.create_string_buffer(self._context.size + 64)
        self._init(context)
        return context

    def update(self, context: Any, piece: Piece) -> None:
        if isinstance(piece, bytes):
            self._update(context, piece, len(piece))
            return
        view = memoryview(piece)
        if view.readonly:
            self._update(context, bytes(view), len(view))
        elif view:
            # The array exports the buffer without a copy.
            self._update(context, (ctypes.c_char * len(view)).from_buffer(view), len(view))

    def finish(self, context: Any) -> bytes:
        copy = ctypes.create_string_buffer(context.raw, len(context))
        out = ctypes.create_string_buffer(self.size)
        self._final(out, copy)
        return out.raw

    def read(self, context: Any) -> tuple[tuple[int, ...], bytes]:
        *words, _, _, block, used, _ = self._context.unpack_from(context.raw)
        return tuple(words), block[:used]

    def write(self, context: Any, words: list[int], length: int, residue: bytes) -> None:
        width = 64 if self.word == "Q" else 32
        low, high = (length * 8) & ((1 << width) - 1), (length * 8) >> width
        block = residue.ljust(self.block, b"\0")
        self._context.pack_into(context, 0, *words, low, high, block, len(residue), self.size)


@cache
def _layout(name: str) -> _Layout | None:
    """The resumable implementation, once it has proved itself on this machine's library."""
    for library in ("libcrypto.so.3", "libcrypto.so.1.1", "libcrypto.3.dylib"):
        try:
            layout = _Layout(ctypes.CDLL(library), name)
        except (OSError, AttributeError):
            continue
        if _proves(layout, name):
            return layout
    return None


def _proves(layout: _Layout, name: str) -> bool:
    """Whether contexts that were read, written and gone on from give the right digest, over cuts
    before, within and at the end of a block."""
    text = bytes(range(256)) * 2
    for cut in (0, 1, 55, 64, 127, 128, 300):
        first = layout.start()
        layout.update(first, text[:cut])
        words, residue = layout.read(first)
        second = layout.start()
        layout.write(second, list(words), cut, residue)
        layout.update(second, text[cut:])
        if layout.finish(second) != hashlib.new(name, text).digest():
            return False
    return True
