"""Work on a CPU's cores: one batch of prompts for each core, and one core for each operation.

Torch would rather split each operation. At the sizes that fit in a core's cache, waiting for one another at the end
of every operation costs more than the work, and on a busy machine the slowest core sets the pace of all.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

# Beyond this many, threads wait for Python's interpreter lock rather than for a core.
_MAX_WORKERS = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> Iterator[Result]:
    """`work` of each item, in the items' order; items are taken as cores become free.

    On the CPU, as many items are worked on at once as torch has threads; on other devices one after another.
    Closing the iterator drops what has not begun and waits for what has.
    """
    n_threads = torch.get_num_threads()
    if device.type != "cpu":
        yield from map(work, items)
        return
    n_workers = min(n_threads, _MAX_WORKERS)
    pool = ThreadPoolExecutor(n_workers, "prompts", torch.set_num_threads, (max(n_threads // n_workers, 1),))
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > n_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        # Part of the setting is the process's, whichever thread makes it.
        torch.set_num_threads(n_threads)
