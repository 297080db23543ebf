"""`inspect`: what is said of a model without data, what data adds, and that awkward models do not stop it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from qcompiler.cli.main import main
from qcompiler.errors import DataError, ModelError
from qcompiler.tools.inspect.inspection import inspect
from tests.kit.rewrite import graph_proto, model
from tests.kit.tools.inspected import RNG, convnet, mlp, saved, weights


def test_without_data_it_says_what_is_in_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path, convnet())
    before = (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
    found = inspect(path)
    assert (found.file, found.opset, found.ir_version) == ("m.onnx", 17, 8)
    assert found.inputs == {"x": ("float32", (1, 3, 16, 16))}
    assert found.outputs == {"y": ("float32", (1, 20))}
    assert found.parameters == 16 * 27 + 32 * 144 + 640
    assert found.weights == {"float32": 4 * found.parameters}
    assert found.operators["Conv"] == 2
    assert next(iter(found.operators)) == "Conv"
    assert (found.data, found.spikes, found.problems, found.custom, found.control_flow) == ("", (), (), {}, ())
    assert (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) == before


def test_control_flow_and_its_layers_are_listed(tmp_path: Path) -> None:
    inner = weights(w=(32, 32))
    then = graph_proto([("MatMul", "x w", "t")], {}, ["t"], inner)
    other = graph_proto([("Identity", "x", "o")], {}, ["o"])
    nodes = [("If", "flag", "m", {"then_branch": then, "else_branch": other}), ("MatMul", "m v", "y")]
    proto = model(*nodes, inputs={"flag": (np.bool_, ()), "x": (4, 32)}, weights=weights(v=(32, 32)))
    path = saved(tmp_path, proto)
    found = inspect(path)
    assert found.control_flow == ("M (If)",)
    assert found.operators["MatMul"] == 2
    assert {one.rule for one in found.layers} == {"linear", "subgraph"}
    assert found.parameters == 2 * 32 * 32
    feeds = [{"flag": np.array(value), "x": np.ones((4, 32), np.float32)} for value in (True, False)]
    assert [one.readers for one in inspect(path, data=feeds).spikes] == [("Y",)]


def test_operators_that_nobody_knows_are_listed_and_data_does_not_stop_it(tmp_path: Path) -> None:
    proto = model(
        ("Strange", "x", "s", {}, "com.acme"),
        ("MatMul", "s w", "y"),
        inputs={"x": (4, 32)},
        weights=weights(w=(32, 32)),
        domains=("com.acme",),
    )
    path = saved(tmp_path, proto)
    found = inspect(path)
    assert found.custom == {"com.acme::Strange": 1}
    assert {one.op: one.quantizable for one in found.layers} == {"Strange": False, "MatMul": True}
    found = inspect(path, data=[{"x": np.ones((4, 32), np.float32)}])
    assert found.spikes == ()
    assert any("Strange of domain 'com.acme'" in one and "not measured" in one for one in found.problems)


def test_a_model_without_layers_is_no_problem(tmp_path: Path) -> None:
    found = inspect(saved(tmp_path, model(("Relu", "x", "y"))), data=[{"x": np.ones((2, 4), np.float32)}])
    assert (found.layers, found.macs, found.spikes, found.problems) == ((), None, (), ())
    assert found.to_json()["layers_that_can_be_int8"] == "0 of 0"
    assert not {"spikes", "residuals"} & found.to_json().keys()


def test_data_that_does_not_fit_and_files_that_are_none_are_errors(tmp_path: Path) -> None:
    path = saved(tmp_path, mlp())
    with pytest.raises(DataError, match="'x'"):
        inspect(path, data=[{"x": np.ones((1, 24, 31), np.float32)}])
    with pytest.raises(DataError, match="has no samples"):
        inspect(path, data=[])
    path.write_bytes(b"\x08\x08\xff\xff")
    with pytest.raises(ModelError, match="m.onnx"):
        inspect(path)


def test_the_json_has_only_what_there_is_and_no_infinities(tmp_path: Path) -> None:
    zeros = [{"x": np.zeros((1, 24, 32), np.float32)}]
    for found in (inspect(saved(tmp_path, mlp())), inspect(saved(tmp_path, mlp()), data=zeros)):
        document = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert "custom_operators" not in document
        assert document["macs_that_can_be_int8"] == 1
        assert [row["int8"] for row in document["layers"]] == ["yes", "yes"]


def test_the_command_prints_tables_and_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, convnet())
    np.savez(tmp_path / "d.npz", x=RNG.standard_normal((3, 3, 16, 16)).astype(np.float32))
    assert main(["inspect", str(path), "--data", str(tmp_path / "d.npz")]) == 0
    out = capfd.readouterr().out
    for text in ("Conv 2", "100.0 %", "matrix-vector", "gemv", " dB", "[1, 3, 16, 16]", "3 feeds"):
        assert text in out, text
    assert main(["inspect", str(path), "--json", "--quiet"]) == 0
    assert json.loads(capfd.readouterr().out)["operators"] == {
        "Conv": 2, "Relu": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1,
    }  # fmt: skip


def test_a_truncated_model_is_exit_code_3(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, convnet())
    path.write_bytes(path.read_bytes()[:-200])
    assert main(["inspect", str(path), "--quiet"]) == 3
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)


def test_local_functions_are_looked_into(tmp_path: Path) -> None:
    body = helper.make_function(
        "local", "Project", ["a"], ["b"], [helper.make_node("MatMul", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    proto = model(("Project", "x", "y", {}, "local"), inputs={"x": (32, 32)}, domains=("local",))
    proto.functions.append(body)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (32, 32)))
    found = inspect(saved(tmp_path, proto))
    assert [one.rule for one in found.layers] == ["attention"]
