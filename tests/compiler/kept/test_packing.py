"""Values as bytes and back: equal, shared where they were, and nothing that runs."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from qcompiler.compiler.base import Done
from qcompiler.compiler.content import digest
from qcompiler.compiler.kept.packing import NotKeptError, held_of, live_of, pack, unpack
from qcompiler.compiler.subject import Lowered
from qcompiler.data.source import open_source
from qcompiler.errors import UsageError
from qcompiler.ir.gs_classes import Constant
from qcompiler.ir.made import ScaledWeights, WidenedWeights
from qcompiler.ir.model import Model
from qcompiler.outliers.llm_int8 import Splits
from qcompiler.plan import Decision, Plan
from qcompiler.target import DType
from qcompiler.verification.held_out import Judge
from tests.kit import decoder
from tests.kit.cases import prepared
from tests.kit.rewrite import to_graph

Array = np.ndarray[Any, Any]


class Blobs(dict[str, Array]):
    """What was kept of arrays."""

    def read(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        return np.ascontiguousarray(self[name]).view(dtype).reshape(shape)


def back(value: object, live: Mapping[str, object] | None = None) -> Any:
    blobs = Blobs()
    return unpack(pack(value, blobs.__setitem__), blobs.read, live or {})


@pytest.mark.parametrize(
    "value",
    [
        {"a": (1, 2.5, None, True), "b": [b"x", "y"], "c": {1, 2}, "d": frozenset({"q"})},
        MappingProxyType({"x": 1}),
        DType.INT8,
        np.float32(1.5),
        np.dtype(np.float16),
        Path("a/b"),
        slice(1, 4),
        Done((1, 2), {"part": 1}, (), ("a warning",)),
        np.arange(5),
        np.arange(10_000).reshape(100, 100),
        np.asarray(["a", "b"], object),
        np.ones(3, ml_dtypes.bfloat16),
        np.ones((90, 80), ml_dtypes.int4),
        np.asarray(3.0),
    ],
    ids=repr,
)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    again = back(value)
    assert type(again) is type(value)
    assert digest(again) == digest(value)


def test_large_arrays_lie_outside_once_and_are_one_object_again() -> None:
    values, blobs = np.arange(10_000, dtype=np.float32), Blobs()
    content = pack([values, values, values.copy()], blobs.__setitem__)
    assert len(blobs) == 1
    assert len(content) < 1000


def test_a_graph_with_nested_ones_comes_back_as_the_same_graph(tmp_path: Path) -> None:
    model = Model(to_graph(decoder.decoder(cache=True)), {"note": "x"}, None, 8)
    again = back((model, model))
    assert digest(again[0]) == digest(model)
    assert again[0] is again[1]
    assert again[0].metadata == {"note": "x"}


def test_sources_and_judges_are_those_of_the_reader() -> None:
    feeds = [{"x": np.ones(3, np.float32)}]
    source = open_source(feeds, {"x": (np.dtype(np.float32), (3,))})
    judge = Judge(None, "top1")
    live = live_of((source, judge))
    assert back((source, judge), live) == (source, judge)
    other = open_source([{"x": np.zeros(3, np.float32)}], {"x": (np.dtype(np.float32), (3,))})
    with pytest.raises(NotKeptError, match="are others"):
        back(source, live_of((other,)))


def test_a_model_that_the_question_held_is_that_of_the_reader(tmp_path: Path) -> None:
    model = Model(to_graph(decoder.decoder(cache=True)), {"note": "x"}, None, 8)
    other = Model(to_graph(decoder.decoder(cache=False)), {"note": "x"}, None, 8)
    held, blobs = held_of((model, Lowered(model, model, Plan(), Splits()))), Blobs()
    assert held == {digest(model): model}
    content = pack((model, other), blobs.__setitem__, held)
    again = unpack(content, blobs.read, held)
    assert again[0] is model
    assert digest(again[1]) == digest(other)
    assert len(content) < len(pack((model, other), blobs.__setitem__))
    with pytest.raises(NotKeptError):
        unpack(content, blobs.read, {})


def test_what_holds_code_is_not_kept() -> None:
    with pytest.raises(NotKeptError):
        back({"f": lambda: 1})


class Call:
    """What pickle would call when it reads this."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize(
    "attack",
    [
        Call(eval, "1"),
        Call(getattr, [], "append"),
        Call(open, "x", "w"),
        Call(np.memmap, "x", "w+"),
        Call(prepared, Path("x"), "y"),
        Call(open_source, "random", {}),
        Call(UsageError, "x"),
        Call(__import__("os").system, "true"),
        Call(np.load, "x"),
        Call(Path.unlink, Path("x")),
    ],
    ids=lambda attack: getattr(attack.function, "__name__", str(attack.function)),
)
def test_what_somebody_else_wrote_calls_nothing(attack: Call) -> None:
    content = pickle.dumps({"value": attack})
    with pytest.raises(NotKeptError, match="no place there"):
        unpack(content, Blobs().read, {})


@pytest.mark.parametrize("module", ["qcompiler.__main__", "numpy.f2py.__main__", "antigravity", "this"])
def test_what_runs_when_it_is_imported_is_not_imported(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = b"\x80\x05" + b"c" + f"{module}\nmain\n".encode() + b"."
    with pytest.raises(NotKeptError, match="no place there"):
        unpack(content, Blobs().read, {})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_half_an_entry_is_none(cut: int) -> None:
    content = pack({"a": Decision}, Blobs().__setitem__)
    with pytest.raises(NotKeptError):
        unpack(content[:cut], Blobs().read, {})


def test_weights_that_are_made_later_come_back_as_that() -> None:
    stored = np.random.default_rng(1).standard_normal((90, 80)).astype(np.float16)
    factor = np.full((90, 1), 3, np.float32)
    weight = ScaledWeights(WidenedWeights(stored), ((factor, True),))
    blobs = Blobs()
    again = unpack(pack(weight, blobs.__setitem__), blobs.read, {})
    assert list(blobs) == [digest(stored)]
    assert isinstance(again, ScaledWeights)
    assert digest(again) == digest(weight)
    np.testing.assert_array_equal(again.load(), weight.load())


def test_a_graph_with_weights_that_are_made_later_comes_back_with_them() -> None:
    graph = to_graph(decoder.decoder())
    weight = next(
        tensor for tensor in graph.tensors().values() if isinstance(tensor, Constant) and tensor.values.ndim == 2
    )
    weight.values = WidenedWeights(weight.values.astype(np.float16))
    again = back(graph).tensors()[weight.name]
    assert isinstance(again._values, WidenedWeights)
    np.testing.assert_array_equal(again.values, weight.values)
