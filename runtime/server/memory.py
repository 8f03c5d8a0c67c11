"""What the allocators are told before anything big is loaded, and when something big has gone."""

import ctypes
import os
from collections.abc import MutableMapping
from typing import Final

_M_ARENA_MAX: Final = -8  # mallopt(3); from <malloc.h>
_ARENAS: Final = 2


def prepare_memory(environment: MutableMapping[str, str]) -> None:
    """Keep the heap small under many threads; to be called before torch is imported.

    glibc gives each thread an arena of its own, whose freed memory the others can't use; CUDA's allocator gets segments
    that grow, which wastes less when sizes vary. What the operator has set stays.
    """
    environment.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if "MALLOC_ARENA_MAX" not in environment and (mallopt := _libc("mallopt")) is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)


def return_memory() -> None:
    """Give memory that is free in the heap back to the system; nothing where the C library can't."""
    if (trim := _libc("malloc_trim")) is not None:
        trim(0)


def _libc(name: str) -> "ctypes._NamedFuncPointer | None":
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
