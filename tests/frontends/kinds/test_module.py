"""Modules without a decoder or encoder around them: how they are called, checked and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qcompiler
from qcompiler.errors import ModelError, QCompilerError, UsageError
from qcompiler.frontends.export import export
from qcompiler.runtime.session import Session
from tests.kit.frontends.torch_source import BUILD, written


def test_function_may_return_a_module_with_inputs_and_free_dimensions(tmp_path: Path) -> None:
    axes = "{'signal': {0: 'batch', 2: 'time'}, 'gain': {0: 'batch'}}"
    made = export(written(tmp_path, BUILD.replace("AXES", axes)), tmp_path / "m.onnx")
    assert made.kind == "module"
    assert made.inputs["m.onnx"] == {"signal": ("batch", 3, "time"), "gain": ("batch",)}
    got = Session(made.path).run({"signal": np.ones((4, 3, 9), np.float32), "gain": np.ones(4, np.float32)})
    assert {name: value.shape for name, value in got.items()} == {"energy": (4, 9), "peak": (4,)}
    steps = {one.step for one in made.checked}
    assert steps == {"as traced", "smaller (batch 1, time 1)", "larger (batch 3, time 21)"}


def test_module_is_left_in_training_and_its_batch_is_free_by_default(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
    made = qcompiler.export(module, tmp_path / "m.onnx", inputs={"input": np.ones((1, 4), np.float32)})
    assert made.inputs["m.onnx"] == {"input": ("batch", 4)}
    assert module.training
    assert module[1].training


class Counting(torch.nn.Module):  # type: ignore[misc] # torch is not typed here
    """Returns something else each time, which no graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return x + self.calls


class Deciding(torch.nn.Module):  # type: ignore[misc]
    """Decides by a value."""

    def forward(self, x: Any) -> Any:
        return x if x.sum() > 0 else -x


class Fixed(torch.nn.Module):  # type: ignore[misc]
    """Decides by a size."""

    def forward(self, x: Any) -> Any:
        return x * 2 if x.shape[0] == 2 else x * 3


class Stuck(torch.nn.Module):  # type: ignore[misc]
    """Runs at one width."""

    def forward(self, x: Any) -> Any:
        return x * torch.ones(4)[: max(x.shape[1], 2)].reshape(1, 4)


class Nothing(torch.nn.Module):  # type: ignore[misc]
    """Returns no tensor."""

    def forward(self, x: Any) -> Any:
        return {"size": x.shape[0]}


ROW = {"x": torch.ones(2, 4)}


MODULES: dict[str, tuple[Any, dict[str, Any], type[QCompilerError], str]] = {
    "other each time": (Counting(), {"inputs": ROW}, ModelError, "does not compute what torch computes"),
    "decides by value": (Deciding(), {"inputs": ROW}, ModelError, "torch cannot export Deciding"),
    "decides by size": (Fixed(), {"inputs": ROW}, ModelError, "does not run on inputs of other sizes"),
    "no inputs": (Deciding(), {}, UsageError, "example inputs are needed"),
    "unknown input": (Deciding(), {"inputs": {"y": ROW["x"]}}, UsageError, "no parameter 'y'"),
    "misfit": (torch.nn.Linear(3, 3), {"inputs": {"input": ROW["x"]}}, ModelError, "fails on its example inputs"),
    "unknown axes": (
        Fixed(),
        {"inputs": ROW, "axes": {"z": {0: "n"}}},
        UsageError,
        "free dimensions are given for 'z'",
    ),
    "far axis": (Fixed(), {"inputs": ROW, "axes": {"x": {5: "n"}}}, UsageError, "axis 5 is not one of them"),
    "double": (torch.nn.Linear(3, 3).double(), {"inputs": ROW}, ModelError, "float64.*module.float()"),
    "stuck": (
        Stuck(),
        {"inputs": ROW, "axes": {"x": {1: "width"}}},
        ModelError,
        "free dimension 'width' of Stuck has no other size than the 4",
    ),
    "nothing": (Nothing(), {"inputs": ROW}, ModelError, "returned no tensor but a dict"),
    "cache": (Fixed(), {"inputs": ROW, "past": True}, UsageError, "leave --past out"),
    "text": (3, {}, UsageError, "a int cannot be exported"),
}


@pytest.mark.parametrize("case", MODULES)
def test_modules_that_cannot_be_exported_say_what_to_do(case: str, tmp_path: Path) -> None:
    module, options, kind, words = MODULES[case]
    with pytest.raises(kind, match=words):
        export(module, tmp_path / "m.onnx", **options)
    assert list(tmp_path.iterdir()) == []


class Convolving(torch.nn.Module):  # type: ignore[misc]
    """Needs 12 steps at least, and makes one of every four."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv1d(2, 4, 12, stride=4)

    def forward(self, sound: Any) -> Any:
        return self.layer(sound)


def test_free_axes_are_tried_at_sizes_that_the_module_can_have(tmp_path: Path) -> None:
    axes: Any = {"sound": {0: "batch", -1: "time"}, "output": {0: "batch"}}
    made = export(Convolving(), tmp_path / "m.onnx", inputs={"sound": torch.randn(1, 2, 40)}, axes=axes)
    assert made.inputs["m.onnx"] == {"sound": ("batch", 2, "time")}
    steps = {one.step for one in made.checked}
    assert steps == {"as traced", "smaller (batch 1, time 20)", "larger (batch 3, time 41)"}


class OneRow(torch.nn.Module):  # type: ignore[misc]
    """Runs with one row."""

    def forward(self, x: Any) -> Any:
        return x.reshape(1, -1) @ torch.eye(4)


def test_a_batch_that_the_module_cannot_have_is_fixed_with_a_note(tmp_path: Path) -> None:
    made = export(OneRow(), tmp_path / "m.onnx", inputs=(torch.ones(1, 4),))
    assert made.inputs["m.onnx"] == {"x": (1, 4)}
    assert "no dimension is free" in made.notes[0]


def test_half_precision_is_widened_and_the_module_left_as_it_was(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 3).bfloat16()
    made = export(module, tmp_path / "m.onnx", inputs={"input": torch.ones(2, 3).bfloat16()})
    assert module.weight.dtype == torch.bfloat16
    assert "is bfloat16: widened to float32, which is exact" in made.notes[0]
    got = Session(made.path).run({"input": np.ones((1, 3), np.float32)})["output"]
    want = module.weight.detach().float().sum(1) + module.bias.detach().float()
    np.testing.assert_allclose(got[0], want.numpy(), rtol=1e-5)


def test_a_transformers_model_is_called_with_the_inputs_that_came_with_it(tmp_path: Path) -> None:
    from tests.kit.architectures import MODELS

    ids = torch.arange(1, 7).reshape(2, 3)
    axes: Any = {"input_ids": {1: "words"}}
    made = export(MODELS["llama"](), tmp_path / "m.onnx", inputs={"input_ids": ids}, axes=axes)
    assert made.kind == "module"
    assert made.inputs["m.onnx"] == {"input_ids": (2, "words")}
    assert list(made.outputs["m.onnx"]) == ["logits"]
