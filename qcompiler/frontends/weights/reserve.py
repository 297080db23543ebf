"""Weights that are not in memory: they have sizes and addresses, and it is known where their values are.

A model of 7 billion parameters is 28 GB in float32. All that is done to it before it is written goes by sizes and
places: transformers' loader renames tensors and joins them, an adapter adds to them, torch traces, the exporter turns
them. So a large weight gets addresses without memory behind them, which read as zeros. However it is cut and turned
afterwards, a view of it is known by its address and strides. What is computed of it is noted, and computed when it is
written.

Where something did read values, the pages that it read are there, which the system tells.
"""

from __future__ import annotations

import bisect
import ctypes
import math
import mmap
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

LARGE = 1 << 16
"""Elements from which a weight is read late. All smaller ones are little together; exporters compare and fold them."""
_MOVES = frozenset({"stack", "cat", "concat", "concatenate", "clone", "contiguous", "reshape", "flatten", "unflatten"})
"""Functions that put values elsewhere, and give the same in every type."""


_UNCOUNTED = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)  # Python names it from 3.13 on
_LOWEST = bytes(one & 1 for one in range(256))


@dataclass(frozen=True)
class Origin:
    """Where values come from.

    Attributes:
        shape: of the tensor.
        dtype: torch's, of what `read` returns.
        read: gives a tensor of torch, which nobody may write to.
        made: whether it takes arithmetic to read it.
    """

    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[], Any]
    made: bool = False


def held(tensor: Any) -> Origin:
    """A tensor that is here already, or mapped."""
    found = tensor.contiguous()
    return Origin(tuple(found.shape), found.dtype, lambda: found)


def computed(read: Callable[[], Any]) -> Origin:
    """What a function makes; it is called now for its shape, and again whenever the values are needed."""
    found = read()
    return Origin(tuple(found.shape), found.dtype, read, made=True)


def addresses(size: int) -> mmap.mmap:
    """So many bytes without memory behind them, which comes page by page where somebody writes."""
    return mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _UNCOUNTED)


@dataclass(frozen=True)
class WeightView:
    """A view of a weight that is not in memory.

    Attributes:
        origin: of the whole weight.
        shape: of the view.
        strides: of the view, in elements.
        offset: where it begins, in elements.
    """

    origin: Origin
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


@dataclass
class _Region:
    """Addresses of one weight."""

    memory: mmap.mmap
    tensor: Any
    origin: Origin
    start: int = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.tensor.data_ptr()

    @property
    def end(self) -> int:
        return int(self.start + self.tensor.numel() * self.tensor.element_size())


class Reserve:
    """The weights of one model.

    Args:
        smallest: elements from which they are read late; None for all at once.
    """

    def __init__(self, smallest: int | None) -> None:
        # Memory that is not there until somebody writes is what Windows has no simple word for
        self._smallest = smallest if hasattr(mmap, "MAP_ANONYMOUS") else None
        self._regions: list[_Region] = []  # by address
        self._last: tuple[Origin, Any] | None = None
        self._lock = threading.Lock()

    def weight(self, origin: Origin) -> Any:
        """The origin's own tensor where it is small or of integers, else one of its sizes that stands for it.

        What stands for it is float32, and of a class of its own until `settled`.
        """
        large = self._smallest is not None and math.prod(origin.shape) >= self._smallest
        if not large or not origin.dtype.is_floating_point:
            return origin.read().clone()
        import torch

        return self._placed(origin, torch.float32)

    def later(self, tensor: Any) -> Any:
        """A tensor that is here, as something whose use is noted and not computed, where anything is read late."""
        if self._smallest is None:
            return tensor
        return self._placed(held(tensor), tensor.dtype)

    def settled(self, module: Any) -> None:
        """Turns what stands for weights into plain parameters and buffers of the module, in place."""
        import torch

        plain: dict[int, Any] = {}
        for part in module.modules():
            for own in (part._parameters, part._buffers):
                for name, one in own.items():
                    if not isinstance(one, _standing()):
                        continue
                    if id(one) not in plain:
                        bare = one.detach().as_subclass(torch.Tensor)
                        plain[id(one)] = (
                            torch.nn.Parameter(bare, one.requires_grad) if own is part._parameters else bare
                        )
                    own[name] = plain[id(one)]

    def place(self, address: int, shape: Sequence[int], strides: Sequence[int], size: int) -> WeightView | None:
        """What lies at an address; None where that is memory like any other.

        Args:
            address: of the first element.
            shape: of the view.
            strides: in bytes.
            size: of an element in bytes.
        """
        region = self._at(address)
        if region is None:
            return None
        steps = tuple(step // size for step in strides)
        return WeightView(region.origin, tuple(shape), steps, (address - region.start) // size)

    def values(self, place: WeightView) -> Any:
        """The values of a view, as the origin has them: a tensor of torch, mostly a view of a mapped file."""
        whole = self._read(place.origin)
        return whole.as_strided(place.shape, place.strides, whole.storage_offset() + place.offset)

    def weights(self, module: Any) -> list[Origin]:
        """The weights of a module that are not in memory, each once."""
        return list({id(one.origin): one.origin for one in self._of(module)}.values())

    def fill(self, module: Any) -> None:
        """Reads all weights of a module into memory."""
        import torch

        with torch.no_grad():
            for region in self._of(module):
                region.tensor.copy_(self._read(region.origin))
        self._last = None

    def drop(self) -> None:
        """Gives all memory back that was taken since, by filling and by reading zeros."""
        self._last = None
        for region in self._regions:
            region.memory.madvise(mmap.MADV_DONTNEED)

    def touched(self) -> bool:
        """Whether any weight was read or written since the last `drop`."""
        return any(_is_resident(one) for one in self._regions)

    def _of(self, module: Any) -> Iterator[_Region]:
        seen: set[int] = set()
        for one in (*module.parameters(), *module.buffers()):
            region = self._at(one.data_ptr())
            if region is not None and region.start not in seen:
                seen.add(region.start)
                yield region

    def _read(self, origin: Origin) -> Any:
        if not origin.made:
            return origin.read()
        if self._last is None or self._last[0] is not origin:
            self._last = None  # one is enough
            self._last = origin, origin.read().contiguous()
        return self._last[1]

    def _at(self, address: int) -> _Region | None:
        at = bisect.bisect_right(self._regions, address, key=lambda one: one.start) - 1
        return self._regions[at] if at >= 0 and address < self._regions[at].end else None

    def _placed(self, origin: Origin, dtype: Any) -> Any:
        import torch

        count = max(1, math.prod(origin.shape))
        size = count * torch.empty((), dtype=dtype).element_size()
        memory = addresses(size)
        tensor = torch.frombuffer(memory, dtype=dtype, count=count)[: math.prod(origin.shape)].reshape(origin.shape)
        with self._lock:  # transformers' loader has threads
            bisect.insort(self._regions, _Region(memory, tensor, origin), key=lambda one: one.start)
        return self._standing_for(tensor)

    def _standing_for(self, tensor: Any) -> Any:
        made = tensor.as_subclass(_standing())
        made.reserve = self
        return made

    def _called(self, function: Any, args: Any, options: Any) -> Any:
        """A function of torch on what stands for weights: views are views, what is computed is noted."""
        import torch
        from torch.utils._pytree import tree_map

        def run() -> Any:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **options)

        name = getattr(function, "__name__", "")
        if name in ("__get__", "__set__"):
            return self._again(run())
        with torch._C.DisableTorchFunctionSubclass():
            sizes = {id(one): _empty(one) for one in _tensors((args, options))}

            def bare(one: Any) -> Any:
                if isinstance(one, torch.Tensor):
                    return sizes[id(one)]
                return torch.device("meta") if isinstance(one, torch.device) or one == "cpu" else one

            found = function(*tree_map(bare, args), **tree_map(bare, options))
            made = _tensors(found)
            own = {one.untyped_storage()._cdata for one in sizes.values()}
        if all(one.untyped_storage()._cdata in own for one in made):
            return self._again(run())
        return self._noted(function, name, args, options, found)

    def _again(self, found: Any) -> Any:
        """Results as what stands for weights, where they lie in one."""
        from torch import Tensor
        from torch.utils._pytree import tree_map

        def again(one: Any) -> Any:
            if not isinstance(one, Tensor) or isinstance(one, _standing()) or self._at(one.data_ptr()) is None:
                return one
            return self._standing_for(one)

        return tree_map(again, found)

    def _noted(self, function: Any, name: str, args: Any, options: Any, found: Any) -> Any:
        """Stands for what a function will make; `found` says its sizes and types."""
        import torch
        from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

        stored = {self._dtype(one) for one in _tensors((args, options))}
        moved = name in _MOVES and len(stored) == 1

        def value(one: Any) -> Any:
            if not isinstance(one, torch.Tensor):
                return one
            place = self._place_of(one)
            if place is None:
                return one
            values = self.values(place)
            return values if moved or values.dtype == one.dtype else values.to(one.dtype)

        def run(at: int) -> Any:
            with torch.no_grad():
                return tree_flatten(function(*tree_map(value, args), **tree_map(value, options)))[0][at]

        def standing(at: int, one: Any) -> Any:
            if not isinstance(one, torch.Tensor):
                return one
            if one.numel() < (self._smallest or 0):  # exporters look at small ones
                return run(at).to(one.dtype)
            kind = next(iter(stored)) if moved else one.dtype
            return self._placed(Origin(tuple(one.shape), kind, partial(run, at), made=True), one.dtype)

        leaves, form = tree_flatten(found)
        return tree_unflatten([standing(at, one) for at, one in enumerate(leaves)], form)

    def _place_of(self, tensor: Any) -> WeightView | None:
        size = tensor.element_size()
        return self.place(tensor.data_ptr(), tensor.shape, [step * size for step in tensor.stride()], size)

    def _dtype(self, tensor: Any) -> Any:
        """The type that the values of a tensor have where they come from."""
        region = self._at(tensor.data_ptr())
        return tensor.dtype if region is None else region.origin.dtype


@lru_cache(maxsize=1)
def _standing() -> Any:
    """The class of tensors that stand for weights: whatever is done with one is asked of its `Reserve`."""
    import torch

    class Standing(torch.Tensor):  # type: ignore[misc] # torch is not typed here
        reserve: Reserve

        @classmethod
        def __torch_function__(cls, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            with torch._C.DisableTorchFunctionSubclass():
                own = next(one for one in _tensors((args, kwargs)) if isinstance(one, cls))
                reserve = vars(own)["reserve"]
            return reserve._called(function, args, kwargs or {})

    return Standing


def _tensors(found: Any) -> list[Any]:
    from torch import Tensor
    from torch.utils._pytree import tree_leaves

    return [one for one in tree_leaves(found) if isinstance(one, Tensor)]


def _empty(tensor: Any) -> Any:
    """A tensor without values, with the sizes and strides of another."""
    import torch

    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _is_resident(region: _Region) -> bool:
    """Whether the system has pages for any of its addresses; unknown counts as none."""
    mincore = getattr(ctypes.CDLL(None), "mincore", None) if sys.platform != "win32" else None
    if mincore is None:
        return False
    pages = -(-(region.end - region.start) // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * pages)()
    failed = mincore(ctypes.c_void_p(region.start), ctypes.c_size_t(region.end - region.start), found)
    return not failed and any(bytes(found).translate(_LOWEST))
