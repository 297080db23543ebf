"""Weights that are not in memory: views of them are known by their addresses, what is computed of them is noted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from qcompiler.frontends.weights.reserve import Origin, Reserve, WeightView, computed, held

SHAPE = (48, 32)


def values(seed: int = 0, shape: tuple[int, ...] = SHAPE, dtype: Any = torch.float16) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def reserve() -> Reserve:
    return Reserve(100)


def found(reserve: Reserve, tensor: Any) -> Any:
    """The values of what stands for a weight or of a view of it, by its address."""
    bare = tensor.detach().as_subclass(torch.Tensor).numpy()
    place = reserve.place(bare.ctypes.data, bare.shape, bare.strides, bare.itemsize)
    assert isinstance(place, WeightView)
    return reserve.values(place)


VIEWS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda one: one,
    "turned": lambda one: one.T,
    "cut": lambda one: one[3:17, 5:],
    "every other row": lambda one: one[::2],
    "cut and turned": lambda one: one[3:17].transpose(0, 1)[2:],
    "halves": lambda one: one.chunk(2, dim=1)[1],
    "in another shape": lambda one: one.view(4, 12, 32)[2],
    "a parameter": lambda one: torch.nn.Parameter(one)[1:],
    "in the type that it has": lambda one: one.to(device="cpu", dtype=torch.float32).contiguous(),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_known_by_where_it_lies(name: str, reserve: Reserve) -> None:
    whole = values()
    got = VIEWS[name](reserve.weight(held(whole)))
    assert got.dtype == torch.float32
    assert torch.equal(found(reserve, got), VIEWS[name](whole.float()).half())
    assert not reserve.touched()


def merged(one: Any, other: Any) -> Any:
    return torch.cat([torch.stack([one, other], dim=0), torch.stack([other, one], dim=0)], dim=1)


COMPUTED: dict[str, tuple[Callable[..., Any], Any]] = {
    "experts put together": (merged, torch.float16),
    "a part of them": (lambda one, other: merged(one, other)[1, 10:60].T, torch.float16),
    "turned and laid out anew": (lambda one, _: one.T.contiguous(), torch.float16),
    "a sum": (lambda one, other: one.detach().float() + 0.5 * other, torch.float32),
    "a norm": (lambda one, other: one * (other.norm(dim=1) / one.flatten(1).norm(dim=1)).reshape(-1, 1), torch.float32),
    "two of one": (lambda one, _: torch.sort(one, dim=1)[0], torch.float32),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_what_is_computed_is_made_when_it_is_asked_for(name: str, reserve: Reserve) -> None:
    function, dtype = COMPUTED[name]
    one, other = values(0), values(1)
    got = function(reserve.weight(held(one)), reserve.weight(held(other)))
    assert not reserve.touched()
    right = found(reserve, got)
    assert right.dtype == dtype  # what is only moved stays in the type that it is stored in
    assert torch.equal(right.float(), function(one.float(), other.float()))


def test_types_that_differ_meet_in_float32(reserve: Reserve) -> None:
    one, other = values(0), values(1, dtype=torch.bfloat16)
    got = torch.cat([reserve.weight(held(one)), reserve.weight(held(other))])
    assert torch.equal(found(reserve, got), torch.cat([one.float(), other.float()]))


def test_small_weights_and_integers_are_there(reserve: Reserve) -> None:
    for one in (values(shape=(9, 11)), torch.arange(1000)):
        assert torch.equal(reserve.weight(held(one)), one)
    small = reserve.later(values(shape=(4, 3))) @ reserve.later(values(1, shape=(3, 5)))
    assert type(small) is torch.Tensor
    assert torch.equal(small, values(shape=(4, 3)) @ values(1, shape=(3, 5)))
    whole = Reserve(None)
    assert torch.equal(whole.weight(held(values())), values())
    assert whole.later(values(shape=(4, 3))).sum() == values(shape=(4, 3)).sum()


def test_origins_are_read_when_they_are_needed_and_kept_by_nobody(reserve: Reserve) -> None:
    read: list[int] = []

    def make() -> Any:
        read.append(1)
        return values(dtype=torch.float32)

    origin = computed(make)
    assert (origin.shape, len(read)) == (SHAPE, 1)
    weight = reserve.weight(origin)
    assert len(read) == 1
    for part in (weight[:8], weight[8:]):
        found(reserve, part)
    assert len(read) == 2  # for both parts
    found(reserve, reserve.weight(held(values())) + 1)
    found(reserve, weight)
    assert len(read) == 3


def test_a_single_value_is_the_right_one(reserve: Reserve) -> None:
    weight = reserve.weight(held(values()))
    assert float(weight.sum()) == float(values().float().sum())
    assert bool((weight > 3).any()) == bool((values() > 3).any())
    with pytest.raises(RuntimeError):
        (weight * 2).tolist()


def test_who_reads_or_writes_is_noticed_until_the_memory_is_given_back(reserve: Reserve) -> None:
    weight = reserve.weight(held(values())).as_subclass(torch.Tensor)
    assert not reserve.touched()
    assert float(weight.sum()) == 0.0
    assert reserve.touched()
    reserve.drop()
    assert not reserve.touched()
    weight[3, 4] = 1.0
    assert reserve.touched()
    reserve.drop()
    assert float(weight.abs().max()) == 0.0


def test_a_module_is_filled_with_what_it_needs_and_no_more(reserve: Reserve) -> None:
    whole, other = values(0), values(1)
    weight, unused = reserve.weight(held(whole)), reserve.weight(held(other))
    module = torch.nn.Linear(SHAPE[1], SHAPE[0], bias=False)
    twin = torch.nn.Linear(SHAPE[1], SHAPE[0], bias=False)
    module.weight = twin.weight = torch.nn.Parameter(weight)
    both = torch.nn.Sequential(module, twin)
    reserve.settled(both)
    assert type(module.weight) is torch.nn.Parameter
    assert module.weight is twin.weight  # tied weights stay one
    assert [one.shape for one in reserve.weights(both)] == [SHAPE]
    reserve.fill(both)
    assert torch.equal(module.weight, whole.float())
    assert float(unused.as_subclass(torch.Tensor).abs().max()) == 0.0


def test_memory_that_is_not_there_is_none_of_its(reserve: Reserve) -> None:
    reserve.weight(held(values()))
    array = np.zeros(SHAPE, np.float32)
    assert reserve.place(array.ctypes.data, array.shape, array.strides, 4) is None


def test_a_model_larger_than_any_memory_takes_none(reserve: Reserve) -> None:
    shape = (1 << 20, 1 << 18)  # a terabyte

    def never() -> Any:
        raise AssertionError("read")

    weight = reserve.weight(Origin(shape, torch.float16, never))
    assert tuple(weight.T[5:].shape) == (shape[1] - 5, shape[0])
    assert not bool(weight.shape[0] == 0)
