"""Tensors in and out of modules: names, places, and all that is no tensor."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from qcompiler.errors import UsageError
from qcompiler.frontends.calling import call_of, dropped, named

ONE, TWO = torch.ones(2, 3), torch.zeros(2)


class Takes(torch.nn.Module):  # type: ignore[misc] # torch is not typed here
    """Returns what it was given."""

    def forward(self, x: Any, extra: Any = None, *, flag: bool = False) -> Any:
        return x, extra, flag


class TakesAny(torch.nn.Module):  # type: ignore[misc]
    def forward(self, **given: Any) -> Any:
        return given


def test_tensors_are_put_back_where_the_example_had_them() -> None:
    call = call_of(Takes(), {"x": ONE, "extra": {"a": [TWO, None, 3], "b": ONE}, "flag": True}, "it")
    assert list(call.inputs) == ["x", "extra.a.0", "extra.b"]
    x, extra, flag = call({"x": ONE + 1, "extra.a.0": TWO + 5, "extra.b": ONE + 7})
    assert torch.equal(x, ONE + 1)
    assert torch.equal(extra["a"][0], TWO + 5)
    assert extra["a"][1:] == [None, 3]
    assert torch.equal(extra["b"], ONE + 7)
    assert flag is True


@pytest.mark.parametrize("given", [(ONE, TWO), [ONE, np.zeros(2)], {"x": np.ones((2, 3)), "extra": TWO}])
def test_inputs_may_be_in_order_or_by_name(given: Any) -> None:
    assert list(call_of(Takes(), given, "it").inputs) == ["x", "extra"]


def test_one_tensor_is_the_first_input() -> None:
    assert list(call_of(Takes(), ONE, "it").inputs) == ["x"]


def test_a_forward_of_any_names_takes_any() -> None:
    assert list(call_of(TakesAny(), {"left": ONE, "right": TWO}, "it").inputs) == ["left", "right"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "example inputs are needed"),
        ({}, "example inputs are needed"),
        ({"y": ONE}, "has no parameter 'y'"),
        ((ONE, ONE, ONE, ONE), "4 example inputs are given, and the forward of it has 3 parameters"),
        ({"flag": True}, "no tensor among the example inputs"),
    ],
)
def test_inputs_that_do_not_fit_say_what_does(given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        call_of(Takes(), given, "it")


@dataclass
class Result:
    boxes: Any
    kept: Any = None


Pair = namedtuple("Pair", "first second")  # noqa: PYI024 # as users write it

OUTPUTS: dict[str, tuple[Any, list[str]]] = {
    "a tensor": (ONE, ["output"]),
    "a tuple": ((ONE, None, TWO), ["output_0", "output_2"]),
    "a dict": ({"a": ONE, "b": None, "c": TWO}, ["a", "c"]),
    "a dataclass": (Result(ONE), ["boxes"]),
    "a named tuple": (Pair(ONE, TWO), ["first", "second"]),
    "lists in a dict": ({"states": (ONE, ONE), "logits": TWO}, ["states_0", "states_1", "logits"]),
    "equal names": ({"main": {"logits": ONE}, "aux": {"logits": TWO}}, ["logits", "aux_logits"]),
    "the name of an input": ({"x": ONE}, ["x_out"]),
    "a dict in a tuple": ((ONE, {"peak": TWO}), ["output_0", "peak"]),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs_have_names_of_their_own(case: str) -> None:
    found, names = OUTPUTS[case]
    assert list(named(found, ("x",))) == names


def test_what_is_no_tensor_is_named() -> None:
    assert dropped({"a": ONE, "kept": object(), "none": None, "n": [3]}) == ["kept (object)", "n.0 (int)"]
