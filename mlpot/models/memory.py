"""Large buffers, kept from step to step."""

import ctypes
import sys
from functools import lru_cache

#: edges from which intermediate results are larger than what glibc ever keeps (32 MB)
MANY_EDGES = 50_000

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


@lru_cache
def keep_large_buffers() -> bool:
    """Let glibc's malloc keep large buffers instead of giving them back after every step.

    Getting them anew, page by zeroed page, is 1.1 of the 2.8 s of a step of 6,000 atoms on one
    core. Memory that a step has used stays with the process from then on. Returns whether there was
    a glibc to tell.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return bool(mallopt and mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
