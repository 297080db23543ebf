"""The stage that reads the model, opens the data and finds what results are judged by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from qcompiler.compiler.ask import ask
from qcompiler.compiler.base import Compilation
from qcompiler.compiler.content import digest
from qcompiler.compiler.stages.load import load
from qcompiler.data.batches import NO_BATCH, BatchAxes
from qcompiler.errors import DataError, UsageError
from qcompiler.recipe.recipe import Recipe
from tests.kit.cases import Case, prepared, state
from tests.kit.rewrite import model
from tests.kit.subjects import before


def test_the_source_is_recorded_and_not_touched(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    untouched = state(case.source)
    standing = before("clean_up", case)
    assert standing.run.records["source"].sha256 == untouched[0]
    assert standing.run.records["export"] is None
    assert standing.subject.reference is standing.subject.model
    assert state(case.source) == untouched


def test_how_a_model_was_exported_goes_into_the_record(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    asked = ask(Recipe(), str(case.data), case.out / "m.qdq.onnx", build=False).after_export({"kind": "module"})
    run = Compilation()
    run(load, case.source, str(case.data), asked.load)
    assert run.records["export"] == {"kind": "module"}


def test_random_data_is_stamped(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    asked = ask(Recipe(), "random", case.out / "m.qdq.onnx", build=False)
    run = Compilation()
    run(load, case.source, "random", asked.load)
    assert run.records["random_data"] is True


def test_an_output_that_is_the_source_is_refused(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    asked = ask(Recipe(), str(case.data), case.source, build=False)
    with pytest.raises(UsageError, match="never written to"):
        Compilation()(load, case.source, str(case.data), asked.load)


def test_data_that_can_be_read_only_once_is_refused(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    once = iter([{"x": case.rows[:1]}])
    asked = ask(Recipe(), once, case.out / "m.qdq.onnx", build=False)
    with pytest.raises(DataError, match="only once"):
        Compilation()(load, case.source, once, asked.load)


def test_the_batch_axes_are_found_and_carried_with_the_data(tmp_path: Path) -> None:
    standing = before("clean_up", prepared(tmp_path, "conv"), batch=4)
    subject = standing.subject
    assert subject.axes == BatchAxes({"x": 0}, "run")
    assert standing.run.records["batch"] == {"axes": {"x": 0}, "how": "run"}
    assert subject.samples is not None
    assert subject.parts is not None
    assert [len(next(iter(source))["x"]) for source in (subject.samples, subject.parts.calibrate)] == [4, 4]
    assert digest(subject.axes) != digest(NO_BATCH)


def test_what_is_told_of_axes_is_taken_and_joining_along_none_is_warned_of(tmp_path: Path) -> None:
    standing = before("clean_up", prepared(tmp_path, "conv"), batch=4, batch_axis={"x": None})
    assert standing.subject.axes == BatchAxes({}, "told")
    assert any("--batch 4 joins nothing" in text for text in standing.run.warnings)


@pytest.mark.parametrize("data", [True, False])
def test_an_axis_that_the_model_does_not_have_is_refused(tmp_path: Path, data: bool) -> None:
    with pytest.raises(UsageError, match="has axes 0 to 3"):
        before("clean_up", prepared(tmp_path, "conv"), data=data, precision="bf16", batch_axis={"x": 4})


@pytest.mark.parametrize(("names", "told"), [(["bias"], True), (["w", "bias"], False)])
def test_an_input_with_a_default_value_is_told_unless_all_weights_are_inputs(
    tmp_path: Path, names: list[str], told: bool
) -> None:
    weights = {"w": np.ones((4, 4), np.float32), "bias": np.ones(4, np.float32)}
    proto = model(("MatMul", "x w", "h"), ("Add", "h bias", "y"), weights=weights)
    proto.graph.input.extend(helper.make_tensor_value_info(name, 1, weights[name].shape) for name in names)
    case = Case(tmp_path, "made")
    onnx.save(proto, case.source)
    np.savez(case.data, x=np.ones((4, 2, 4), np.float32))
    standing = before("clean_up", case)
    assert [text for text in standing.run.warnings if "'bias'" in text and "default value" in text] == (
        [standing.run.warnings[0]] if told else []
    )
