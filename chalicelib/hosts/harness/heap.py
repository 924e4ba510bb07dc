"""How the C library, where it is glibc, keeps the memory of a process with many threads."""

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_LARGE = 32 << 20


def share() -> None:
    """Have one heap for all threads. By default each has its own, and what the largest job has
    needed stays with every thread that ever did one. Measured over collections of 300 images: a
    process of jobs stops to grow at the eighth, at 28 MiB, instead of being at 31 after the
    twelfth and growing."""
    _set((_M_ARENA_MAX, 1))


def keep() -> None:
    """Have one heap for all threads, and keep what they free for the next piece of a body, which
    would otherwise be given to the system and taken again. Measured: a fifth less processor time
    for a large push, and with 16 at once a fifth less memory."""
    _set((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _LARGE), (_M_TRIM_THRESHOLD, _LARGE))


def _set(*options: tuple[int, int]) -> None:
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        for option, value in options:
            library.mallopt(option, value)
