"""Buffers that are kept from step to step."""

import ctypes
import sys
from functools import lru_cache

#: edges from which intermediate results are larger than what glibc keeps at most (32 MB)
MANY_EDGES = 50_000

#: bytes of freed memory that a process keeps
KEPT = 1 << 30

_LARGEST = 32 << 20  # that glibc takes for a buffer to be kept
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8  # malloc.h


@lru_cache
def keep_buffers() -> bool:
    """Let glibc's malloc keep buffers up to 32 MB, 1 GB in all, instead of giving them back after
    every step.

    Getting them anew, page by zeroed page, is half the time of a step of 70 to 1,500 atoms.
    Returns whether there was a glibc to tell.
    """
    return _tell((_M_MMAP_THRESHOLD, _LARGEST), (_M_TRIM_THRESHOLD, KEPT))


@lru_cache
def keep_large_buffers() -> bool:
    """The same without a limit: memory that a step has used stays with the process from then on.

    1.1 of the 2.8 s of a step of 6,000 atoms on one core.
    """
    return _tell((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))


@lru_cache
def share_buffers() -> bool:
    """Let new threads take buffers from those that others have freed, not each from its own.

    Two threads that work off blocks of 6,000 atoms need 2 kB an atom less so.
    """
    return _tell((_M_ARENA_MAX, 1))


def _tell(*options: tuple[int, int]) -> bool:
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return bool(mallopt and all(mallopt(*option) for option in options))
