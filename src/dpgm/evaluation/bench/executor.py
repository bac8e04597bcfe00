"""Where cells run: in processes of this machine, or on a Ray cluster. Both are a map that yields what is finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib import import_module
from typing import Any, Protocol, TypeVar

from dpgm.schema import SchemaError

T = TypeVar("T")
R = TypeVar("R")


class Executor(Protocol):
    """Runs a function on many items, several at a time."""

    def map(self, fn: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """The values in the order in which they are finished; items start in the order given."""
        ...


class LocalExecutor:
    """`jobs` items at a time on this machine; each of them is a process of its own that `fn` starts and waits for.

    Args:
        jobs: how many at a time, 1 or more.
    """

    def __init__(self, jobs: int = 1) -> None:
        if jobs < 1:
            raise SchemaError(f"jobs is {jobs}; allowed is 1 or more")
        self.jobs = jobs

    def map(self, fn: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """See `Executor`; when the caller stops early, nothing further is started."""
        pool = ThreadPoolExecutor(self.jobs)
        try:
            yield from (future.result() for future in as_completed([pool.submit(fn, item) for item in items]))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class RayExecutor:
    """A Ray cluster (or the local one that Ray starts); every machine needs the package and the same folders.

    Args:
        cpus: cores that one item asks for.
        ray: the module, for tests; by default the installed one.
    """

    def __init__(self, cpus: float = 1, *, ray: Any = None) -> None:
        try:
            self.ray = import_module("ray") if ray is None else ray
        except ImportError as error:
            raise SchemaError("ray is not installed; pip install 'dpgm[ray]', or leave out --executor ray") from error
        self.cpus = cpus

    def map(self, fn: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """See `Executor`."""
        if not self.ray.is_initialized():
            self.ray.init(log_to_driver=False)

        def call(item: T) -> R:  # Ray takes functions, not callable objects
            return fn(item)

        remote = self.ray.remote(num_cpus=self.cpus)(call)
        left = [remote.remote(item) for item in items]
        while left:
            done, left = self.ray.wait(left, num_returns=1)
            yield from self.ray.get(done)
