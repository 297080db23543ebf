"""The stage that reads the model, opens the data and finds what results are judged by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image

from qcompiler.compiler.ask import ask
from qcompiler.compiler.base import Compilation
from qcompiler.compiler.compile import quantize
from qcompiler.compiler.content import digest
from qcompiler.compiler.stages.load import load
from qcompiler.data.batches import NO_BATCH, BatchAxes
from qcompiler.data.source import Prepared
from qcompiler.errors import DataError, EngineError, ModelError, UsageError
from qcompiler.recipe.recipe import Recipe
from tests.kit.cases import Case, prepared, state
from tests.kit.rewrite import model
from tests.kit.subjects import Standing, before


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


def with_ranges(folder: Path, text: str, **recipe: Any) -> Standing:
    case = prepared(folder, "conv")
    (folder / "ranges.json").write_text(text)
    return before("clean_up", case, ranges=str(folder / "ranges.json"), **recipe)


def test_ranges_of_tensors_of_the_model_are_kept_and_the_others_named(tmp_path: Path) -> None:
    standing = with_ranges(tmp_path, '{"x": 4.0, "r3": [0, 2], "b3": 1.0, "r1": 0}', data=False)
    assert standing.subject.scope.ranges["x"].amax == 4.0
    assert {name: one.high for name, one in standing.subject.scope.ranges.items()} == {"x": 4.0, "r3": 2.0}
    record = standing.run.records["ranges"]
    assert (record["given"], record["unknown"], record["left_out"]) == (2, ["b3"], {"r1": "it is 0 throughout"})
    assert record["kind"] == "JSON with ranges"
    assert any("names tensors that the model does not have: 'b3'" in text for text in standing.run.warnings)
    assert any("for 'r1': it is 0 throughout" in text for text in standing.run.warnings)


def test_ranges_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no range that is of use for a tensor of this model; it names 'a', 'w9'"):
        with_ranges(tmp_path, '{"a": 4.0, "w9": 2.0}')
    with pytest.raises(DataError, match="no range that is of use"):
        with_ranges(tmp_path, '{"w1": 4.0}')  # a weight, whose range is its own


def test_an_output_that_is_the_file_of_the_ranges_is_refused(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    case.out.mkdir()
    (case.out / "m.manifest.json").write_text('{"x": 1.0}')
    with pytest.raises(UsageError, match="is the file that --ranges names, which is never written to"):
        before("clean_up", case, ranges=str(case.out / "m.manifest.json"))


def test_pictures_are_prepared_as_asked_for_calibration_and_for_judging(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    rng = np.random.default_rng(0)
    for index in range(9):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3)).astype(np.uint8)).save(tmp_path / f"{index}.png")
    (tmp_path / "pictures").mkdir()
    for index in range(9):
        (tmp_path / f"{index}.png").rename(tmp_path / "pictures" / f"{index}.png")
    recipe = Recipe(preprocess={"method": "plain"}, verify_data=str(tmp_path / "pictures"))  # type: ignore[arg-type]
    for data in (str(tmp_path / "pictures"), str(case.data)):
        asked = ask(recipe, data, case.out / "m.qdq.onnx", build=False)
        subject = Compilation()(load, case.source, data, asked.load)
        assert subject.samples is not None
        assert ("preprocess" in subject.samples.details) is (data != str(case.data))
        assert subject.judge.data == Prepared(str(tmp_path / "pictures"), recipe.preprocess)


def test_an_array_of_another_name_for_the_only_input_is_told(tmp_path: Path) -> None:
    case = prepared(tmp_path, "conv")
    np.savez(case.data, pictures=case.rows)
    standing = before("clean_up", case)
    assert f"array 'pictures' of '{case.data}' is taken for the only input, 'x'" in standing.run.warnings


def detector(folder: Path) -> Path:
    """Two linear layers, and a plugin of TensorRT that reads what they give."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((2, 64, 64)).astype(np.float32) / 4
    proto = model(
        ("MatMul", "x v", "h"), ("Relu", "h", "r"), ("MatMul", "r w", "boxes"), ("Sigmoid", "boxes", "scores"),
        ("EfficientNMS_TRT", "boxes scores", "n y", {"max_output_boxes": 3}, "TRT"), ("Neg", "n", "count"),
        inputs={"x": ("batch", 16, 64)}, weights={"v": weights[0], "w": weights[1]}, outputs=("y", "count"),
        domains=("TRT",),
    )  # fmt: skip
    for value in proto.graph.output:
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, ["batch", None]))
    onnx.save(proto, folder / "m.onnx")
    np.savez(folder / "d.npz", x=rng.standard_normal((16, 16, 64)).astype(np.float32))
    return folder / "m.onnx"


def test_what_stands_in_front_of_a_plugin_is_quantized_and_the_plugin_written_as_it_came(tmp_path: Path) -> None:
    source = detector(tmp_path)
    made = quantize(source, data=str(tmp_path / "d.npz"), output=tmp_path / "q.onnx", recipe=Recipe(target="tensorrt"))
    assert made.manifest["not_measured"] == [{"node": "N", "op": "EfficientNMS_TRT", "domain": "TRT"}]
    assert any(text.startswith("not measured: node 'N'") for text in made.manifest["warnings"])
    assert len(made.plan.quantized()) == 2
    assert made.verification is not None
    assert {one.name for one in made.verification.outputs} == {"boxes", "scores"}
    written = onnx.load(made.qdq_path)
    onnx.checker.check_model(written)
    assert [value.name for value in written.graph.output] == ["y", "count"]
    (plugin,) = [node for node in written.graph.node if node.domain == "TRT"]
    assert (plugin.name, list(plugin.input)) == ("N", ["boxes", "scores"])
    assert onnx.helper.get_attribute_value(plugin.attribute[0]) == 3


@pytest.mark.parametrize(("target", "kind"), [("tensorrt-rtx", EngineError), ("onnxruntime", ModelError)])
def test_a_target_that_lacks_the_plugin_refuses_before_the_work(
    tmp_path: Path, target: str, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=r"node 'N' \(EfficientNMS_TRT of domain 'TRT'\)"):
        quantize(
            detector(tmp_path), data=str(tmp_path / "d.npz"), output=tmp_path / "q.onnx", recipe=Recipe(target=target)
        )
    assert not (tmp_path / "q.onnx").exists()


def test_a_plugin_that_is_not_there_is_told(tmp_path: Path) -> None:
    recipe = Recipe(target="onnxruntime", plugin=(str(tmp_path / "none.so"),))
    with pytest.raises(UsageError, match="there is no plugin"):
        quantize(detector(tmp_path), data=str(tmp_path / "d.npz"), output=tmp_path / "q.onnx", recipe=recipe)
    with pytest.raises(EngineError, match="TensorRT-RTX has no plugins"):
        Recipe(plugin=("mine.so",))


def test_an_operator_of_onnxruntime_alone_is_refused_before_the_calibration(tmp_path: Path) -> None:
    weights = {"w": np.ones((8, 24), np.float32), "b": np.ones(24, np.float32)}
    proto = model(
        ("Attention", "x w b p", "y", {"num_heads": 2}, "com.microsoft"),
        inputs={"x": (2, 5, 8), "p": (np.int32, (8,))}, weights=weights, opset=18,
    )  # fmt: skip
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 5, 8]))
    onnx.save(proto, tmp_path / "m.onnx")
    recipe = Recipe(target="tensorrt")
    with pytest.raises(ModelError, match=r"node 'Y' \(Attention.*has a mask of 8 numbers for 2 texts"):
        quantize(tmp_path / "m.onnx", data="random", output=tmp_path / "q.onnx", recipe=recipe)
