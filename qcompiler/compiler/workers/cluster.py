"""A Ray cluster: the extra `ray` of this package.

What items share goes into Ray's object store once, from where each node fetches it; no file of this machine needs to be
seen by the others. A node that is lost costs the items that were running there: Ray does them again on another one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from qcompiler.compiler.content import digest
from qcompiler.compiler.workers.parcel import Named, opened, packed, work
from qcompiler.errors import UsageError

I = TypeVar("I")  # noqa: E741 - an item
T = TypeVar("T")

HERE = "auto"  # the cluster that this machine belongs to, else one on this machine alone
_RETRIES = 5  # of an item whose node was lost
_WAITING = 2  # items for each processor of the cluster that are packed ahead


class Cluster:
    """Work on a Ray cluster.

    Args:
        address: `auto`, or `host:port` of the head node (`ray://host:port` for its client server).

    Raises:
        UsageError: Ray is not installed, or there is no such cluster.
    """

    def __init__(self, address: str) -> None:
        try:
            import ray
        except ImportError as error:
            raise UsageError("--ray needs the package ray: pip install 'onnx-qcompiler[ray]'") from error
        self._ray: Any = ray
        self._mine = not ray.is_initialized()
        if self._mine:
            _join(ray, address)
        self._work = ray.remote(work).options(max_retries=_RETRIES, num_cpus=1, scheduling_strategy="SPREAD")

    @property
    def processors(self) -> int:
        """Of all nodes that are there now."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    @property
    def threads(self) -> int:
        """One: there are as many items at a time as processors."""
        return 1

    def each(self, begin: Callable[..., Callable[[I], T]], shared: tuple[Any, ...], items: Iterable[I]) -> Iterator[T]:
        """As of `support.each.Each`.

        Raises:
            UsageError: an item was lost with its node too often.
        """
        named, parcel = Named.of(begin), packed(shared)
        held = self._ray.put(parcel)
        key = digest((named, held.hex()))
        waiting: deque[Any] = deque()
        for item in items:
            waiting.append(self._work.remote(key, named, held, packed(item)))
            if len(waiting) >= _WAITING * self.processors:
                yield self._result(waiting.popleft())
        while waiting:
            yield self._result(waiting.popleft())

    def close(self) -> None:
        """Leaves the cluster, if it was joined here."""
        if self._mine:
            self._ray.shutdown()

    def _result(self, reference: Any) -> Any:
        try:
            return opened(self._ray.get(reference))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            raise UsageError(f"the Ray cluster lost a piece of work for good: {_first_line(error)}") from error


def _join(ray: Any, address: str) -> None:
    """Becomes part of a cluster; where none runs and `auto` was asked, one of this machine alone."""
    quiet = {"logging_level": "ERROR", "log_to_driver": False, "include_dashboard": False}
    try:
        if address == HERE:
            try:
                ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
            except ConnectionError:
                ray.init(**quiet)
        else:
            ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"there is no Ray cluster at '{address}': {_first_line(error)}. Start one with 'ray start --head', or give "
            "the address that it printed"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
