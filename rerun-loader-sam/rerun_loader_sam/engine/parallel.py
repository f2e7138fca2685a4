"""Work on a CPU's cores: one piece of work for each core, and one core for each operation.

Torch would rather split each operation. At the sizes that fit in a core's cache, waiting for one another at the end
of every operation costs more than the work, and on a busy machine the slowest core sets the pace of all.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch

# Beyond this many, threads wait for Python's interpreter lock rather than for a core.
_MAX_WORKERS = 8

Item = TypeVar("Item")
Result = TypeVar("Result")
Report = TypeVar("Report")


class Cores:
    """As many workers as torch has threads; on other devices than the CPU, the caller's thread alone.

    A context manager: leaving it drops what has not begun and waits for what has.

    Attributes:
        n_workers: How many pieces of work are done at once.
    """

    def __init__(self, device: torch.device) -> None:
        self._n_threads = torch.get_num_threads()
        self.n_workers = min(self._n_threads, _MAX_WORKERS)
        self._pool: ThreadPoolExecutor | None = None
        if device.type != "cpu":
            self.n_workers = 1
        else:
            threads_each = max(self._n_threads // self.n_workers, 1)
            self._pool = ThreadPoolExecutor(self.n_workers, "sam", torch.set_num_threads, (threads_each,))

    def __enter__(self) -> "Cores":
        """Nothing is begun yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            # Part of the setting is the process's, whichever thread makes it.
            torch.set_num_threads(self._n_threads)

    def in_order(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`work` of each item, in the items' order; items are taken as workers become free."""
        if self._pool is None:
            yield from map(work, items)
            return
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(self._pool.submit(work, item))
                if len(pending) > self.n_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def reporting(pieces: Generator[None, None, Result], report: Report) -> Generator[Report, None, Result]:
    """Some pieces of work, with a report after each of them; returns what they do."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        yield report
