"""Two things at once: work in a thread of its own beside the caller's."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def beside(work: Callable[[threading.Event], T]) -> "Iterator[Future[T]]":
    """Run ``work`` in a thread while the ``with`` block runs; no thread outlives the block.

    The block goes on when the work fails, so that which error is told doesn't depend on who is faster: the block's own,
    else the work's.

    Args:
        work: Gets an event that is set when the block fails; it looks at it and raises
            :class:`~manifests.pieces.Stopped`.

    Yields:
        What ``work`` is going to return or raise; it is raised at the end of the block at the latest.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="beside") as executor:
        future = executor.submit(work, stop)
        try:
            yield future
        except BaseException:
            stop.set()
            raise
        future.result()
